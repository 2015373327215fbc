# SPDX-License-Identifier: Apache-2.0
"""`.metadata` of torch.distributed.checkpoint, read without executing it.

The file is a pickle of a few plain classes of torch. They are built here, field by field, from what the file says; all
of it has been checked when it is given out: types, sizes, and that files lie in the checkpoint's folder.
"""

from __future__ import annotations

import pathlib
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    _MEM_FORMAT_ENCODING,
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)

from penstock import errors
from penstock._pickle_walk import Callee, Named, Refused, Walker

_MOST_BYTES = 2 << 30
_MOST_DIMENSIONS = 64
_METADATA = "torch.distributed.checkpoint.metadata"
_MEMORY_FORMATS = {
    _MEM_FORMAT_ENCODING.TORCH_CONTIGUOUS_FORMAT: torch.contiguous_format,
    _MEM_FORMAT_ENCODING.TORCH_CHANNELS_LAST: torch.channels_last,
    _MEM_FORMAT_ENCODING.TORCH_PRESERVE_FORMAT: torch.preserve_format,
}

Check = Callable[[Any], bool]


def read(path: str) -> Metadata:
    """The metadata in a file. FormatError where it is none, or names what it has no business with."""
    with open(path, "rb") as file:
        data = file.read(_MOST_BYTES + 1)
    try:
        if len(data) > _MOST_BYTES:
            raise Refused(f"it has more than {_MOST_BYTES} bytes")
        metadata = Walker(_find, _SET_STATE, check_key={MetadataIndex: _check_index}).walk(data)
        if type(metadata) is not Metadata:
            raise Refused(f"it is a {type(metadata).__name__}")
        _check(metadata)
    except Refused as problem:
        raise errors.FormatError(f"no metadata of a checkpoint: {problem}", errors.E_FORMAT, path) from problem
    return metadata


# ---- what names stand for ----


def _size(*arguments: Any) -> torch.Size:
    [numbers] = arguments or ((),)
    if type(numbers) not in (tuple, list, torch.Size) or len(numbers) > _MOST_DIMENSIONS:
        raise Refused("it has a torch.Size that cannot be")
    if not all(type(number) is int and 0 <= number < 2**63 for number in numbers):
        raise Refused("it has a torch.Size that cannot be")
    return torch.Size(numbers)


def _layout(name: Any) -> torch.layout:
    if type(name) is not str or not name.startswith("torch."):
        raise Refused("it has a layout that cannot be")
    found = vars(torch).get(name.removeprefix("torch."))
    if not isinstance(found, torch.layout):
        raise Refused(f"it has the layout {name[:100]}, which this torch does not have")
    return found


def _path(*parts: Any) -> pathlib.Path:
    if not all(type(part) is str for part in parts):
        raise Refused("it has a path that cannot be")
    return pathlib.Path(*parts)


def _new(kind: Any) -> Callable[..., Any]:
    def new(*arguments: Any) -> Any:
        if arguments:
            raise Refused(f"it makes a {kind.__name__} of arguments")
        return kind.__new__(kind)

    return new


_BUILT = (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
_NAMES: dict[tuple[str, str], Named | Callee] = {
    **{(_METADATA, kind.__name__): Callee(kind.__name__, new=_new(kind)) for kind in _BUILT},
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"): Callee("_StorageInfo", new=_new(_StorageInfo)),
    (_METADATA, "_MEM_FORMAT_ENCODING"): Callee("_MEM_FORMAT_ENCODING", call=_MEM_FORMAT_ENCODING),
    ("torch", "Size"): Callee("torch.Size", call=_size, new=_size),
    ("torch.serialization", "_get_layout"): Callee("torch.serialization._get_layout", call=_layout),
    ("collections", "OrderedDict"): Callee("OrderedDict", call=lambda: OrderedDict()),
    **{
        (module, name): Callee(name, call=_path)
        for module in ("pathlib", "pathlib._local")
        for name in ("Path", "PosixPath", "PurePosixPath")
    },
}


def _find(module: str, name: str) -> Named | Callee | None:
    found = _NAMES.get((module, name))
    if found is None and module == "torch":
        value = vars(torch).get(name)  # getattr() would import what torch has by that name
        if isinstance(value, (torch.dtype, torch.layout, torch.memory_format)):
            return Named(value)
    return found


# ---- what is put into the objects ----

_FIELDS: dict[type, tuple[str, ...]] = {
    BytesStorageMetadata: (),
    ChunkStorageMetadata: ("offsets", "sizes"),
    Metadata: ("state_dict_metadata", "planner_data", "storage_data", "storage_meta", "version"),
    MetadataIndex: ("fqn", "offset", "index"),
    StorageMeta: ("checkpoint_id", "save_id", "load_id", "modules"),
    TensorStorageMetadata: ("properties", "size", "chunks"),
    _StorageInfo: ("relative_path", "offset", "length", "transform_descriptors"),
}


def _set_fields(made: Any, state: Any) -> None:
    fields = _FIELDS[type(made)]
    if type(state) is not dict or made.__dict__:
        raise Refused(f"it has a {type(made).__name__} with a state that cannot be")
    for name in state:
        if name not in fields:
            raise Refused(f"it has a {type(made).__name__} with {str(name)[:100]!r}, which this torch does not have")
    for name, value in state.items():
        object.__setattr__(made, name, value)


def _set_properties(made: Any, state: Any) -> None:
    if type(state) is not tuple or len(state) != 5 or type(state[3]) is not _MEM_FORMAT_ENCODING:
        raise Refused("it has TensorProperties with a state that cannot be")
    made.dtype, made.layout, made.requires_grad, encoding, made.pin_memory = state
    made.memory_format = _MEMORY_FORMATS[encoding]


_SET_STATE: dict[type, Callable[[Any, Any], None]] = {
    **dict.fromkeys(_FIELDS, _set_fields),
    TensorProperties: _set_properties,
}


# ---- what must hold of them ----


def _optional(kind: type) -> Check:
    return lambda value: value is None or type(value) is kind


def _is(*kinds: type) -> Check:
    return lambda value: type(value) in kinds


def _is_number(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _is_list_of_text(value: Any) -> bool:
    return value is None or (type(value) in (list, tuple) and all(type(one) is str for one in value))


def _is_file_beside(value: Any) -> bool:
    return type(value) is str and value not in ("", ".", "..") and not set(value) & {"/", "\0"}


def _is_path(value: Any) -> bool:
    return value is None or isinstance(value, (str, pathlib.Path))


def _need(of: Any, **fields: Check) -> None:
    """Fields that an object must have, and what they must be."""
    for name, check in fields.items():
        if name not in of.__dict__ and not hasattr(type(of), name):
            raise Refused(f"it has a {type(of).__name__} without {name}")
        if not check(getattr(of, name)):
            raise Refused(f"it has a {type(of).__name__} whose {name} cannot be")


def _check_index(index: Any) -> None:
    _need(index, fqn=_is(str), offset=_optional(torch.Size), index=lambda one: one is None or _is_number(one))


def _check(metadata: Metadata) -> None:
    _need(metadata, state_dict_metadata=_is(dict), storage_data=_is(dict), version=_optional(str))
    _need(metadata, storage_meta=_optional(StorageMeta), planner_data=lambda _: True)
    for name, entry in metadata.state_dict_metadata.items():
        if type(name) is not str:
            raise Refused("it has a name that is no text")
        if type(entry) is TensorStorageMetadata:
            _check_tensor(entry)
        elif type(entry) is not BytesStorageMetadata:
            raise Refused(f"it describes {name[:200]!r} by a {type(entry).__name__}")
    for index, where in metadata.storage_data.items():
        if type(index) is not MetadataIndex or type(where) is not _StorageInfo:
            raise Refused("it says where things lie in a way that cannot be")
        _check_index(index)
        if not _is_file_beside(getattr(where, "relative_path", None)):
            raise Refused("it names files outside of its folder")
        _need(where, offset=_is_number, length=_is_number, transform_descriptors=_is_list_of_text)
    if metadata.storage_meta is not None:
        _need(metadata.storage_meta, checkpoint_id=_is_path, save_id=_optional(str), load_id=_optional(str))


def _check_tensor(entry: TensorStorageMetadata) -> None:
    _need(entry, properties=_is(TensorProperties), size=_is(torch.Size), chunks=_is(list))
    _need(entry.properties, dtype=_is(torch.dtype), layout=_is(torch.layout), requires_grad=_is(bool))
    for chunk in entry.chunks:
        if type(chunk) is not ChunkStorageMetadata:
            raise Refused(f"it has a {type(chunk).__name__} as a part of a tensor")
        _need(chunk, offsets=_is(torch.Size), sizes=_is(torch.Size))
        if not len(chunk.offsets) == len(chunk.sizes) == len(entry.size):
            raise Refused("it has a part of a tensor of other dimensions")
        if any(a + b > c for a, b, c in zip(chunk.offsets, chunk.sizes, entry.size, strict=True)):
            raise Refused("it has a part of a tensor outside of it")
