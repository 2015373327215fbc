#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Saves or loads a checkpoint with another library, timed: what `penstock bench save|load --against` runs.

    checkpoint.py '{"library": "torch", "op": "save", "path": "/mnt/nvme/x.pt", "table": "tensors.json", "seed": 1}'

op is "check" (is the library there?), "save" or "load". table: [[name, dtype, shape], ...] of what is saved. A save ends when
file and folder are synced. A load begins with the file's pages dropped from the page cache, and ends when every page of the
tensors has been touched, since some libraries only map the file. Time for imports and for making tensors is not counted.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import time

import common

DTYPES = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "I16": "int16", "U16": "uint16", "F16": "float16", "BF16": "bfloat16",
    "I32": "int32", "U32": "uint32", "F32": "float32", "F64": "float64", "I64": "int64", "U64": "uint64",
    "C64": "complex64", "C128": "complex128", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu",
}  # fmt: skip


def cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def make_tensors(s: dict) -> dict:
    """Pseudo-random bits in memory of their own, every page written."""
    import torch

    block = torch.randint(0, 256, (1 << 22,), dtype=torch.uint8, generator=torch.Generator().manual_seed(s["seed"]))
    tensors = {}
    with open(s["table"]) as stream:
        table = json.load(stream)
    for name, dtype, shape in table:
        tensor = torch.empty(shape, dtype=getattr(torch, DTYPES[dtype]))
        flat = tensor.view(-1).view(torch.uint8) if tensor.numel() else tensor.new_empty(0, dtype=torch.uint8)
        for begin in range(0, flat.numel(), block.numel()):
            part = flat[begin : begin + block.numel()]
            part.copy_(block[: part.numel()])
        tensors[name] = tensor
    return tensors


def sync(path: str) -> None:
    """The file, and its name in the folder."""
    for name in (path, os.path.dirname(path) or "."):
        fd = os.open(name, os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)


def torch_saver():
    import torch

    return torch.save


def safetensors_saver():
    from safetensors.torch import save_file

    return save_file


def deepspeed_saver():
    """FastPersist's writer with two buffers of 32 MiB; it writes torch's older format."""
    import torch
    import deepspeed.io.fast_file_writer as fast
    from deepspeed.ops.op_builder import AsyncIOBuilder

    class Bytes:
        """DeepSpeed has this operator, which looks at tensors as bytes, for accelerators only."""

        def load(self):
            return self

        def cast_to_byte_tensor(self, tensors):
            return [t.contiguous().view(-1).view(torch.uint8) for t in tensors]

    fast.UtilsBuilder = Bytes

    handle = AsyncIOBuilder().load().aio_handle(8 << 20, 8, False, True, 1)
    pinned = handle.new_cpu_locked_tensor(64 << 20, torch.empty(0, dtype=torch.uint8))
    config = fast.FastFileWriterConfig(
        dnvme_handle=handle, pinned_tensor=pinned, double_buffer=True, num_parallel_writers=1, writer_rank=0
    )

    def save(tensors: dict, path: str) -> None:
        writer = fast.FastFileWriter(file_path=path, config=config)
        torch.save(tensors, writer, _use_new_zipfile_serialization=False)
        writer.close()

    return save


def torch_loader():
    import torch

    return lambda path: torch.load(path, weights_only=True)


def safetensors_loader():
    from safetensors.torch import load_file

    return load_file


SAVERS = {"torch": torch_saver, "safetensors": safetensors_saver, "deepspeed": deepspeed_saver}
LOADERS = {"torch": torch_loader, "safetensors": safetensors_loader}


def version(library: str) -> str:
    """Ends the driver where the library is not there."""
    try:
        importlib.import_module("torch")
        module = importlib.import_module(library)
        if library == "safetensors":
            importlib.import_module("safetensors.torch")
        if library == "deepspeed":
            importlib.import_module("deepspeed.io.fast_file_writer")
    except ImportError as cause:
        common.missing(f"{cause} (--python names a Python that has it)")
    return f"{library} {module.__version__}"


def touch(value) -> int:
    """Reads a byte of every page of all tensors in it; their bytes."""
    import torch

    if isinstance(value, torch.Tensor):
        storage = value.untyped_storage()
        flat = torch.empty(0, dtype=torch.uint8).set_(storage)
        int(flat[::4096].sum())
        return storage.nbytes()
    if isinstance(value, dict):
        value = list(value.values())
    return sum(touch(item) for item in value) if isinstance(value, (list, tuple)) else 0


def save(s: dict) -> dict:
    tensors = make_tensors(s)
    size = sum(t.numel() * t.element_size() for t in tensors.values())
    saver = SAVERS[s["library"]]()
    cpu, started = cpu_seconds(), time.perf_counter()
    saver(tensors, s["path"])
    sync(s["path"])
    return {"seconds": time.perf_counter() - started, "cpu_seconds": cpu_seconds() - cpu, "bytes": size}


def load(s: dict) -> dict:
    loader = LOADERS[s["library"]]()
    fd = os.open(s["path"], os.O_RDONLY)
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)
    cpu, started = cpu_seconds(), time.perf_counter()
    size = touch(loader(s["path"]))
    return {"seconds": time.perf_counter() - started, "cpu_seconds": cpu_seconds() - cpu, "bytes": size}


def main() -> None:
    s = common.settings()
    found = version(s["library"])
    common.finish({"version": found} if s["op"] == "check" else {"save": save, "load": load}[s["op"]](s))


if __name__ == "__main__":
    main()
