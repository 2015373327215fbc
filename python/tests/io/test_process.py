# SPDX-License-Identifier: Apache-2.0
"""The process around the handles: its end with transfers in flight, forks, any order of finalization."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import penstock
import pytest

PROLOGUE = """
import os, sys, threading, time, gc, asyncio
from penstock.faults import FaultEngine
from penstock.io import *
path = sys.argv[1]
def slow(seconds=0.5):
    return IO(FaultEngine("threads", ["delay"], delay=(seconds, seconds)), workers=1)
"""


def run(code: str, path: Path, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    """Runs a program, which must end by itself, with status 0 and nothing on stderr."""
    variables = {**os.environ, "PYTHONPATH": str(Path(penstock.__file__).parents[1])}
    # Python 3.12 and later warn of every fork of a process with threads; forks are what some of these are about.
    quiet = "ignore:This process:DeprecationWarning"
    command = [sys.executable, "-X", "dev", "-W", quiet, "-c", PROLOGUE + code, str(path)]
    result = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=timeout)
    assert (result.returncode, result.stderr) == (0, ""), result
    return result


@pytest.mark.parametrize(
    "code",
    [
        "io = slow(); f = io.open(path); futures = [f.submit_read(bytearray(100)) for _ in range(5)]",
        "io = slow(); f = io.open(path); f.submit_read(bytearray(100))",
        "io = slow(); b = io.submit([Read(io.open(path), 0, bytearray(100)) for _ in range(50)])",
        "io = IO(); f = io.open(path)",
        "io = IO(); f = io.open(path); f.submit_read(bytearray(5)).add_done_callback(print)",
        "io = slow(); f = io.open(path); f.submit_read(bytearray(5)).add_done_callback(lambda _: time.sleep(0.1))",
        "io = slow(); pool = io.pool(1 << 22); b = pool.buffer(5000); future = io.open(path).submit_read(b)",
        "io = slow(); f = io.open(path)\nasync def m():\n asyncio.get_running_loop().slow_callback_duration = 9\n"
        " await asyncio.wait_for(f.submit_read(bytearray(3)), 30)\n"
        "threading.Thread(target=lambda: asyncio.run(m()), daemon=True).start(); time.sleep(0.1)",
        "import builtins; builtins.keep = (slow(), slow())\n"
        "builtins.future = keep[0].open(path).submit_read(bytearray(9))",
        "io = slow(); f = io.open(path)\n"
        "threading.Thread(target=lambda: f.submit_read(bytearray(5)).result(), daemon=True).start(); time.sleep(0.1)",
        "io = slow(); f = io.open(path); x = [f]; x.append(x); x.append(f.submit_read(bytearray(5))); del io, f, x",
        "sys.exit_io = slow(); sys.exit_f = sys.exit_io.open(path).submit_read(bytearray(7)); sys.exit(0)",
    ],
)
def test_the_interpreter_ends_with_handles_open(path: Path, code: str) -> None:
    run(code, path)


def test_what_is_being_written_at_exit_is_written(tmp_path: Path) -> None:
    """Futures, kept or dropped, that nobody waited for."""
    name = tmp_path / "out"
    run(
        """
io = slow(0.1); f = io.open(path, 'w')
kept = [f.submit_write(bytes([65 + i]) * 1000, i * 1000) for i in range(5)]
for i in range(5, 10): f.submit_write(bytes([65 + i]) * 1000, i * 1000)
""",
        name,
    )
    assert name.read_bytes() == b"".join(bytes([65 + i]) * 1000 for i in range(10))


def test_a_dropped_file_does_not_wait(path: Path) -> None:
    """It closes when its transfers are over."""
    run(
        """
io = IO(FaultEngine("threads", ["delay"], delay=(2.0, 2.0)), workers=4); began = time.monotonic()
batch = io.submit([Read(io.open(path), 0, bytearray(100)) for _ in range(3)])
future = io.open(path).submit_read(bytearray(5))
gc.collect()
assert time.monotonic() - began < 1.5
assert batch.result() == [100] * 3 and future.result() == 5
""",
        path,
    )


def test_a_forked_child_is_told(path: Path) -> None:
    result = run(
        """
io = slow(); f = io.open(path); future = f.submit_read(bytearray(10)); pool = io.pool(1 << 22)
buffer = pool.buffer(100)
from penstock.errors import ForkError
child = os.fork()
if child == 0:
    told = 0
    uses = [lambda: f.read_into(bytearray(1)), lambda: f.submit_read(bytearray(1)), lambda: io.open(path), io.stats,
            future.result, future.done, future.cancel, lambda: io.submit([]), lambda: f.size, f.sync,
            lambda: pool.buffer(10), pool.stats, lambda: wait_any([future]), lambda: asyncio.run(wait(future)),
            lambda: future.add_done_callback(print)]
    async def wait(it): return await it
    for use in uses:
        try: use()
        except ForkError: told += 1
    f.close(); io.close(); pool.close()
    del future, f, io, buffer, pool
    gc.collect()
    with IO() as own, own.open(path) as again:   # a new handle works
        assert again.read_into(bytearray(10)) == 10
    print("told", told, len(uses), flush=True)
    sys.exit(0)   # with finalizers, and without hanging
assert os.waitpid(child, 0)[1] == 0
assert future.result() == 10
""",
        path,
    )
    words = result.stdout.split()
    assert words[0] == "told" and words[1] == words[2]


def test_multiprocessing_by_fork(path: Path) -> None:
    run(
        """
import multiprocessing
def work(n):
    with IO() as own, own.open(path) as f:
        b = bytearray(10); f.read_into(b, n); return bytes(b)
if __name__ == "__main__":
    io = IO(); f = io.open(path); f.read_into(bytearray(10))
    with multiprocessing.get_context("fork").Pool(2) as pool:
        found = pool.map(work, range(20))
    assert found == [bytes(f.read(10, n)) for n in range(20)]
""",
        path,
    )


def test_finalization_in_any_order(path: Path) -> None:
    run(
        """
import itertools
for order in itertools.permutations(range(4)):
    io = slow(0.01); f = io.open(path)
    future = f.submit_read(bytearray(10)); batch = io.submit([Read(f, 0, bytearray(5))])
    things = [io, f, future, batch]
    del io, f, future, batch
    for i in order:
        things[i] = None
    gc.collect()
""",
        path,
    )
