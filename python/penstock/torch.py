# SPDX-License-Identifier: Apache-2.0
"""PyTorch checkpoints at the speed of the drive, durable, in files that stock tools open.

    import penstock.torch

    penstock.torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, "last.pt")
    state = penstock.torch.load("last.pt")

`save` takes what torch.save takes and writes what torch.load reads, byte for byte the same pickle; but tensors go from
where they lie past the page cache to the drive, and the file appears under its name when it is whole and durable, or
not at all. `load` reads such files, torch.save's own, and safetensors, and never executes a pickle: what is no tensor,
container or plain value is refused by its name. `save_file` and `load_file` are for safetensors alone; `open` reads
single tensors and slices.
"""

from __future__ import annotations

import numbers
import os
from collections.abc import Mapping
from typing import Any

from penstock import _ckpt
from penstock._checkpointer import Checkpointer, Saving
from penstock._ckpt import Report
from penstock.errors import UnsupportedError, UsageError

__all__ = ["Checkpointer", "Reader", "Report", "Saving", "Slice", "load", "load_file", "open", "save", "save_file"]

_FORMATS = {"torch": _ckpt.TORCH, "safetensors": _ckpt.SAFETENSORS}

Path = str | os.PathLike[str]


def save(
    obj: Any,
    path: Path,
    *,
    format: str | None = None,
    digests: bool = True,
    pickle_protocol: int = 2,
    metadata: Mapping[str, str] | None = None,
    ring_bytes: int = 0,
    io: Mapping[str, Any] | None = None,
) -> Report:
    """Saves an object, and returns when it is durable. On failure an older file of that name is as it was.

    `format`: "torch", for any object, or "safetensors", for a dict from name to tensor; by default safetensors where
    the path ends in ".safetensors". Tensors on a device are copied to the host in pieces. `digests`: an XXH3 digest of
    every tensor and of the file, for `load(verify=True)` and `penstock verify`. `ring_bytes`: extra memory while
    writing (72 MiB unless given). `io`: settings as penstock.io.IO takes them. `metadata`: text of a safetensors
    file.
    """
    name = _ckpt.fs_path(path, "penstock.torch.save")
    text = os.fsdecode(name)
    if format is None:
        format = "safetensors" if text.endswith(".safetensors") else "torch"
    if format not in _FORMATS:
        raise UsageError(f"format {format!r} is none of {', '.join(_FORMATS)}")
    if format == "safetensors":
        return save_file(obj, path, metadata, digests=digests, ring_bytes=ring_bytes, io=io)
    if metadata:
        raise UsageError("metadata is for safetensors: in torch's format it is part of the object")
    from penstock._torch_save import add_storages, archive_name, make_pickle

    pickled, storages = make_pickle(obj, pickle_protocol, text)
    tensors = _ckpt.Tensors()
    try:
        add_storages(tensors, storages)
        what = _ckpt.request(
            name,
            format=_ckpt.TORCH,
            digests=digests,
            pickle=pickled.getbuffer(),
            archive_name=archive_name(text),
            ring_bytes=ring_bytes,
            io=io,
        )
        return _ckpt.save(what, tensors)
    finally:
        tensors.release()


def save_file(
    tensors: Mapping[str, Any],
    path: Path,
    metadata: Mapping[str, str] | None = None,
    *,
    digests: bool = True,
    shard_bytes: int = 0,
    ring_bytes: int = 0,
    io: Mapping[str, Any] | None = None,
) -> Report:
    """Saves a dict from name to tensor as safetensors; see `save`. What the format lacks is refused: tensors that share
    memory, that are not contiguous, or not dense. `shard_bytes`: files of at most so many bytes of data with an index;
    then the path is a folder, which must not exist yet."""
    from penstock._torch_save import add_tensors

    name = _ckpt.fs_path(path, "penstock.torch.save_file")
    out = _ckpt.Tensors()
    try:
        add_tensors(out, tensors)
        what = _ckpt.request(
            name,
            format=_ckpt.SAFETENSORS,
            digests=digests,
            metadata=metadata,
            shard_bytes=shard_bytes,
            ring_bytes=ring_bytes,
            io=io,
        )
        return _ckpt.save(what, out)
    finally:
        out.release()


def load(
    path: Path,
    map_location: Any = None,
    *,
    verify: bool = False,
    weights_only: bool = True,
    mmap: bool = False,
    ring_bytes: int = 0,
    io: Mapping[str, Any] | None = None,
) -> Any:
    """Loads what `save` or torch.save wrote, a safetensors file or a folder of them (a dict from name to tensor), a
    step's folder, or the newest step of a training folder.

    Tensors come as they were saved: views of one storage, strides, requires_grad, parameters. They are put on the CPU,
    or on the device that `map_location` names ("meta": no data is read), wherever they were saved from. `verify`: every
    tensor that has a digest is checked.

    It is always as torch.load with weights_only=True, and stricter: nothing that a file names is imported or called.
    """
    if not weights_only:
        raise UsageError("penstock.torch.load never executes a pickle (torch.load with weights_only=False does)")
    if mmap:
        raise UsageError(
            "penstock.torch.load reads tensors into memory (torch.load with mmap=True maps these files too)"
        )
    from penstock import _torch_load

    device = _torch_load.device_of(map_location)
    with _open(path, "penstock.torch.load", verify, ring_bytes, io) as ckpt:
        if ckpt.format == _ckpt.SAFETENSORS:
            return _load_named(ckpt, device)
        builder = _torch_load.Builder(ckpt, device)
        made = builder.build()
        builder.storages.fill()
        return made


def load_file(
    path: Path,
    device: Any = "cpu",
    *,
    verify: bool = False,
    ring_bytes: int = 0,
    io: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Loads a safetensors file, or a folder of them, as a dict from name to tensor; see `load`."""
    from penstock import _torch_load

    where = _torch_load.device_of(device)
    with _open(path, "penstock.torch.load_file", verify, ring_bytes, io) as ckpt:
        if ckpt.format != _ckpt.SAFETENSORS:
            raise UsageError("is no safetensors file (penstock.torch.load reads it)", path=ckpt.path)
        return _load_named(ckpt, where)


def _open(path: Path, who: str, verify: bool, ring_bytes: int, io: Mapping[str, Any] | None) -> _ckpt.Checkpoint:
    name = _ckpt.fs_path(path, who)
    if not isinstance(ring_bytes, int) or not 0 <= ring_bytes < 2**64:
        raise UsageError(f"ring_bytes cannot be {ring_bytes!r}")
    try:
        return _ckpt.Checkpoint(name, verify=verify, ring_bytes=ring_bytes, io=io)
    except UnsupportedError as problem:
        hint = "torch.load may know it; with weights_only=False it executes what the file says, so only if you trust it"
        raise UnsupportedError(f"{problem.message} ({hint})", problem.code, problem.path, problem.offset) from None


def _load_named(ckpt: _ckpt.Checkpoint, device: Any) -> dict[str, Any]:
    from penstock._torch_load import Storages, view

    storages = Storages(ckpt, device)
    made = {}
    for info in ckpt.tensors():
        alone = _ckpt.alone(info)
        made[info.name] = view(alone, storages.make(info.index, info.nbytes, is_storage=False), ckpt.path)
    storages.fill()
    return made


def open(
    path: Path,
    device: Any = "cpu",
    *,
    verify: bool = False,
    ring_bytes: int = 0,
    io: Mapping[str, Any] | None = None,
) -> Reader:
    """Opens a checkpoint of any kind that `load` takes, to read single tensors and slices of them."""
    from penstock._torch_load import device_of

    where = device_of(device)
    return Reader(_open(path, "penstock.torch.open", verify, ring_bytes, io), where)


class Reader:
    """An opened checkpoint. Close it, or use it in a `with` statement. Any thread.

    Tensors of a .pt file have the keys that lead to them, joined by ".", as names. They come contiguous and each by
    itself.
    """

    def __init__(self, ckpt: _ckpt.Checkpoint, device: Any) -> None:
        self._ckpt = ckpt
        self._device = device
        self._infos = {info.name: info for info in ckpt.tensors()}

    def keys(self) -> list[str]:
        """The tensors' names."""
        return list(self._infos)

    def __contains__(self, name: object) -> bool:
        return name in self._infos

    def __len__(self) -> int:
        return len(self._infos)

    def metadata(self, key: str) -> str | None:
        """An entry of a safetensors file's metadata."""
        return self._ckpt.metadata(key)

    def get_slice(self, name: str) -> Slice:
        """A tensor of which only parts are read: `get_slice(name)[1:3, :, 5]`."""
        info = self._infos.get(name)
        if info is None:
            raise KeyError(name)
        return Slice(self._ckpt, info, self._device)

    def get_tensor(self, name: str) -> Any:
        """A tensor, whole."""
        return self.get_slice(name)[...]

    def close(self) -> None:
        self._ckpt.close()

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = ", closed" if self._ckpt.closed else ""
        return f"<penstock.torch.Reader {self._ckpt.path!r}, {len(self)} tensors{state}>"


class Slice:
    """A tensor in a checkpoint. Indexing it reads: with integers, slices of step 1 and an ellipsis."""

    def __init__(self, ckpt: _ckpt.Checkpoint, info: _ckpt.TensorInfo, device: Any) -> None:
        from penstock._torch_load import dtype_of, torch_shape

        self._ckpt = ckpt
        self._info = info
        self._device = device
        self.shape: tuple[int, ...] = torch_shape(info, ckpt.path)
        self.dtype: Any = dtype_of(info.dtype, f"tensor {info.name!r}", ckpt.path)

    def get_shape(self) -> list[int]:
        return list(self.shape)

    def get_dtype(self) -> str:
        """The dtype as safetensors names it."""
        return _ckpt.DTYPES[self._info.dtype]

    def __getitem__(self, index: Any) -> Any:
        from penstock._torch_save import torch_module

        torch = torch_module()
        starts, stops, shape = _bounds(index, self.shape)
        sizes = [stop - start for start, stop in zip(starts, stops, strict=True)]
        out = torch.empty(sizes, dtype=self.dtype, device="meta" if self._device.type == "meta" else "cpu")
        if out.numel() > 0 and self._device.type != "meta":
            whole = tuple(sizes) == self.shape
            read = _ckpt.Read(self._info.index, out.data_ptr())
            if not whole:
                scale = self._info.shape[-1] // self.shape[-1] if self.shape else 1  # elements of the file to one
                starts[-1] *= scale
                stops[-1] *= scale
                read = _ckpt.Read(self._info.index, out.data_ptr(), tuple(starts), tuple(stops))
            self._ckpt.read([read])
        return out.reshape(shape).to(self._device)

    def __repr__(self) -> str:
        return f"<penstock.torch.Slice {self._info.name!r} {self.get_dtype()} {list(self.shape)}>"


def _bounds(index: Any, shape: tuple[int, ...]) -> tuple[list[int], list[int], list[int]]:
    """An index as start and stop of every dimension, and the shape of the result, without the integers' dimensions."""
    given = list(index) if isinstance(index, tuple) else [index]
    if given.count(...) > 1 or len(given) - given.count(...) > len(shape):
        raise IndexError(f"index {index!r} of a tensor of {len(shape)} dimensions")
    at = given.index(...) if ... in given else len(given)
    rest = [slice(None)] * (len(shape) - len(given) + given.count(...))
    starts, stops, result = [], [], []
    for part, size in zip([*given[:at], *rest, *given[at + 1 :]], shape, strict=True):
        if isinstance(part, slice):
            start, stop, step = part.indices(size)
            if step != 1:
                raise UsageError(f"a slice with step {step}: only consecutive elements are read")
            starts.append(start)
            stops.append(max(start, stop))
            result.append(max(0, stop - start))
        elif isinstance(part, numbers.Integral) and not isinstance(part, bool):
            place = int(part)
            if not -size <= place < size:
                raise IndexError(f"index {place} of a dimension of {size}")
            starts.append(place % size)
            stops.append(place % size + 1)
        else:
            raise UsageError(f"an index of {type(part).__name__}: integers, slices and ... are read")
    return starts, stops, result
