# SPDX-License-Identifier: Apache-2.0
"""Saves whose process is killed, whose drive is full or fails, and the memory that they take."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import penstock
import penstock.torch
import pytest
import torch
from objects import assert_same
from penstock.faults import FaultEngine


def start(code: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, *(str(a) for a in arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run(code: str, *arguments: object) -> str:
    process = start(code, *arguments)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return out


KILLED = """
import sys, torch, penstock.torch
new = {"step": 2, "w": torch.full((16 << 20,), 2.0)}
print("ready", flush=True)
penstock.torch.save(new, sys.argv[1], io={"block_size": 65536, "queue_depth": 1})
print("saved", flush=True)
"""


def test_killed_in_the_middle_of_a_save(tmp_path: Path, rng: random.Random) -> None:
    path = tmp_path / "last.pt"
    old = {"step": 1, "w": torch.ones(1000)}
    penstock.torch.save(old, path)
    interrupted = 0
    for _ in range(4):
        process = start(KILLED, path)
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        time.sleep(rng.uniform(0, 0.05))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        loaded = torch.load(path, weights_only=True)
        if loaded["step"] == 1:
            interrupted += 1
            assert_same(old, loaded)
        else:
            assert torch.equal(loaded["w"], torch.full((16 << 20,), 2.0))
            penstock.torch.save(old, path)
    assert interrupted > 0


def test_a_drive_that_is_full(tmp_path: Path) -> None:
    """A limit on the file's size stands in for it: the older file stays, and nothing else."""
    path = tmp_path / "last.pt"
    penstock.torch.save([1], path)
    code = """
import resource, signal, sys, torch, penstock, penstock.torch
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
try:
    penstock.torch.save(torch.zeros(1 << 20), sys.argv[1])
except penstock.Error as problem:
    print(type(problem).__name__, problem.errno, problem)
"""
    out = run(code, path)
    assert "last.pt" in out and out.startswith("Error "), out
    assert penstock.torch.load(path) == [1]
    assert os.listdir(tmp_path) == ["last.pt"]


@pytest.mark.parametrize("times", [1, 1 << 40])
def test_injected_errors_are_retried_or_surface(tmp_path: Path, times: int) -> None:
    path = tmp_path / "last.pt"
    old, new = {"w": torch.ones(1000)}, {"w": torch.randn(500_000)}
    penstock.torch.save(old, path)
    for at in range(6):
        with FaultEngine("threads", ["error"], rate=0, at=at, times=times, reads=False, errors=[errno.EIO]) as engine:
            try:
                report = penstock.torch.save(new, path, io={"engine": engine})
            except penstock.Error as problem:
                assert str(tmp_path) in str(problem)
                assert_same(old, torch.load(path, weights_only=True))
            else:
                assert times == 1 or at > 0  # nothing can be written
                assert report.retried > 0 or engine.counts()["errors"] == 0
                assert_same(new, torch.load(path, weights_only=True))
                penstock.torch.save(old, path)
        assert os.listdir(tmp_path) == ["last.pt"]


def test_a_mapped_file_keeps_its_bytes(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    penstock.torch.save(torch.ones(100_000), path)
    mapped = torch.load(path, weights_only=True, mmap=True)
    penstock.torch.save(torch.zeros(10), path)
    assert torch.equal(mapped, torch.ones(100_000))
    assert torch.equal(torch.load(path, weights_only=True), torch.zeros(10))


def test_two_savers_at_once(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    code = """
import sys, torch, penstock.torch
for i in range(5):
    penstock.torch.save({"who": sys.argv[2], "w": torch.full((300_000,), float(sys.argv[2]))}, sys.argv[1])
"""
    processes = [start(code, path, number) for number in (1, 2)]
    for process in processes:
        _, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
    back = penstock.torch.load(path, verify=True)
    assert torch.equal(back["w"], torch.full((300_000,), float(back["who"])))
    assert os.listdir(tmp_path) == ["a.pt"]


MEMORY = """
import resource, sys, torch, penstock.torch
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
tensors = {str(i): torch.ones(64 << 20) for i in range(4)}  # 1 GiB
before = peak()
penstock.torch.save({"model": tensors}, sys.argv[1])
print(peak() - before)
"""


@pytest.mark.slow
def test_saving_a_gibibyte_takes_little_memory(tmp_path: Path) -> None:
    grown = int(run(MEMORY, tmp_path / "a.pt"))
    assert grown < 300_000_000
    loading = """
import resource, sys, torch, penstock.torch
torch.ones(1).sum()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
loaded = penstock.torch.load(sys.argv[1], verify=True)
grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10) - before
print(grown, sum(float(t.sum()) for t in loaded["model"].values()))
"""
    grown, total = run(loading, tmp_path / "a.pt").split()
    assert float(total) == 4 * (64 << 20)
    assert int(grown) < (1 << 30) + 300_000_000
