# SPDX-License-Identifier: Apache-2.0
"""safetensors files of NumPy arrays: `save_file` and `load_file`, as penstock.torch has them for tensors."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from penstock import _ckpt
from penstock._ckpt import Report
from penstock.errors import UnsupportedError, UsageError

__all__ = ["Report", "load_file", "save_file"]

# numpy's code of each dtype that it has
_CODES = {
    "BOOL": "?",
    "U8": "u1",
    "I8": "i1",
    "I16": "<i2",
    "U16": "<u2",
    "F16": "<f2",
    "I32": "<i4",
    "U32": "<u4",
    "F32": "<f4",
    "F64": "<f8",
    "I64": "<i8",
    "U64": "<u8",
    "C64": "<c8",
}


def save_file(
    arrays: Mapping[str, Any],
    path: str | os.PathLike[str],
    metadata: Mapping[str, str] | None = None,
    *,
    digests: bool = True,
    shard_bytes: int = 0,
    ring_bytes: int = 0,
    io: Mapping[str, Any] | None = None,
) -> Report:
    """Saves a dict from name to array, from where the arrays lie, and returns when it is durable."""
    import numpy

    from penstock._buffers import pin

    name = _ckpt.fs_path(path, "penstock.numpy.save_file")
    if not isinstance(arrays, Mapping):
        raise UsageError(f"safetensors holds a dict from name to array, not a {type(arrays).__name__}")
    numbers = {numpy.dtype(code): _ckpt.DTYPES.index(dtype) for dtype, code in _CODES.items()}
    tensors = _ckpt.Tensors()
    held = []
    try:
        for key, array in arrays.items():
            if not isinstance(key, str) or not isinstance(array, numpy.ndarray):
                raise UsageError(f"{key!r} is a {type(array).__name__}: a dict from name to numpy.ndarray is needed")
            if array.dtype not in numbers:
                raise UsageError(f"array {key!r} is of dtype {array.dtype}, which safetensors does not have")
            if not array.flags.c_contiguous:
                raise UsageError(f"array {key!r} is not contiguous (use numpy.ascontiguousarray)")
            held.append(pin(array, writable=False))
            tensors.add(key, numbers[array.dtype], array.shape, held[-1].address, array)
        what = _ckpt.request(
            name,
            format=_ckpt.SAFETENSORS,
            digests=digests,
            metadata=metadata,
            shard_bytes=shard_bytes,
            ring_bytes=ring_bytes,
            io=io,
        )
        return _ckpt.save(what, tensors)
    finally:
        tensors.release()
        for memory in held:
            memory.release()


def load_file(
    path: str | os.PathLike[str],
    *,
    verify: bool = False,
    ring_bytes: int = 0,
    io: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Loads a safetensors file, or a folder of them, as a dict from name to array. `verify`: checks digests."""
    import numpy

    name = _ckpt.fs_path(path, "penstock.numpy.load_file")
    with _ckpt.Checkpoint(name, verify=verify, ring_bytes=ring_bytes, io=io) as ckpt:
        if ckpt.format != _ckpt.SAFETENSORS:
            raise UsageError("is no safetensors file", path=ckpt.path)
        made: dict[str, Any] = {}
        reads = []
        for info in ckpt.tensors():
            dtype = _ckpt.DTYPES[info.dtype]
            if dtype not in _CODES:
                raise UnsupportedError(f"tensor {info.name!r} is of {dtype}, which numpy does not have", path=ckpt.path)
            array = made[info.name] = numpy.empty(info.shape, dtype=_CODES[dtype])
            if info.nbytes:
                reads.append(_ckpt.Read(info.index, array.ctypes.data))
        ckpt.read(reads)
        return made
