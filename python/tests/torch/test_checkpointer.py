# SPDX-License-Identifier: Apache-2.0
"""Checkpointer, in one process: what is saved is what is restored, whatever happens beside it or goes wrong."""

from __future__ import annotations

import json
import os
import resource
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from penstock import Error, _background
from penstock.errors import CancelledError, FileIsThereError, UsageError
from penstock.torch import Checkpointer
from processes import KILLED, run

torch = pytest.importorskip("torch")


def state(seed: int = 0, elements: int = 10_000) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(elements, generator=generator)
    return {
        "model": {"weight": weight, "tied": weight, "half": weight[:100].to(torch.bfloat16)},
        "optimizer": {"state": {0: {"step": torch.tensor(float(seed)), "m": torch.randn(33, generator=generator)}}},
        "epoch": seed,
        "name": "a run",
    }


def same(left: Any, right: Any) -> bool:
    if isinstance(left, torch.Tensor):
        return isinstance(right, torch.Tensor) and left.dtype == right.dtype and torch.equal(left, right)
    if isinstance(left, dict):
        return list(left) == list(right) and all(same(left[key], right[key]) for key in left)
    return bool(left == right)


@pytest.fixture()
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Saves begin to write only when this event is set."""
    gate = threading.Event()
    begin = _background.Image.begin

    def later(self: Any, *arguments: Any, **settings: Any) -> Any:
        gate.wait(60)
        return begin(self, *arguments, **settings)

    monkeypatch.setattr(_background.Image, "begin", later)
    yield gate
    gate.set()


@pytest.mark.parametrize("asynchronous", [True, False])
def test_save_and_restore(tmp_path: Path, asynchronous: bool) -> None:
    with Checkpointer(tmp_path / "run", asynchronous=asynchronous) as checkpoints:
        assert checkpoints.restore() is None and checkpoints.latest() is None and checkpoints.steps() == []
        for step in (100, 200):
            saving = checkpoints.save(step, state(step), metadata={"loss": "0.5"})
            assert asynchronous or saving.done()
            saving.wait(60)
            assert saving.copied() and saving.done() and saving.exception() is None and saving.report is not None
        assert checkpoints.steps() == [100, 200] and checkpoints.latest() == 200
        number, found = checkpoints.restore() or (None, None)
        assert number == 200 and same(found, state(200))
        number, found = checkpoints.restore(100) or (None, None)
        assert number == 100 and same(found, state(100))
        assert found["model"]["weight"].data_ptr() == found["model"]["tied"].data_ptr()
    with Checkpointer(tmp_path / "run") as other:
        assert other.latest() == 200
        with pytest.raises(FileNotFoundError, match="300"):
            other.restore(300)
    # Stock tools open it.
    stock = torch.load(tmp_path / "run" / "step-000200" / "checkpoint.pt", weights_only=True)
    assert same(stock, state(200))
    manifest = json.loads((tmp_path / "run" / "step-000200" / "penstock-checkpoint.json").read_text())
    assert manifest["metadata"]["loss"] == "0.5"


def test_safetensors(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(1000), "b": torch.arange(7), "empty": torch.empty(0, 3), "c": torch.tensor(1.5)}
    with Checkpointer(tmp_path, format="safetensors") as checkpoints:
        checkpoints.save(1, tensors)
        found = checkpoints.restore()
        assert (
            found is not None and found[0] == 1 and same(dict(sorted(found[1].items())), dict(sorted(tensors.items())))
        )
        with pytest.raises(UsageError, match="not a tensor"):
            checkpoints.save(2, {"a": 1})
    stock = pytest.importorskip("safetensors.torch").load_file(tmp_path / "step-000001" / "checkpoint.safetensors")
    assert same(dict(sorted(stock.items())), dict(sorted(tensors.items())))


def test_every_and_keep_last(tmp_path: Path) -> None:
    with Checkpointer(tmp_path, every=5, keep_last=2) as checkpoints:
        for step in range(1, 26):
            if checkpoints.due(step):
                checkpoints.save(step, {"n": step})
        checkpoints.wait()
        assert checkpoints.steps() == [20, 25]


def test_begin_does_not_wait_for_the_drive(tmp_path: Path, held: threading.Event) -> None:
    big = {f"layer{i}": torch.zeros(1 << 18) for i in range(100)}
    with Checkpointer(tmp_path) as checkpoints:
        checkpoints.save(1, {"x": torch.zeros(1)})
        times = []
        for step in (2,):
            started = time.perf_counter()
            saving = checkpoints.save(step, big)
            times.append(time.perf_counter() - started)
        assert not saving.copied() and not saving.done()
        # Generous, for a machine that does other things too: nothing here depends on 100 MB being moved.
        assert min(times) < 0.2
        with pytest.raises(TimeoutError):
            saving.wait_copied(0.01)
        with pytest.raises(TimeoutError):
            checkpoints.wait_copied(0.01)
        held.set()
        checkpoints.wait()
        assert checkpoints.steps() == [1, 2]


def test_values_are_those_of_the_call_and_tensors_may_change_when_copied(tmp_path: Path, held: threading.Event) -> None:
    weight = torch.nn.Parameter(torch.zeros(1000))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    with Checkpointer(tmp_path, snapshot_bytes=1 << 20) as checkpoints:
        checkpoints.guard(optimizer)
        values = {"weight": weight.detach(), "list": [1, 2]}
        checkpoints.save(1, values)
        values["list"].append(3)  # too late to be saved
        weight.grad = torch.ones(1000)
        threading.Timer(0.2, held.set).start()
        optimizer.step()  # waits
        assert held.is_set()
        assert weight[0] == -1
        found = checkpoints.restore()
        assert found is not None and found[1]["list"] == [1, 2] and not found[1]["weight"].any()


def test_saves_in_flight_are_bounded(tmp_path: Path, held: threading.Event) -> None:
    with Checkpointer(tmp_path, in_flight=2) as checkpoints:
        checkpoints.save(1, {"n": 1})
        checkpoints.save(2, {"n": 2})
        thread = threading.Thread(target=checkpoints.save, args=(3, {"n": 3}))
        thread.start()
        thread.join(0.3)
        assert thread.is_alive()
        held.set()
        thread.join(60)
        assert not thread.is_alive()
        checkpoints.wait()
        assert checkpoints.steps() == [1, 2, 3]


def broken_begin(problems: list[Exception]) -> Callable[..., Any]:
    begin = _background.Image.begin

    def sometimes(self: Any, *arguments: Any, **settings: Any) -> Any:
        if problems:
            raise problems.pop(0)
        return begin(self, *arguments, **settings)

    return sometimes


def test_an_error_surfaces_once_and_the_older_step_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Checkpointer(tmp_path) as checkpoints:
        checkpoints.save(1, state(1)).wait()
        monkeypatch.setattr(_background.Image, "begin", broken_begin([Error("no such luck", -5)]))
        failing = checkpoints.save(2, state(2))
        while not failing.done():
            time.sleep(0.01)
        with pytest.raises(Error, match="no such luck"):
            checkpoints.save(3, state(3))  # at the next call
        assert isinstance(failing.exception(), Error)
        assert checkpoints.steps() == [1] and not list(tmp_path.glob("*-000002*"))
        checkpoints.save(3, state(3))
        checkpoints.wait()
        assert checkpoints.steps() == [1, 3]

        monkeypatch.setattr(_background.Image, "begin", broken_begin([Error("again", -5)]))
        failing = checkpoints.save(4, state(4))
        with pytest.raises(Error, match="again"):
            failing.wait()  # by its handle, and then not again
        checkpoints.wait()
        checkpoints.wait_copied()
    with pytest.raises(UsageError, match="closed"):
        checkpoints.save(5, {})


def test_close_raises_what_nobody_has_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_background.Image, "begin", broken_begin([Error("unseen", -5) for _ in range(2)]))
    with pytest.raises(Error, match="unseen"):
        with Checkpointer(tmp_path) as checkpoints:
            checkpoints.save(1, {})
    # An exception of the training is the more important one.
    with pytest.raises(ZeroDivisionError):
        with Checkpointer(tmp_path) as checkpoints:
            checkpoints.save(1, {})
            raise ZeroDivisionError


def test_retry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Checkpointer(tmp_path) as checkpoints:
        monkeypatch.setattr(_background.Image, "begin", broken_begin([Error("first", -5), Error("second", -5)]))
        values = state(1)
        saving = checkpoints.save(1, values)
        with pytest.raises(Error, match="first"):
            saving.wait()
        with pytest.raises(Error, match="second"):
            saving.retry().wait()
        saving.retry().wait()
        found = checkpoints.restore()
        assert found is not None and same(found[1], values)
        with pytest.raises(UsageError, match="did not fail"):
            saving.retry()

        monkeypatch.setattr(_background.Image, "begin", broken_begin([Error("one", -5), Error("two", -5)]))
        saving = checkpoints.save(7, values)
        assert str(saving.exception()) == "one"
        saving.retry()
        with pytest.raises(Error, match="two"):
            checkpoints.wait()
        checkpoints.wait()

        monkeypatch.setattr(_background.Image, "begin", broken_begin([Error("third", -5)]))
        saving = checkpoints.save(2, values)
        assert saving.exception() is not None
        values["model"]["weight"].add_(1)
        with pytest.raises(UsageError, match="changed"):
            saving.retry()


def test_no_thread_can_be_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with Checkpointer(tmp_path) as checkpoints:
        monkeypatch.setattr(_background.Image, "begin", broken_begin([Error("first", -5)]))
        saving = checkpoints.save(1, state(1))
        assert str(saving.exception()) == "first"
        until = time.monotonic() + 20
        while checkpoints._thread is not None and time.monotonic() < until:
            time.sleep(0.001)
        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", refuse)
            with pytest.raises(RuntimeError):
                checkpoints.save(2, state(2))
            with pytest.raises(RuntimeError):
                saving.retry()
        assert saving.done()
        checkpoints.wait(20)
        saving.retry().wait()
        checkpoints.save(2, state(2)).wait()
        assert checkpoints.steps() == [1, 2]


def test_cancel(tmp_path: Path, held: threading.Event) -> None:
    with Checkpointer(tmp_path) as checkpoints:
        first = checkpoints.save(1, state(1))
        second = checkpoints.save(2, state(2))
        second.cancel()
        held.set()
        first.wait()
        assert isinstance(second.exception(), CancelledError)
        third = checkpoints.save(3, state(3))
        third.cancel()
        checkpoints.wait()  # who cancels is not told once more
        assert set(checkpoints.steps()) <= {1, 3}


def test_a_step_that_is_there(tmp_path: Path) -> None:
    with Checkpointer(tmp_path) as checkpoints:
        checkpoints.save(1, state(1)).wait()
        with pytest.raises(FileIsThereError):
            checkpoints.save(1, state(2)).wait()
        found = checkpoints.restore()
        assert found is not None and same(found[1], state(1))
        checkpoints.save(1, state(2), replace=True).wait()
        found = checkpoints.restore()
        assert found is not None and same(found[1], state(2))
        assert checkpoints.steps() == [1]


@pytest.mark.parametrize(
    "arguments",
    [{"format": "zip"}, {"keep_last": -1}, {"every": 0}, {"in_flight": 0}, {"timeout": 0}],
)
def test_arguments_that_cannot_be(tmp_path: Path, arguments: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        Checkpointer(tmp_path, **arguments)


def test_the_folder_is_the_one_from_the_beginning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    with Checkpointer("a run") as checkpoints:
        monkeypatch.chdir(tmp_path / "elsewhere")
        checkpoints.save(1, state(1)).wait()
        assert checkpoints.latest() == 1
    assert (tmp_path / "a run" / "step-000001").is_dir() and not list((tmp_path / "elsewhere").iterdir())


@pytest.mark.parametrize("name", ["2026-01-02T12:30:00.pt", "..pt", "x" * 235 + ".pt", "a\\b.pt", "\u00e4 \n.pt"])
def test_names_of_files(tmp_path: Path, name: str) -> None:
    from penstock.torch import load, save

    save({"x": torch.ones(3)}, tmp_path / name)
    assert [one.name for one in tmp_path.iterdir()] == [name]
    assert bool((load(tmp_path / name, verify=True)["x"] == 1).all())
    assert bool((torch.load(tmp_path / name, mmap=True)["x"] == 1).all())


def test_a_save_that_is_dropped_is_ended(tmp_path: Path) -> None:
    """Its tensors' memory goes with it. A child of fork has the object and not the save."""
    image = _background.Image.of({"x": torch.ones(4 << 20)}, "pt", "test")
    begun = image.begin(str(tmp_path / "x.pt"), bytes_per_second=1 << 20, ring_bytes=2 << 20)
    assert not begun.copied(0.05)
    child = os.fork()
    if child == 0:
        del begun
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    del begun
    assert not list(tmp_path.iterdir())
    image.release()


def test_what_restore_refuses_is_told_at_the_first_save(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with Checkpointer(tmp_path) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, {"x": torch.ones(3), "folder": tmp_path}).wait()
        with pytest.raises(Error, match="PosixPath"):
            checkpoints.restore()
    assert [record.message.count("PosixPath") for record in caplog.records] == [1]


def test_a_full_drive(tmp_path: Path) -> None:
    """No file may become as large as it must."""
    code = """
import resource, signal, sys
import torch
from penstock.torch import Checkpointer
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
with Checkpointer(sys.argv[1]) as checkpoints:
    checkpoints.save(1, {"x": torch.ones(1000)}).wait()
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, resource.RLIM_INFINITY))
    failing = checkpoints.save(2, {"x": torch.ones(1 << 20)})
    error = failing.exception(60)
    assert isinstance(error, OSError), error
    print(error)
    assert checkpoints.steps() == [1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    failing.retry().wait()
    step, found = checkpoints.restore()
    assert step == 2 and bool((found["x"] == 1).all())
"""
    assert resource.RLIMIT_FSIZE and signal.SIGXFSZ
    run(code, str(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["step-000001", "step-000002"]


def test_the_interpreter_s_end_waits(tmp_path: Path) -> None:
    run(
        """
import sys, torch
from penstock.torch import Checkpointer
checkpoints = Checkpointer(sys.argv[1])
checkpoints.save(1, {"x": torch.ones(1 << 20)})
checkpoints.save(2, {"x": torch.ones(1 << 20)})
""",
        str(tmp_path),
    )
    assert Checkpointer(tmp_path).steps() == [1, 2]


def test_killed_while_saving_and_resumed(tmp_path: Path) -> None:
    """Whenever it comes, a complete step is found, with its own content, and what was unfinished goes."""
    code = """
import os, signal, sys, threading, time
import torch
from penstock.torch import Checkpointer
checkpoints = Checkpointer(sys.argv[1], keep_last=2, in_flight=4)
step, found = checkpoints.restore() or (0, {"x": torch.zeros(1 << 18)})
assert bool((found["x"] == step).all()), step
threading.Timer(float(sys.argv[2]), lambda: os.kill(os.getpid(), signal.SIGKILL)).start()
while True:
    checkpoints.wait_copied()
    step += 1
    found["x"].fill_(step)
    checkpoints.save(step, {"x": found["x"]})
"""
    last = 0
    for tenths in (1, 2, 3):
        run(code, str(tmp_path), str(tenths / 10), expect=KILLED)
        checkpoints = Checkpointer(tmp_path)
        step, found = checkpoints.restore() or (0, None)
        assert step >= last
        assert found is None or bool((found["x"] == step).all())
        last = step
    with Checkpointer(tmp_path, keep_last=1) as checkpoints:
        checkpoints.save(last + 1, {"x": torch.ones(3)})
    names = {path.name for path in tmp_path.iterdir()}
    assert names <= {f"step-{last + 1:06d}", "latest"}, names
