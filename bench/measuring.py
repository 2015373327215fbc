# SPDX-License-Identifier: Apache-2.0
"""What the benchmarks share: the machine, a memory limit, an empty page cache, fio's best sequential read."""

from __future__ import annotations

import json
import os
import platform
import random
import statistics
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path

UNITS = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "K": 10**3, "M": 10**6, "G": 10**9}


def size_bytes(text: str) -> int:
    """1500M, 3G, 3Gi or plain bytes."""
    for suffix, unit in UNITS.items():
        if text.endswith(suffix):
            return int(float(text[: -len(suffix)]) * unit)
    return int(text)


def machine() -> dict:
    """What the figures belong to."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown")
    memory = int(Path("/proc/meminfo").read_text().split()[1]) * 1024
    kernel = ".".join(platform.release().split(".")[:2])
    return {"cpu": cpu, "cores": os.cpu_count(), "memory_bytes": memory, "kernel": kernel, "load_before": os.getloadavg()[0]}


def drop_page_cache() -> bool:
    """So that no run reads what another left in memory. Root only; False where it cannot be done."""
    try:
        os.sync()
        Path("/proc/sys/vm/drop_caches").write_text("1")
        return True
    except OSError:
        return False


class MemoryGroup:
    """A control group whose memory limit counts the page cache too, made and removed here; needs root.

    `drives`: "major:minor" of block devices that its members read and write at `rate` bytes per second at most.
    """

    def __init__(self, limit_bytes: int, drives: Iterable[str] = (), rate: int = 0) -> None:
        self.version, parent = self._parent()
        name = f"penstock-bench-{os.getpid()}-{time.monotonic_ns()}"
        self.folder = parent / name
        self.folder.mkdir()
        self.folders = [self.folder]
        self._limit_memory(limit_bytes)
        if rate > 0:
            self._limit_drives(name, drives, rate)

    def _limit_drives(self, name: str, drives: Iterable[str], rate: int) -> None:
        if self.version == 2:
            (self.folder.parent / "cgroup.subtree_control").write_text("+io")
            for drive in drives:
                (self.folder / "io.max").write_text(f"{drive} rbps={rate} wbps={rate}")
            return
        folder = Path("/sys/fs/cgroup/blkio") / name
        folder.mkdir()
        self.folders.append(folder)
        for drive in drives:
            for way in ("read", "write"):
                (folder / f"blkio.throttle.{way}_bps_device").write_text(f"{drive} {rate}")

    def _limit_memory(self, limit_bytes: int) -> None:
        if self.version == 2:
            (self.folder / "memory.max").write_text(str(limit_bytes))
            swap = self.folder / "memory.swap.max"
            if swap.exists():
                swap.write_text("0")
        else:
            (self.folder / "memory.limit_in_bytes").write_text(str(limit_bytes))

    @staticmethod
    def _parent() -> tuple[int, Path]:
        """Version and the top of the mount: groups of version 2 that hold processes cannot have limited children."""
        mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
        for _, where, kind, *_ in mounts:
            controllers = Path(where) / "cgroup.controllers"
            if kind == "cgroup2" and controllers.exists() and "memory" in controllers.read_text().split():
                (Path(where) / "cgroup.subtree_control").write_text("+memory")
                return 2, Path(where)
        for _, where, kind, options, *_ in mounts:
            if kind == "cgroup" and "memory" in options.split(","):
                return 1, Path(where)
        raise SystemExit("no memory control group found")

    def enter(self) -> None:
        """Moves the calling process in; for preexec_fn."""
        for folder in self.folders:
            (folder / "cgroup.procs").write_text(str(os.getpid()))

    def peak_bytes(self) -> int:
        """The most that was used, page cache included."""
        name = "memory.peak" if self.version == 2 else "memory.max_usage_in_bytes"
        return int((self.folder / name).read_text())

    def remove(self) -> None:
        for _ in range(50):
            try:
                while self.folders:
                    self.folders[-1].rmdir()
                    self.folders.pop()
                return
            except OSError:
                time.sleep(0.1)


def run_limited(command: list[str], limit_bytes: int, timeout: float | None = None, drives: Iterable[str] = (),
                rate: int = 0) -> dict:
    """Runs a command in a fresh memory group after the page cache was dropped: exit status, wall seconds, peak, output."""
    drop_page_cache()
    group = MemoryGroup(limit_bytes, drives, rate)
    try:
        started = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, preexec_fn=group.enter)
        record = {"exit": done.returncode, "wall_seconds": time.perf_counter() - started, "group_peak_bytes": group.peak_bytes()}
        record |= {"stdout": done.stdout} if done.returncode == 0 else {"stderr": done.stderr[-2000:]}
        return record
    except subprocess.TimeoutExpired:
        return {"exit": None, "stderr": f"no end within {timeout} s"}
    finally:
        group.remove()


# What fio may use. Registered buffers and files matter on drives behind a hypervisor, where mapping pages costs most;
# huge pages likewise, where some are reserved.
_REGISTERED = ["--ioengine=io_uring", "--fixedbufs=1", "--registerfiles=1"]
FIO_CHOICES = {
    "libaio 1M x 32": ["--ioengine=libaio", "--bs=1M", "--iodepth=32"],
    "libaio 4M x 16": ["--ioengine=libaio", "--bs=4M", "--iodepth=16"],
    "io_uring 1M x 32": ["--ioengine=io_uring", "--bs=1M", "--iodepth=32"],
    "io_uring 1M x 64, registered": [*_REGISTERED, "--bs=1M", "--iodepth=64"],
    "io_uring 4M x 16, registered": [*_REGISTERED, "--bs=4M", "--iodepth=16"],
    "io_uring 8M x 16, registered": [*_REGISTERED, "--bs=8M", "--iodepth=16"],
}


def has_reserved_huge_pages() -> bool:
    """Whether fio can have its buffers in them."""
    return int(Path("/proc/sys/vm/nr_hugepages").read_text()) * 2 >= 256


def fio_read(files: Iterable[Path], choice: str, seconds: int) -> float:
    """Bytes per second of sequential direct reading over the files."""
    command = ["fio", "--name=read", "--readonly", "--rw=read", "--direct=1", *FIO_CHOICES[choice]]
    command += ["--file_service_type=sequential", "--filename=" + ":".join(str(f) for f in files)]
    command += ["--time_based", f"--runtime={seconds}", "--output-format=json"]
    if has_reserved_huge_pages():
        command += ["--mem=mmaphuge", "--hugepage-size=2M"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)["jobs"][0]["read"]["bw_bytes"]


def fio_best(files: list[Path], seconds: int = 4) -> tuple[str, dict[str, float]]:
    """The fastest choice on these files and what each gave."""
    rates = {choice: fio_read(files, choice, seconds) for choice in FIO_CHOICES}
    return max(rates, key=lambda choice: rates[choice]), rates


def median_interval(values: list[float], resamples: int = 10000) -> tuple[float, float, float]:
    """The median and its 95 % interval (bootstrap of the median, a fixed seed)."""
    source = random.Random(1)
    medians = sorted(statistics.median(source.choices(values, k=len(values))) for _ in range(resamples))
    return statistics.median(values), medians[resamples // 40], medians[resamples - 1 - resamples // 40]
