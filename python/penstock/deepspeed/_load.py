# SPDX-License-Identifier: Apache-2.0
"""Files of torch.save as DeepSpeed writes them: with objects of DeepSpeed in them, which penstock.torch.load refuses.

Tensors' memory is read past the page cache. The pickle is not executed: it is walked with a list of what such files are
made of, and those things are built here: tensors, plain values, and DeepSpeed's plain classes, which get their
attributes set. A file that names more (an object in client_state) is refused with that name, unless pickles are
trusted (`trust_pickles`): then torch.load does whatever the file says, as DeepSpeed always does.
"""

from __future__ import annotations

import importlib
import logging
import os
import struct
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Any

from penstock._pickle_walk import Callee, Named, Refused, Walker
from penstock.errors import UnsupportedError
from penstock.io import IO, File

log = logging.getLogger("penstock")

# Classes whose objects are made without their own code: a fresh one, and its attributes.
_OBJECTS = {
    "deepspeed.runtime.fp16.loss_scaler": ("DynamicLossScaler", "LossScaler", "LossScalerBase"),
    "deepspeed.utils.tensor_fragment": ("fragment_address", "tensor_fragment"),
}
_ENUMS = {"deepspeed.runtime.zero.config": ("ZeroStageEnum",)}
_MOST_DIMENSIONS = 64
_MOST_PICKLE_BYTES = 2 << 30


def _torch() -> Any:
    """Imported when it is needed, and of any version."""
    return importlib.import_module("torch")


class _Kind:
    """The class of a storage, as a file names it."""

    def __init__(self, dtype: Any) -> None:
        self.dtype = dtype


class _Builder:
    """Builds what a file holds. `storage`: the bytes of a record by key, count and location."""

    def __init__(self, storage: Callable[[str, int, str], Any]) -> None:
        self._torch = torch = _torch()
        self._storage = storage
        self._loaded: dict[str, Any] = {}
        self._names: dict[tuple[str, str], Named | Callee] = {
            ("torch._utils", "_rebuild_tensor"): Callee("_rebuild_tensor", self._tensor),
            ("torch._utils", "_rebuild_tensor_v2"): Callee("_rebuild_tensor_v2", self._tensor_v2, is_argument=True),
            ("torch._utils", "_rebuild_tensor_v3"): Callee("_rebuild_tensor_v3", self._tensor_v3, is_argument=True),
            ("torch._utils", "_rebuild_parameter"): Callee("_rebuild_parameter", self._parameter, is_argument=True),
            ("torch._utils", "_rebuild_parameter_with_state"): Callee("_rebuild_parameter_with_state", self._parameter),
            ("torch._tensor", "_rebuild_from_type_v2"): Callee("_rebuild_from_type_v2", self._with_state),
            ("torch", "Tensor"): Named(torch.Tensor),
            ("torch.nn.parameter", "Parameter"): Named(torch.nn.Parameter),
            ("torch", "UntypedStorage"): Named(_Kind(torch.uint8)),
            ("torch.storage", "UntypedStorage"): Named(_Kind(torch.uint8)),
            ("torch", "Size"): Callee("torch.Size", self._size, self._size),
            ("torch", "device"): Callee("torch.device", self._device),
            ("torch.serialization", "_get_layout"): Callee("torch.serialization._get_layout", self._layout),
            ("collections", "OrderedDict"): Callee("OrderedDict", self._ordered),
            ("collections", "Counter"): Callee("Counter", self._counter),
            ("_codecs", "encode"): Callee("_codecs.encode", self._bytes),
        }
        for module in ("builtins", "__builtin__"):
            for name, make in self._builtins().items():
                self._names[module, name] = Callee(name, make)
        self._set_state: dict[type, Callable[[Any, Any], None]] = {
            OrderedDict: self._attributes,
            torch.nn.Parameter: self._attributes,
            torch.Tensor: self._attributes,
        }
        self._walker = Walker(self._find, self._set_state, persistent=self._persistent)

    def build(self, pickled: bytes) -> Any:
        return self._walker.walk(pickled)

    # ---- names ----

    def _find(self, module: str, name: str) -> Named | Callee | None:
        found = self._names.get((module, name))
        if found is not None:
            return found
        if module == "torch":
            return self._find_torch(name)
        if name in _OBJECTS.get(module, ()):
            kind = self._class(module, name)
            self._set_state[kind] = self._attributes
            return Callee(f"{module}.{name}", new=lambda: object.__new__(kind))
        if name in _ENUMS.get(module, ()):
            return Callee(f"{module}.{name}", self._class(module, name))
        return None

    def _find_torch(self, name: str) -> Named | None:
        torch = self._torch
        if name.endswith("Storage"):
            try:
                return Named(_Kind(torch.serialization.StorageType(name).dtype))
            except KeyError:
                return None
        value = vars(torch).get(name)  # getattr() would import what torch has by that name
        return Named(value) if isinstance(value, (torch.dtype, torch.layout, torch.memory_format)) else None

    @staticmethod
    def _class(module: str, name: str) -> Any:
        try:
            return getattr(importlib.import_module(module), name)
        except (AttributeError, ImportError) as problem:  # of another version of DeepSpeed
            raise Refused(str(problem), f"{module}.{name}") from problem

    # ---- storages and tensors ----

    def _persistent(self, saved: Any) -> Any:
        torch = self._torch
        if type(saved) is not tuple or len(saved) != 5 or saved[0] != "storage":
            raise Refused("it has a persistent object that is no storage")
        _, kind, key, location, count = saved
        if type(kind) is not _Kind or not isinstance(key, str) or type(count) is not int or count < 0:
            raise Refused("it has a storage of an unknown kind")
        if not isinstance(location, str):
            raise Refused("it has a storage without a location")
        if key not in self._loaded:
            nbytes = count * torch._utils._element_size(kind.dtype)
            untyped = self._storage(key, nbytes, location)
            self._loaded[key] = torch.storage.TypedStorage(wrap_storage=untyped, dtype=kind.dtype, _internal=True)
        return self._loaded[key]

    def _numbers(self, given: Any) -> tuple[int, ...]:
        if type(given) not in (tuple, list, self._torch.Size) or len(given) > _MOST_DIMENSIONS:
            raise Refused("it has a shape that cannot be")
        if not all(type(number) is int and 0 <= number < 2**63 for number in given):
            raise Refused("it has a shape that cannot be")
        return tuple(given)

    def _view(self, storage: Any, offset: Any, size: Any, stride: Any, dtype: Any = None) -> Any:
        torch = self._torch
        if type(storage) is not torch.storage.TypedStorage:
            raise Refused("it has a tensor without a storage")
        shape, strides, [begin] = self._numbers(size), self._numbers(stride), self._numbers([offset])
        if len(shape) != len(strides):
            raise Refused("it has a tensor with a stride too few")
        untyped = storage._untyped_storage
        empty = torch.empty((0,), dtype=storage.dtype if dtype is None else dtype, device=untyped.device)
        last = -1 if 0 in shape else sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
        if last >= 0 and (begin + last + 1) * empty.element_size() > untyped.nbytes():
            raise Refused("it has a tensor that reaches outside of its storage")
        return empty.set_(untyped, begin, shape, strides)

    def _tensor(self, storage: Any, offset: Any, size: Any, stride: Any) -> Any:
        return self._view(storage, offset, size, stride)

    def _tensor_v2(
        self, storage: Any, offset: Any, size: Any, stride: Any, requires_grad: Any, hooks: Any, metadata: Any = None
    ) -> Any:
        return self._finished(self._view(storage, offset, size, stride), requires_grad, hooks, metadata)

    def _tensor_v3(
        self,
        storage: Any,
        offset: Any,
        size: Any,
        stride: Any,
        requires_grad: Any,
        hooks: Any,
        dtype: Any,
        metadata: Any = None,
    ) -> Any:
        if not isinstance(dtype, self._torch.dtype):
            raise Refused("it has a tensor of an unknown type")
        return self._finished(self._view(storage, offset, size, stride, dtype), requires_grad, hooks, metadata)

    def _finished(self, tensor: Any, requires_grad: Any, hooks: Any, metadata: Any) -> Any:
        if hooks or (metadata and (type(metadata) is not dict or not {*metadata} <= {"conj", "neg"})):
            raise Refused("it has a tensor with hooks, or of an unknown kind")
        with self._torch.no_grad():
            if metadata and metadata.get("conj"):
                tensor = tensor.conj()
            if metadata and metadata.get("neg"):
                tensor = self._torch._neg_view(tensor)
        return tensor.requires_grad_(requires_grad is True)

    def _parameter(self, tensor: Any, requires_grad: Any, hooks: Any, state: Any = None) -> Any:
        torch = self._torch
        if type(tensor) is not torch.Tensor or hooks:
            raise Refused("it has a parameter with hooks, or that is no tensor")
        made = torch.nn.Parameter(tensor.detach(), requires_grad is True)
        if state is not None:
            self._attributes(made, state)
        return made

    def _with_state(self, rebuild: Any, kind: Any, arguments: Any, state: Any) -> Any:
        """A tensor with attributes."""
        if type(rebuild) is not Callee or rebuild.call is None or type(arguments) is not tuple:
            raise Refused("it has a tensor made in an unknown way")
        made = rebuild.call(*arguments)
        if type(made) is not kind:
            raise Refused(f"it has a tensor of an unknown class as a {type(made).__name__}")
        self._attributes(made, state)
        return made

    def _attributes(self, made: Any, state: Any) -> None:
        """Never what the class defines itself; default values of a dataclass's fields are none of that."""
        if type(state) is tuple and len(state) == 2 and state[1] is None:
            state = state[0]
        if type(state) not in (dict, OrderedDict):
            raise Refused(f"it sets a state of a {type(made).__name__} that is no dict")
        fields = getattr(type(made), "__dataclass_fields__", {})
        for name, value in state.items():
            if type(name) is not str or (hasattr(type(made), name) and name not in fields):
                raise Refused(f"it sets {str(name)[:100]!r} of a {type(made).__name__}")
            made.__dict__[name] = value

    # ---- plain values ----

    def _builtins(self) -> dict[str, Callable[..., Any]]:
        return {
            "bytearray": lambda given=b"", coding=None: bytearray(
                self._bytes(given, coding) if type(given) is str else self._text(given, bytes)
            ),
            "complex": lambda real, imaginary=0.0: complex(self._text(real, float), self._text(imaginary, float)),
            "frozenset": lambda values=(): frozenset(self._walker.keys(values)),
            "set": lambda values=(): set(self._walker.keys(values)),
        }

    def _text(self, value: Any, kind: type) -> Any:
        """A value of the kind that is needed, about to be copied."""
        if type(value) is not kind:
            raise Refused(f"it makes something of a {type(value).__name__}")
        if isinstance(value, (str, bytes)):
            self._walker.copies(len(value))
        return value

    def _bytes(self, given: Any, coding: Any) -> bytes:
        """As protocol 2 has them."""
        if coding not in ("latin1", "latin-1"):
            raise Refused("it has bytes in an unknown coding")
        return bytes(self._text(given, str).encode("latin-1"))

    def _size(self, *arguments: Any) -> Any:
        [numbers] = arguments or ((),)
        return self._torch.Size(self._numbers(numbers))

    def _device(self, *arguments: Any) -> Any:
        if len(arguments) > 2 or not all(type(one) in (str, int) for one in arguments):
            raise Refused("it has a torch.device that cannot be")
        return self._torch.device(*arguments)

    def _layout(self, name: Any) -> Any:
        found = vars(self._torch).get(str(name).removeprefix("torch."))
        if not isinstance(found, self._torch.layout):
            raise Refused("it has a layout that this torch does not have")
        return found

    def _ordered(self, pairs: Any = ()) -> Any:
        made: OrderedDict[Any, Any] = OrderedDict()
        if type(pairs) not in (list, tuple):
            raise Refused("it makes an OrderedDict of something unknown")
        self._walker.copies(len(pairs))
        for key, value in pairs:
            self._walker.check_key(key)
            made[key] = value
        return made

    def _counter(self, counts: Any = None) -> Any:
        if counts is not None and type(counts) is not dict:
            raise Refused("it makes a Counter of something unknown")
        self._walker.copies(len(counts or ()))
        return Counter(counts)


class _Records:
    """The zip file's records, which are stored as they are."""

    def __init__(self, path: str) -> None:
        try:
            self._zip = zipfile.ZipFile(path)
        except zipfile.BadZipFile as problem:
            raise Refused(f"an old format of torch: {problem}") from problem
        entries = self._zip.infolist()
        self._folder = entries[0].filename.partition("/")[0] if entries else ""
        self._by_name = {entry.filename: entry for entry in entries}
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise Refused("compressed records")
        if self.bytes_of("byteorder", b"little") != b"little" or self._entry("constants.pkl") is not None:
            raise Refused("not of torch.save on a little-endian machine")

    def _entry(self, name: str) -> zipfile.ZipInfo | None:
        return self._by_name.get(f"{self._folder}/{name}")

    def bytes_of(self, name: str, default: bytes | None = None) -> bytes:
        entry = self._entry(name)
        if entry is None:
            if default is None:
                raise Refused(f"no record {name}")
            return default
        if entry.file_size > _MOST_PICKLE_BYTES:
            raise Refused(f"record {name} has more than {_MOST_PICKLE_BYTES} bytes")
        return self._zip.read(entry)

    def place(self, name: str, nbytes: int) -> int:
        """Where a record of so many bytes begins."""
        entry = self._entry(name)
        if entry is None or entry.file_size != nbytes or self._zip.fp is None:
            raise Refused(f"no record {name} of {nbytes} bytes")
        self._zip.fp.seek(entry.header_offset)
        header = self._zip.fp.read(30)
        if len(header) < 30 or header[:4] != b"PK\3\4":
            raise Refused(f"no header of record {name}")
        names, extra = struct.unpack_from("<HH", header, 26)
        return entry.header_offset + 30 + int(names) + int(extra)

    def close(self) -> None:
        self._zip.close()


def load(path: str, map_location: Any = None, trust_pickles: bool = False) -> Any:
    """What DeepSpeed saved. UnsupportedError where the file needs more than is built here, unless pickles are
    trusted."""
    try:
        return _load(path, map_location)
    except Refused as why:
        if trust_pickles:
            log.info("%s is loaded by torch.load, with all that its pickle says: %s", path, why)
            return _torch().load(path, map_location=map_location, weights_only=False)
        raise UnsupportedError(
            f'{why}, which is not loaded ("trust_pickles": true in the configuration\'s checkpoint writer, or '
            "install(trust_pickles=True), lets torch.load execute what the file says)",
            path=path,
        ) from why


def _load(path: str, map_location: Any) -> Any:
    restore: Callable[[Any, str], Any] = _torch().serialization._get_restore_location(map_location)
    room = os.path.getsize(path)
    records = _Records(path)
    try:
        with IO() as io, io.open(path) as file:

            def storage(key: str, nbytes: int, location: str) -> Any:
                nonlocal room
                place = records.place(f"data/{key}", nbytes)
                room -= nbytes
                if room < 0:
                    raise Refused("it has more data than the file")
                return restore(_read(file, place, nbytes), location)

            return _Builder(storage).build(records.bytes_of("data.pkl"))
    finally:
        records.close()


def _read(file: File, offset: int, nbytes: int) -> Any:
    torch = _torch()
    storage = torch.UntypedStorage(nbytes)
    if nbytes:
        file.read_into(torch.empty(0, dtype=torch.uint8).set_(storage), offset)
    return storage
