#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Loading and storing one tensor with plain Python and with Penstock: the table of DeepNVMe's blog, on this machine.

Rows: torch.save and torch.load, ndarray.tofile and fromfile, file.write and readinto of the tensor's memory,
DeepSpeed's interface on Penstock (aio_handle, page-locked tensor), and penstock.io. The ways alternate, in an order
that is reversed from round to round. The page cache is emptied before each load where that is allowed (root), else
the file is at least asked to be dropped from it; --keep-cache leaves it. Stores make a new file and end with it on
the drive (--sync, the default, by fdatasync for every way alike) or, with --no-sync, wherever each way leaves it:
torch.save then mostly in memory.

    bench/against_python.py FOLDER_ON_THE_DRIVE --size 1G --rounds 3 --output raw.json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "python"))

# What each row is compared with: the best plain way is looked up in the results.
PLAIN = ("torch", "numpy", "file")


def parse_size(text: str) -> int:
    """Bytes of "64M", "1G" or a number."""
    unit = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}.get(text[-1].upper(), 1)
    return int(text.rstrip("kKmMgG")) * unit


def drop_cache(path: Path) -> str:
    """Out of the page cache with the file; how."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fdatasync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)
    try:
        Path("/proc/sys/vm/drop_caches").write_text("1")
        return "drop_caches"
    except OSError:
        return "fadvise"


def sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fdatasync(descriptor)
    finally:
        os.close(descriptor)


def ways(size: int, folder: Path) -> dict[str, dict[str, Any]]:
    """For each way a path, and functions that store to and load from it; load returns what it loaded."""
    import numpy
    import torch
    from penstock import deepspeed, io

    paths = {name: folder / name for name in (*PLAIN, "aio_handle", "penstock.io")}
    tensor = torch.randint(0, 256, (size,), dtype=torch.uint8)
    array = tensor.numpy()
    handle = deepspeed.aio_handle(block_size=1 << 20, queue_depth=64, overlap_events=True)
    locked = handle.new_cpu_locked_tensor(size, tensor).copy_(tensor)
    target = torch.empty_like(locked)
    engine = io.IO()

    def checked(good: int) -> None:
        if good != 1:
            raise SystemExit("aio_handle failed")

    def write_file() -> None:
        with open(paths["file"], "wb", buffering=0) as file:
            done = 0
            while done < size:
                done += file.write(memoryview(array)[done:])

    def read_file() -> Any:
        with open(paths["file"], "rb", buffering=0) as file:
            done = 0
            while done < size:
                done += file.readinto(memoryview(target.numpy())[done:])
        return target

    def load_aio() -> Any:
        checked(handle.sync_pread(locked, str(paths["aio_handle"])))
        return locked

    def store_io() -> None:
        with engine.open(paths["penstock.io"], "w") as file:
            file.write_from(locked)

    def load_io() -> Any:
        with engine.open(paths["penstock.io"]) as file:
            file.read_into(locked)
        return locked

    functions: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
        "torch": (lambda: torch.save(tensor, paths["torch"]), lambda: torch.load(paths["torch"])),
        "numpy": (
            lambda: array.tofile(paths["numpy"]),
            lambda: torch.from_numpy(numpy.fromfile(paths["numpy"], dtype=numpy.uint8)),
        ),
        "file": (write_file, read_file),
        "aio_handle": (lambda: checked(handle.sync_pwrite(locked, str(paths["aio_handle"]))), load_aio),
        "penstock.io": (store_io, load_io),
    }
    return {
        name: {"path": paths[name], "store": store, "load": load, "tensor": tensor}
        for name, (store, load) in functions.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="on the drive; files are made there and removed")
    parser.add_argument("--size", default="1G")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--keep-cache", action="store_true", help="do not empty the page cache before loads")
    parser.add_argument("--sync", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    import torch

    size = parse_size(arguments.size)
    folder = arguments.folder / f"against_python.{os.getpid()}"
    folder.mkdir()
    cpu = next(
        (line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), "unknown"
    )
    report: dict[str, Any] = {
        "machine": {
            "cpu": cpu,
            "cores": os.cpu_count(),
            "kernel": ".".join(platform.release().split(".")[:2]),
            "load_before": os.getloadavg()[0],
        },
        "bytes": size,
        "synced": arguments.sync,
        "torch": torch.__version__,
        "seconds": {},
    }
    try:
        table = ways(size, folder)
        seconds: dict[str, dict[str, list[float]]] = {name: {"store": [], "load": []} for name in table}
        for number in range(arguments.rounds):
            order = list(table) if number % 2 == 0 else list(table)[::-1]
            for operation in ("store", "load"):
                for name in order:
                    way = table[name]
                    if operation == "store":
                        way["path"].unlink(missing_ok=True)
                    elif not arguments.keep_cache:
                        report["cache"] = drop_cache(way["path"])
                    started = time.perf_counter()
                    result = way[operation]()
                    if operation == "store" and arguments.sync:
                        sync(way["path"])
                    seconds[name][operation].append(time.perf_counter() - started)
                    if operation == "load" and number == 0 and not torch.equal(result, way["tensor"]):
                        raise SystemExit(f"{name} loaded other bytes than it stored")
                    del result
        report["seconds"] = seconds
        speed = {
            operation: {name: size / statistics.median(seconds[name][operation]) for name in table}
            for operation in ("load", "store")
        }
        report["bytes_per_second"] = speed
        for operation, row in speed.items():
            best = max(row[name] for name in PLAIN)
            print(operation + ":")
            for name, value in row.items():
                against = f"{value / row['torch']:6.2f} x torch, {value / best:6.2f} x best plain"
                print(f"  {name:12} {value / 1e9:7.3f} GB/s   {against}")
    finally:
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()
    if arguments.output:
        arguments.output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
