#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""How a stripe set scales over several drives of a known speed.

Drives are loop devices with an ext4 file system each, limited to the same rate by the block I/O controller of the
control groups (version 1: blkio.throttle.*, version 2: io.max), into a group of which each measured process is put.
For N = 1, 2, 4, 8 drives a file of N times the same size is written and read through the library; every repetition is
kept, and the medians are divided by N times that of one drive.

    sudo bench/stripe_scaling.py BUILD [--backing /dev/shm] [--rate 100M] [--bytes 256M] [--repeat 5] [--out FILE]

BUILD holds bench/stripe_io (cmake -DPST_BENCH=ON). Needs root, and drives x bytes of space in the backing folder. Nothing
stays behind, even if it is killed: devices are let go as soon as they are attached, so that the kernel detaches them
when their last user is gone, and mounts are made in a mount namespace of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from drives import Drive, own_mounts, run

V1 = Path("/sys/fs/cgroup/blkio")
V2 = Path("/sys/fs/cgroup")


def size(text: str) -> int:
    units = {"K": 1000, "M": 1000**2, "G": 1000**3, "Ki": 1024, "Mi": 1024**2, "Gi": 1024**3}
    for unit in sorted(units, key=len, reverse=True):
        if text.endswith(unit):
            return int(float(text[: -len(unit)]) * units[unit])
    return int(text)


class Group:
    """A control group whose members may move `rate` bytes per second to and from each drive, either way."""

    def __init__(self, drives: list[Drive], rate: int) -> None:
        self.version = 1 if (V1 / "blkio.throttle.read_bps_device").exists() else 2
        name = f"penstock-stripe-{os.getpid()}"
        self.path = (V1 if self.version == 1 else V2) / name
        if self.version == 2:
            (V2 / "cgroup.subtree_control").write_text("+io")
        self.path.mkdir()
        for drive in drives:
            if self.version == 1:
                for way in ("read", "write"):
                    (self.path / f"blkio.throttle.{way}_bps_device").write_text(f"{drive.number} {rate}")
            else:
                (self.path / "io.max").write_text(f"{drive.number} rbps={rate} wbps={rate}")

    def enter(self) -> None:
        (self.path / "cgroup.procs").write_text(str(os.getpid()))

    def close(self) -> None:
        self.path.rmdir()


def measure(program: Path, group: Group, op: str, drives: list[Drive], options: argparse.Namespace) -> dict:
    total = options.bytes * len(drives)
    folders = [str(drive.mount / f"set{len(drives)}") for drive in drives]
    for folder in folders:
        os.makedirs(folder, exist_ok=True)
    command = [str(program), op, str(total), str(options.stripe_bytes), options.engine, *folders]
    done = subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE, preexec_fn=group.enter)
    return json.loads(done.stdout)


def measure_all(program: Path, drives: list[Drive], options: argparse.Namespace) -> dict:
    group = Group(drives, options.rate)
    counts = [n for n in (1, 2, 4, 8, 16, 32) if n <= options.drives]
    runs: list[dict] = []
    try:
        for repetition in range(options.repeat):
            for n in counts:
                for op in ("write", "read"):
                    result = measure(program, group, op, drives[:n], options)
                    runs.append({"repetition": repetition, **result})
                    print(f"{op} over {n}: {result['bytes_per_second'] / 1e6:.1f} MB/s", file=sys.stderr)
                for drive in drives[:n]:  # room for the next
                    shutil.rmtree(drive.mount / f"set{n}")
    finally:
        group.close()
    summary = []
    for op in ("write", "read"):
        rates = {n: [r["bytes_per_second"] for r in runs if r["op"] == op and r["members"] == n] for n in counts}
        one = statistics.median(rates[1])
        for n in counts:
            median = statistics.median(rates[n])
            summary.append({"op": op, "drives": n, "median_bytes_per_second": round(median),
                            "of_linear": round(median / (n * one), 4), "of_limit": round(median / (n * options.rate), 4),
                            "worst_of_linear": round(min(rates[n]) / (n * one), 4)})
    return {"control_groups": group.version, "summary": summary, "runs": runs}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("build", type=Path)
    parser.add_argument("--backing", type=Path, default=Path("/dev/shm"), help="folder for the drives' backing files")
    parser.add_argument("--rate", type=size, default=size("100M"), help="limit of each drive, bytes per second")
    parser.add_argument("--bytes", type=size, default=size("256Mi"), help="file size per drive")
    parser.add_argument("--stripe-bytes", type=size, default=size("1Mi"))
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--drives", type=int, default=8)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    program = options.build / "bench" / "stripe_io"
    if os.geteuid() != 0 or not program.exists():
        print("needs root, and stripe_io in the build folder", file=sys.stderr)
        return 2
    own_mounts()
    drives: list[Drive] = []
    with tempfile.TemporaryDirectory(prefix="penstock-stripe-", dir=options.backing) as folder:
        try:
            for index in range(options.drives):
                drives.append(Drive(Path(folder), index, options.bytes + 64 * 1024**2))
            report = {
                "benchmark": "stripe_scaling",
                "machine": {"processors": os.cpu_count(), "kernel": platform.release(), "cpu": cpu_name()},
                "settings": {"rate_bytes_per_second": options.rate, "bytes_per_drive": options.bytes,
                             "stripe_bytes": options.stripe_bytes, "engine": options.engine,
                             "backing": file_system(options.backing), "file_system": "ext4 on a loop device each",
                             "repeat": options.repeat},
                **measure_all(program, drives, options),
            }
        finally:
            for drive in drives:
                drive.close()
    text = json.dumps(report, indent=1) + "\n"
    if options.out is not None:
        options.out.write_text(text)
    else:
        print(text, end="")
    return 0


def cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", maxsplit=1)[1].strip()
    return platform.machine()


def file_system(path: Path) -> str:
    return run("stat", "-f", "-c", "%T", str(path))


if __name__ == "__main__":
    sys.exit(main())
