# SPDX-License-Identifier: Apache-2.0
"""Futures and batches: results, time-outs, cancelling, callbacks, order, garbage collection, the interpreter lock."""

from __future__ import annotations

import gc
import logging
import signal
import threading
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import CancelledError
from pathlib import Path

import numpy as np
import pytest
from penstock.faults import FaultEngine
from penstock.io import IO, Batch, Error, File, Future, Preallocate, Read, Sync, Truncate, UsageError, Write, wait_any
from resources import Resources

DELAY = 0.5


@pytest.fixture
def slow(path: Path) -> Iterator[tuple[IO, File]]:
    """A handle with one worker, of whose I/Os each takes DELAY seconds, and a file in it."""
    with FaultEngine("threads", ["delay"], delay=(DELAY, DELAY)) as engine, IO(engine, workers=1) as io:
        with io.open(path, "r+") as file:
            yield io, file


def test_a_future(io: IO, path: Path, contents: bytes) -> None:
    with io.open(path, "r+") as file:
        buffer = bytearray(5000)
        future = file.submit_read(buffer, 99)
        assert isinstance(future, Future)
        assert future.result() == future.result(timeout=0) == 5000
        assert future.done() and not future.running() and not future.cancelled() and not future.cancel()
        assert future.exception() is None
        assert buffer == contents[99:5099]
        assert file.submit_write([b"12", b"345"], 1).result(10) == 5
    assert path.read_bytes()[:7] == contents[:1] + b"12345" + contents[6:7]


def test_time_outs(slow: tuple[IO, File]) -> None:
    _, file = slow
    future = file.submit_read(bytearray(100))
    began = time.monotonic()
    assert not future.done() and future.running()
    assert not future.wait(0)
    with pytest.raises(TimeoutError):
        future.result(timeout=0.05)
    with pytest.raises(TimeoutError):
        future.exception(timeout=0)
    assert time.monotonic() - began >= 0.04
    assert not future.done()
    assert future.result(timeout=30) == 100
    assert time.monotonic() - began >= DELAY * 0.9


def test_several_threads_wait_for_one_future(slow: tuple[IO, File]) -> None:
    _, file = slow
    future = file.submit_read(bytearray(100))
    found: list[object] = []

    def wait(timeout: float | None) -> None:
        try:
            found.append(future.result(timeout))
        except TimeoutError:
            found.append("late")

    threads = [threading.Thread(target=wait, args=(t,)) for t in (None, 0.01, 30, 0.02, None)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(map(str, found)) == ["100", "100", "100", "late", "late"]


def test_cancel(slow: tuple[IO, File]) -> None:
    """One worker that carries out one I/O at a time: the first future is under way, the others have not begun."""
    io, file = slow
    first = file.submit_read(bytearray(4096))
    time.sleep(0.05)
    others = [file.submit_read(bytearray(4096)) for _ in range(5)]
    began = time.monotonic()
    assert all(future.cancel() for future in others)
    for future in others:
        with pytest.raises(CancelledError) as caught:
            future.result(timeout=30)
        assert isinstance(caught.value, Error) and caught.value.filename == file.path
        assert future.cancelled() and not future.cancel()
    assert first.result() == 4096 and not first.cancelled()
    assert time.monotonic() - began < 3 * DELAY


def test_a_buffer_is_pinned_while_in_flight(slow: tuple[IO, File], contents: bytes) -> None:
    _, file = slow
    buffer = bytearray(100)
    future = file.submit_read(buffer)
    with pytest.raises(BufferError):
        buffer.extend(b"more")
    future.result()
    buffer.extend(b"more")
    assert buffer == contents[:100] + b"more"


def test_futures_dropped_in_flight_do_not_free_their_buffers(path: Path) -> None:
    """The array must outlive the transfer, and not much more: nothing else happens on the handle afterwards."""
    with FaultEngine("threads", ["delay"], delay=(2.0, 2.0)) as engine, IO(engine) as io, io.open(path) as file:
        array = np.zeros(8192, "u1")
        gone = weakref.ref(array)
        future = file.submit_read(array)
        del array, future
        gc.collect()
        assert gone() is not None
        end = time.monotonic() + 20
        while gone() is not None and time.monotonic() < end:
            time.sleep(0.01)
        assert gone() is None


def test_everything_dropped_in_flight(path: Path, contents: bytes, resources: Resources) -> None:
    engine = FaultEngine("threads", ["delay"], delay=(DELAY, DELAY))
    io = IO(engine)
    target = bytearray(4096)
    batch = io.submit([Read(io.open(path), 0, target), Read(io.open(path), 0, bytearray(1))])
    del batch, io, engine
    gc.collect()
    end = time.monotonic() + 10
    while target != contents[:4096] and time.monotonic() < end:
        time.sleep(0.01)
    assert target == contents[:4096]
    resources.assert_back()


def test_a_failure_that_nobody_asks_for_is_logged(io: IO, path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with io.open(path) as file, caplog.at_level(logging.ERROR, "penstock"):
        file.submit_read(bytearray(10), 1 << 30)
        end = time.monotonic() + 10
        while not caplog.records and time.monotonic() < end:
            time.sleep(0.01)
        assert len(caplog.records) == 1 and str(path) in caplog.text
        seen = file.submit_read(bytearray(10), 1 << 30)
        assert seen.exception() is not None
        del seen
        gc.collect()
        assert len(caplog.records) == 1


def test_callbacks(slow: tuple[IO, File], caplog: pytest.LogCaptureFixture) -> None:
    _, file = slow
    future = file.submit_read(bytearray(100))
    called: list[tuple[bool, bool]] = []
    event = threading.Event()

    def callback(it: Future) -> None:
        called.append((it is future, it.done()))

    def fail(it: Future) -> None:
        raise RuntimeError("of the callback")

    future.add_done_callback(callback)
    future.add_done_callback(fail)
    future.add_done_callback(lambda _: event.set())
    assert called == []
    assert event.wait(10), "a callback is called though nobody waits for the future"
    assert called == [(True, True)]
    assert "of the callback" in caplog.text
    future.add_done_callback(callback)
    assert len(called) == 2


def test_a_notice_that_finds_the_flight_busy_is_not_lost(path: Path) -> None:
    """The pump comes while another thread is inside the library with the flight, and its wait has just timed out."""
    with FaultEngine("threads", ["delay"], delay=(0.3, 0.3)) as engine, IO(engine) as io, io.open(path) as file:
        future = file.submit_read(bytearray(100))
        called = threading.Event()
        future.add_done_callback(lambda _: called.set())
        flight = future._flight
        assert flight.lock.acquire(timeout=10)
        flight.missed = False
        end = time.monotonic() + 10
        while not flight.missed and time.monotonic() < end:  # until the pump was turned away
            time.sleep(0.01)
        assert flight.missed and not called.is_set()
        flight.unlock()
        assert called.wait(10)


def test_a_callback_may_close_the_handle(path: Path) -> None:
    engine = FaultEngine("threads", ["delay"], delay=(0.1, 0.1))
    io = IO(engine)
    closed = threading.Event()

    def close(_: object) -> None:
        io.close()
        closed.set()

    io.open(path).submit_read(bytearray(100)).add_done_callback(close)
    assert closed.wait(10) and io.closed


def test_the_interpreter_lock_is_free_while_waiting(slow: tuple[IO, File]) -> None:
    """Another thread counts on during every kind of wait: it would stand still if the lock were held."""
    io, file = slow
    count = 0
    stop = False

    def work() -> None:
        nonlocal count
        while not stop:
            count += 1
            time.sleep(0.001)

    counter = threading.Thread(target=work)
    counter.start()
    try:
        for wait in (
            lambda: file.read_into(bytearray(10)),
            lambda: file.write_from(bytes(10)),
            lambda: file.submit_read(bytearray(10)).result(),
            lambda: file.submit_read(bytearray(10)).result(60),
            lambda: io.submit([Read(file, 0, bytearray(10))]).wait(),
            lambda: io.submit([Read(file, 0, bytearray(10))]).result_of(0),
            lambda: list(io.submit([Read(file, 0, bytearray(10))]).as_completed()),
            lambda: wait_any([file.submit_read(bytearray(10))]),
        ):
            before, began = count, time.monotonic()
            wait()
            assert time.monotonic() - began >= DELAY * 0.9
            assert count - before > 5
        future = file.submit_read(bytearray(10))
        before, began = count, time.monotonic()
        file.close()
        assert time.monotonic() - began >= DELAY * 0.8 and count - before > 5 and future.done()
    finally:
        stop = True
        counter.join()


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """As at a terminal: whoever was begun in a shell's background inherits that it is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_interrupts_a_wait(path: Path) -> None:
    """Long before the transfer would have ended; the blocking call then waits for what is under way."""
    with FaultEngine("threads", ["delay"], delay=(4.0, 4.0)) as engine, IO(engine, workers=1) as io:
        with io.open(path) as file:
            future = file.submit_read(bytearray(10))
            began = time.monotonic()
            timer = threading.Timer(0.2, signal.raise_signal, (signal.SIGINT,))
            timer.start()
            with pytest.raises(KeyboardInterrupt):
                future.result()
            assert time.monotonic() - began < 3
            assert not future.done()
            timer.join()


# ---- batches ----


def test_a_batch(io: IO, path: Path, contents: bytes) -> None:
    with io.open(path, "r+") as file:
        a, b = bytearray(10), np.zeros(1000, "u1")
        batch = io.submit([Read(file, 5, a), Read(file, 70_000, b), Read(file, 1 << 30, bytearray(4), exact=False)])
        assert isinstance(batch, Batch) and len(batch) == 3
        assert batch.result() == [10, 1000, 0] == batch.outcomes()
        assert (a, b.tobytes()) == (contents[5:15], contents[70_000:71_000])
        assert batch.exception() is None and batch.done()
        assert io.submit([]).result() == []
        assert io.run([Write(file, 0, b"new"), Sync(file), Truncate(file, 3), Preallocate(file, 100)]) == [3, 0, 0, 0]
    assert path.read_bytes()[:3] == b"new"


def test_outcomes_of_a_batch_with_failures(io: IO, path: Path, contents: bytes) -> None:
    buffers = [bytearray(100) for _ in range(6)]
    with io.open(path) as file:
        end = len(contents)
        operations = [Read(file, o, b) for o, b in zip((0, end, 200, end - 1, end + 77, 300), buffers, strict=True)]
        batch = io.submit(operations)
        with pytest.raises(EOFError) as first:
            batch.result()
        outcomes = batch.outcomes()
        assert [o if isinstance(o, int) else type(o).__name__ for o in outcomes] == [
            100, "ShortReadError", 100, "ShortReadError", "ShortReadError", 100,
        ]  # fmt: skip
        assert first.value is outcomes[1] is batch.exception()
        with pytest.raises(EOFError):
            batch.result_of(3)
        assert batch.result_of(-1) == 100
        with pytest.raises(IndexError):
            batch.result_of(6)
    assert buffers[0] == contents[:100] and buffers[2] == contents[200:300] and buffers[5] == contents[300:400]


def test_as_completed_and_waiting_for_one(slow: tuple[IO, File], contents: bytes) -> None:
    io, file = slow
    buffers = [bytearray(8) for _ in range(4)]
    batch = io.submit([Read(file, i * 8, buffers[i]) for i in range(3)] + [Read(file, 1 << 30, buffers[3])])
    assert batch.result_of(0) == 8 and buffers[0] == contents[:8]
    assert not batch.done()
    with pytest.raises(TimeoutError):
        batch.result_of(2, timeout=0.01)
    seen = []
    for index, outcome in batch.as_completed():
        seen.append(index)
        if index < 3:
            assert outcome == 8 and buffers[index] == contents[index * 8 : index * 8 + 8]
        else:
            assert isinstance(outcome, EOFError)
    assert sorted(seen) == [0, 1, 2, 3] and batch.done()
    assert [index for index, _ in batch.as_completed()] == seen


def test_as_completed_times_out(slow: tuple[IO, File]) -> None:
    io, file = slow
    batch = io.submit([Read(file, 0, bytearray(8)) for _ in range(4)])
    got = []
    with pytest.raises(TimeoutError, match="of 4"):
        for index, _ in batch.as_completed(timeout=1.5 * DELAY):
            got.append(index)
    assert 1 <= len(got) < 4
    assert batch.result() == [8] * 4


def test_cancelling_a_batch_and_one_operation(slow: tuple[IO, File]) -> None:
    io, file = slow
    batch = io.submit([Read(file, 0, bytearray(8)) for _ in range(20)])
    time.sleep(0.05)
    assert batch.cancel_operation(19)
    with pytest.raises(CancelledError):
        batch.result_of(19, timeout=DELAY * 10)
    assert not batch.done()
    began = time.monotonic()
    assert batch.cancel()
    outcomes = batch.outcomes(timeout=30)
    assert time.monotonic() - began < 5 * DELAY
    assert outcomes[0] == 8 and sum(isinstance(o, CancelledError) for o in outcomes) >= 15
    with pytest.raises(CancelledError):
        batch.result()
    assert not batch.cancel() and not batch.cancel_operation(0)


def test_run_cancels_at_its_time_limit(slow: tuple[IO, File]) -> None:
    io, file = slow
    began = time.monotonic()
    buffers = [bytearray(8) for _ in range(50)]
    with pytest.raises(TimeoutError):
        io.run([Read(file, 0, b) for b in buffers], timeout=0.1)
    assert time.monotonic() - began < 10 * DELAY
    for buffer in buffers:
        buffer.append(0)  # none of them is pinned any more


def test_ordered_operations(io: IO, tmp_path: Path) -> None:
    with io.open(tmp_path / "f", "w") as file:
        for size in (10, 5000, 1 << 20):
            operations = [Write(file, 0, b"a" * size), Truncate(file, 7), Write(file, 7, b"b"), Sync(file)]
            io.run(operations)
            assert (tmp_path / "f").read_bytes() == b"a" * 7 + b"b"


def test_operations_that_are_none(io: IO, path: Path) -> None:
    first = bytearray(5)
    with io.open(path) as file:
        for wrong in ("read", 5, None, (file, 0, bytearray(4))):
            with pytest.raises((TypeError, UsageError)):
                io.submit([Read(file, 0, first), wrong])  # type: ignore[list-item]
    first.append(0)  # let go of


# ---- waiting for any ----


def test_wait_any(path: Path) -> None:
    with (
        FaultEngine("threads", ["delay"], delay=(2.0, 2.0)) as late,
        FaultEngine("threads", ["delay"], delay=(0.1, 0.1)) as early,
        IO(late) as slow_io,
        IO(early) as fast_io,
    ):
        slow_file, fast_file = slow_io.open(path), fast_io.open(path)
        slow = [slow_file.submit_read(bytearray(10)) for _ in range(3)]
        with pytest.raises(TimeoutError):
            wait_any(slow, timeout=0.05)
        fast = fast_file.submit_read(bytearray(10))
        began = time.monotonic()
        assert wait_any([*slow, fast]) is fast
        assert wait_any([*slow, fast]) is fast
        assert time.monotonic() - began < 1.5
        assert fast.result(0) == 10 and not any(future.done() for future in slow)
        assert wait_any(slow, 30) in slow
        with pytest.raises(UsageError):
            wait_any([])


def test_wait_any_takes_all_one_after_another(io: IO, path: Path, contents: bytes) -> None:
    with io.open(path) as file:
        pending = {file.submit_read(bytearray(1), i): i for i in range(200)}
        while pending:
            done = wait_any(pending, timeout=30)
            assert done.result(0) == 1
            del pending[done]
