#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Loading and storing tensors with DeepSpeed's own aio_handle and with Penstock's, in one process.

For each tensor size and each of several settings, which both handles get alike, samples are taken in the order
A B B A, with page-locked tensors of each one's own making, from and to the same files. A sample is one blocking
transfer (load, store), or for small tensors several; or a queue of transfers of different files under one wait()
(load_queue, store_queue), which is how the swappers use it. The result is JSON with every sample, the ratio of the
medians (theirs over ours, so that above 1 is faster) for each row, and their geometric mean.

Needs torch, a C++ compiler, ninja and DeepSpeed, which compiles its operator at the first use (about two minutes).

    DS_ACCELERATOR=cpu bench/against_deepspeed.py FOLDER_ON_THE_DRIVE --max-size 1G --rounds 3 --output raw.json
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "python"))

MIB = 1 << 20
SIZES = [1, 4, 16, 64, 256, 1024, 4096]  # MiB
# block_size, queue_depth, single_submit, overlap_events, intra_op_parallelism
SETTINGS = {
    "handle's defaults": (1 * MIB, 128, False, False, 1),
    "ds_config's defaults": (1 * MIB, 8, False, True, 1),
    "tuned, 1 thread": (8 * MIB, 32, False, True, 1),
    "tuned, 2 threads": (8 * MIB, 32, False, True, 2),
    "tuned, 4 threads": (8 * MIB, 32, False, True, 4),
    "1M x 128, 4 threads": (1 * MIB, 128, False, True, 4),
}
QUEUED = 16  # transfers under one wait()


def parse_size(text: str) -> int:
    """Bytes of "64M", "4G" or a number."""
    unit = {"K": 1 << 10, "M": MIB, "G": 1 << 30}.get(text[-1].upper(), 1)
    return int(text.rstrip("kKmMgG")) * unit


def machine(folder: Path) -> dict[str, Any]:
    """What the figures belong to."""
    cpu = next(
        (line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), "unknown"
    )
    kind = ""
    for line in open("/proc/self/mounts"):
        _, where, what, *_ = line.split()
        if str(folder.resolve()).startswith(where):
            kind = what
    kernel = ".".join(platform.release().split(".")[:2])
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "kernel": kernel,
        "file_system": kind,
        "load_before": os.getloadavg()[0],
    }


class Side:
    """One of the two implementations, with a handle of given settings and a locked tensor."""

    def __init__(self, name: str, make: Callable[..., Any], settings: tuple[Any, ...], tensor: Any) -> None:
        self.name = name
        self.handle = make(*settings)
        self.tensor = tensor

    def run(self, row: dict[str, Any], paths: list[str]) -> float:
        """Seconds per transfer of one sample."""
        handle, size, operation = self.handle, row["bytes"], row["operation"]
        view = self.tensor[:size]
        parts = [self.tensor[i * size : (i + 1) * size] for i in range(QUEUED)] if "queue" in operation else []
        call = handle.sync_pread if operation == "load" else handle.sync_pwrite
        start_one = handle.async_pread if operation == "load_queue" else handle.async_pwrite
        started = time.perf_counter()
        if "queue" in operation:
            for part, path in zip(parts, paths, strict=True):
                if start_one(part, path) != 0:
                    raise SystemExit(f"{self.name}: {operation} failed")
            good, count = handle.wait() == QUEUED, QUEUED
        else:
            count = row["transfers_per_sample"]
            good = all([call(view, paths[0]) == 1 for _ in range(count)])
        seconds = time.perf_counter() - started
        if not good:
            raise SystemExit(f"{self.name}: {operation} failed")
        return seconds / count


def plan(sizes: list[int], settings: list[str], operations: list[str], at_least: int) -> list[dict[str, Any]]:
    """The rows of the table, without figures."""
    rows = []
    for size in sizes:
        for name in settings:
            for operation in operations:
                if "queue" in operation and size > 64 * MIB:
                    continue
                count = max(1, at_least // size)
                rows.append({"operation": operation, "bytes": size, "settings": name, "transfers_per_sample": count})
    return rows


def measure(row: dict[str, Any], sides: list[Side], paths: list[str], rounds: int) -> None:
    """Fills in a row."""
    for side in sides:
        side.run(row, paths)  # opens, registers, warms up
    samples: dict[str, list[float]] = {side.name: [] for side in sides}
    for number in range(rounds):
        order = [*sides, *sides[::-1]] if number % 2 == 0 else [*sides[::-1], *sides]
        for side in order:
            samples[side.name].append(side.run(row, paths))
    row["seconds"] = samples
    theirs, ours = (statistics.median(samples[name]) for name in ("deepspeed", "penstock"))
    row["bytes_per_second"] = {"deepspeed": row["bytes"] / theirs, "penstock": row["bytes"] / ours}
    row["ratio"] = theirs / ours


def geometric_mean(values: list[float]) -> float:
    return math.exp(statistics.fmean(math.log(value) for value in values)) if values else math.nan


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="on the drive; files are made there and removed")
    parser.add_argument("--max-size", default="4G", help="largest tensor")
    parser.add_argument("--sizes", help="tensor sizes, such as 1M,64M; default: 1M to --max-size")
    parser.add_argument("--settings", help=f"some of: {'; '.join(SETTINGS)} (separated by ;)")
    parser.add_argument("--operations", default="load,store,load_queue,store_queue")
    parser.add_argument("--rounds", type=int, default=3, help="A B B A rounds per row")
    parser.add_argument("--sample-size", default="64M", help="bytes to move per sample at least")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()

    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed
    import torch
    from deepspeed.ops.op_builder import AsyncIOBuilder
    from penstock import __version__, _native
    from penstock import deepspeed as ours

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    makers = {"deepspeed": AsyncIOBuilder().load().aio_handle, "penstock": ours.aio_handle}
    if arguments.sizes:
        sizes = [parse_size(text) for text in arguments.sizes.split(",")]
    else:
        sizes = [mib * MIB for mib in SIZES if mib * MIB <= parse_size(arguments.max_size)]
    names = arguments.settings.split(";") if arguments.settings else list(SETTINGS)
    rows = plan(sizes, names, arguments.operations.split(","), parse_size(arguments.sample_size))
    most = max(row["bytes"] * (QUEUED if "queue" in row["operation"] else 1) for row in rows)

    report: dict[str, Any] = {
        "machine": machine(arguments.folder),
        "versions": {"deepspeed": deepspeed.__version__, "torch": torch.__version__, "penstock": __version__},
        "settings": {name: SETTINGS[name] for name in names},
        "rounds": arguments.rounds,
        "rows": rows,
    }
    example = torch.empty(0, dtype=torch.uint8)
    owners = {name: make() for name, make in makers.items()}
    tensors = {name: owner.new_cpu_locked_tensor(most, example) for name, owner in owners.items()}
    report["engine"] = _native.lib.pst_io_engine_name(owners["penstock"]._io).decode()
    folder = arguments.folder / f"against_deepspeed.{os.getpid()}"
    folder.mkdir()
    try:
        for tensor in tensors.values():
            tensor.random_(0, 256)
        for size in sizes:
            paths = [str(folder / str(i)) for i in range(QUEUED)]
            queued = any("queue" in row["operation"] and row["bytes"] == size for row in rows)
            for path in paths if queued else paths[:1]:
                assert owners["penstock"].sync_pwrite(tensors["penstock"][:size], path) == 1
            for row in [row for row in rows if row["bytes"] == size]:
                sides = [Side(name, make, SETTINGS[row["settings"]], tensors[name]) for name, make in makers.items()]
                measure(row, sides, paths, arguments.rounds)
                speed = row["bytes_per_second"]
                print(
                    f"{row['operation']:11} {size // MIB:5} MiB  {row['settings']:20}  deepspeed "
                    f"{speed['deepspeed'] / 1e9:6.3f} GB/s  penstock {speed['penstock'] / 1e9:6.3f} GB/s  "
                    f"ratio {row['ratio']:.3f}",
                    flush=True,
                )
                del sides
            for path in paths:
                Path(path).unlink(missing_ok=True)
    finally:
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()
        for name, owner in owners.items():
            owner.free_cpu_locked_tensor(tensors[name])
    means = {}
    for label, wanted in {"load": ["load"], "store": ["store"], "load and store": ["load", "store"],
                          "queues": ["load_queue", "store_queue"]}.items():  # fmt: skip
        ratios = [row["ratio"] for row in rows if row["operation"] in wanted]
        if ratios:
            means[label] = {"geometric_mean": geometric_mean(ratios), "least": min(ratios)}
            print(
                f"{label}: geometric mean of the ratios {means[label]['geometric_mean']:.3f}, least {min(ratios):.3f}"
            )
    report["ratios"] = means
    if arguments.output:
        arguments.output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
