# SPDX-License-Identifier: Apache-2.0
"""Checkpointer in several processes: replicas and states of their own, ranks that differ, fail, or die."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from processes import KILLED, START, finish, run, run_ranks, start_ranks

torch = pytest.importorskip("torch")

CHECKPOINTER = """
from penstock import Error
from penstock.torch import Checkpointer
def tensors(step, seed=0):
    generator = torch.Generator().manual_seed(1000 * seed + step)
    return {f"layer{i}": torch.randn(30_000 + i, generator=generator) for i in range(6)}
def same(left, right):
    return sorted(left) == sorted(right) and all(torch.equal(left[key], right[key]) for key in left)
"""


class StoreOfALateFailure:
    """Between two looks of rank 1, rank 0 sends its message, judges what it got, and fails."""

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}

    def set(self, key: str, value: bytes) -> None:
        self.values[key] = bytes(value)

    def get(self, key: str) -> bytes:
        return self.values[key]

    def check(self, keys: list[str]) -> bool:
        there = all(key in self.values for key in keys)
        for key in keys:
            if key.endswith("/0/0") and not there:
                self.set(key, b"=zero")
                self.set(key.removesuffix("/0/0") + "/failed", b"rank 0: what it judged")
        return there


def test_a_message_that_is_complete_is_judged_by_each(tmp_path: Path) -> None:
    from penstock._ranks import RanksError, World

    talk = World(1, 2, StoreOfALateFailure(), timeout=5).talk("step")
    assert talk.all_gather(b"one") == [b"zero", b"one"]
    with pytest.raises(RanksError, match="what it judged"):
        talk.all_gather(b"more")


def test_replicas_are_shared_out_and_load_anywhere(tmp_path: Path) -> None:
    code = (
        CHECKPOINTER
        + """
for format in ("pt", "safetensors"):
    with Checkpointer(os.path.join(folder, format), format=format, timeout=60, keep_last=2) as checkpoints:
        assert checkpoints.restore() is None
        for step in (1, 2, 3):
            saving = checkpoints.save(step, tensors(step))
            dist.barrier()  # training's own collectives go on beside it
            dist.all_reduce(torch.ones(1))
        checkpoints.wait()
        assert checkpoints.steps() == [2, 3]
        report = saving.report
        assert report.written_bytes < 0.75 * report.file_bytes, report
        number, found = checkpoints.restore()
        assert number == 3 and same(found, tensors(3))
        assert same(checkpoints.restore(2)[1], tensors(2))
dist.destroy_process_group()
"""
    )
    run_ranks(2, code, str(tmp_path))
    assert not list(tmp_path.glob("*/step-000001*"))
    code = (
        CHECKPOINTER
        + """
for format in ("pt", "safetensors"):
    with Checkpointer(os.path.join(folder, format), format=format) as checkpoints:
        number, found = checkpoints.restore()
        assert number == 3 and same(found, tensors(3))
        if count == 1:
            checkpoints.save(4, found)
"""
    )
    run_ranks(3, code, str(tmp_path))
    run_ranks(1, code, str(tmp_path))


def test_tensors_in_another_order(tmp_path: Path) -> None:
    """Storages are numbered by their order: those of ranks that have another one must not be mixed up."""
    code = (
        CHECKPOINTER
        + """
zeros, ones = torch.zeros(4000), torch.ones(4000)
class Holder:
    pass
holder = Holder()
holder.tensors = [zeros, ones] if rank == 0 else [ones, zeros]
with Checkpointer(folder, timeout=60) as checkpoints:
    for other, word in (
        ({"b": ones, "a": zeros}, "order"),
        ({"a": zeros.reshape(40, 100).t(), "b": ones}, "order"),
        ({"when": rank, "set": {zeros, ones}}, "inside"),
        ({"when": rank, "holder": holder}, "inside"),
    ):
        mine = {"a": zeros, "b": ones} if rank == 0 and word == "order" else other
        error = checkpoints.save(1, mine).exception(60)
        assert error is not None and word in str(error), error
    assert checkpoints.steps() == []
    checkpoints.save(1, {"when": rank, "a": zeros, "b": [ones, zeros[1:]], "c": torch.tensor(1)}).wait()
    number, found = checkpoints.restore()
    assert number == 1 and found["when"] == 0 and same({"a": found["a"], "b": found["b"][0]}, {"a": zeros, "b": ones})
"""
    )
    run_ranks(2, code, str(tmp_path))


def test_states_of_their_own(tmp_path: Path) -> None:
    code = (
        CHECKPOINTER
        + """
with Checkpointer(folder, replicated=False, timeout=60) as checkpoints:
    checkpoints.save(1, {"rank": rank, **tensors(1, seed=rank)})
    number, found = checkpoints.restore()
    assert number == 1 and found.pop("rank") == rank and same(found, tensors(1, seed=rank))
"""
    )
    run_ranks(2, code, str(tmp_path))
    assert {path.name for path in (tmp_path / "step-000001").iterdir()} == {
        "penstock-checkpoint.json",
        "rank-00000.pt",
        "rank-00001.pt",
    }
    code = (
        CHECKPOINTER
        + """
checkpoints = Checkpointer(sys.argv[1])
try:
    checkpoints.restore()
    raise SystemExit("it must say whose")
except ValueError as problem:
    assert "2 ranks" in str(problem), problem
assert checkpoints.restore(rank=1)[1]["rank"] == 1
"""
    )
    run("import os, sys, torch" + code, str(tmp_path))


def test_values_that_differ_are_the_first_rank_s(tmp_path: Path) -> None:
    code = (
        CHECKPOINTER
        + """
with Checkpointer(folder, timeout=60) as checkpoints:
    checkpoints.save(1, {"rank": rank, "long": "x" * (1 + 5000 * rank), **tensors(1)})
    number, found = checkpoints.restore()
    assert found.pop("rank") == 0 and found.pop("long") == "x" and same(found, tensors(1))
"""
    )
    run_ranks(2, code, str(tmp_path))


def test_ranks_that_do_not_save_the_same(tmp_path: Path) -> None:
    code = (
        CHECKPOINTER
        + """
with Checkpointer(folder, timeout=60) as checkpoints:
    checkpoints.save(1, tensors(1)).wait()
    error = checkpoints.save(2, {"x": torch.ones(10 + rank)}).exception()
    assert isinstance(error, ValueError) and "replicas" in str(error), error
    error = checkpoints.save(3, tensors(3), metadata={"rank": str(rank)}).exception()
    assert isinstance(error, ValueError) and "same way" in str(error), error
    assert checkpoints.steps() == [1]
    checkpoints.save(4, tensors(4))
    assert checkpoints.restore()[0] == 4
"""
    )
    run_ranks(2, code, str(tmp_path))


@pytest.mark.parametrize("replicated", [True, False])
def test_a_rank_that_fails_tells_the_others(tmp_path: Path, replicated: bool) -> None:
    """Long before the time-out."""
    code = (
        CHECKPOINTER
        + f"""
from penstock import _background
with Checkpointer(folder, replicated={replicated}, timeout=100) as checkpoints:
    checkpoints.save(1, tensors(1)).wait()
    begin = _background.Image.begin
    if rank == 1:
        def refuse(*arguments, **settings):
            raise Error("its drive is full", -28)
        _background.Image.begin = refuse
    started = time.monotonic()
    failing = checkpoints.save(2, tensors(2))
    error = failing.exception()
    assert isinstance(error, Error) and "its drive is full" in str(error), error
    assert ("rank 1" in str(error)) == (rank == 0), error
    assert time.monotonic() - started < 50
    assert checkpoints.steps() == [1]
    _background.Image.begin = begin
    dist.barrier()
    failing.retry().wait()
    assert checkpoints.steps() == [1, 2]
"""
    )
    run_ranks(2, code, str(tmp_path))


@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_that_is_killed(tmp_path: Path, victim: int) -> None:
    """The others get an error within the time-out, and the older step stays. The first rank has the store."""
    code = (
        CHECKPOINTER
        + """
checkpoints = Checkpointer(folder, timeout=4)
checkpoints.save(1, tensors(1)).wait()
dist.barrier()
if rank == int(sys.argv[2]):
    from penstock import _background
    def stop(*arguments, **settings):
        os.kill(os.getpid(), 9)
    _background.Image.begin = stop
started = time.monotonic()
error = checkpoints.save(2, tensors(2)).exception()
assert isinstance(error, OSError), error
assert time.monotonic() - started < 30
print("SAID", error)
assert checkpoints.steps() == [1]
sys.stdout.flush()
if rank == 2:
    open(folder + ".said", "w").close()
while rank == 0 and not os.path.exists(folder + ".said") and time.monotonic() - started < 30:
    time.sleep(0.05)  # with this process goes the store, through which rank 2 is told
os._exit(0)
"""
    )
    ended = finish(start_ranks(3, START + code, str(tmp_path), str(victim)))
    for rank, (status, said) in enumerate(ended):
        if rank == victim:
            assert status == KILLED, said
        else:
            assert status == 0 and "SAID" in said, said
            assert victim == 0 or f"rank {victim} did not come" in said, said
    # All start again.
    code = (
        CHECKPOINTER
        + """
with Checkpointer(folder, timeout=60, keep_last=1) as checkpoints:
    number, found = checkpoints.restore()
    assert number == 1 and same(found, tensors(1))
    checkpoints.save(2, tensors(2))
"""
    )
    run_ranks(2, code, str(tmp_path))
    assert {path.name for path in tmp_path.iterdir()} <= {"step-000002", "latest"}


def test_ranks_killed_at_any_time(tmp_path: Path) -> None:
    code = (
        CHECKPOINTER
        + """
checkpoints = Checkpointer(folder, timeout=30, keep_last=2)
step, found = checkpoints.restore() or (0, None)
assert found is None or same(found, tensors(step))
print("READY", flush=True)
while True:
    step += 1
    checkpoints.wait_copied()
    checkpoints.save(step, tensors(step))
"""
    )
    for tenths in (1, 4):
        ranks = start_ranks(2, START + code, str(tmp_path))
        assert ranks[0].stdout is not None
        assert ranks[0].stdout.readline().strip() == "READY"
        time.sleep(tenths / 10)
        for rank in ranks:
            os.kill(rank.pid, signal.SIGKILL)
        finish(ranks)
    check = (
        CHECKPOINTER
        + """
with Checkpointer(sys.argv[1]) as checkpoints:
    found = checkpoints.restore()
    assert found is None or same(found[1], tensors(found[0]))
"""
    )
    run("import sys, torch" + check, str(tmp_path))
