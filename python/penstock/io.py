# SPDX-License-Identifier: Apache-2.0
"""Asynchronous, direct I/O on files: blocking calls, futures, asyncio, and thousands of operations at once.

    from penstock.io import IO, Read

    with IO() as io, io.open("weights.bin") as file:
        file.read_into(array, offset=4096)              # blocking
        future = file.submit_read(other, offset=0)      # a future: result(), done(), cancel(), await
        batch = io.submit([Read(file, 0, a), Read(file, 1 << 20, b)])
        batch.result(timeout=10)

A buffer is a NumPy array, a PyTorch tensor on the CPU, or anything with the buffer protocol; it must be contiguous, and
writable to be read into. A list or tuple of buffers is one vectored operation. A buffer is held in place until its
transfer is finished, whatever becomes of the objects around it. Any offset, length and address will do; those that are
multiples of `File.alignment` travel without a copy.

The interpreter lock is never held while something is waited for. All objects here may be used from any thread.
"""

from __future__ import annotations

import operator
import os
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from ctypes import byref, c_uint64, c_void_p
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, Union

from penstock import _native as native
from penstock._buffers import Memory, release_all
from penstock._flight import Core, FileState, Flight, Request
from penstock._native import lib
from penstock.errors import (
    CancelledError,
    Error,
    ForkError,
    FormatError,
    MemoryBudgetError,
    ShortReadError,
    UnsupportedError,
    UsageError,
)

if TYPE_CHECKING:
    from penstock._pool import Pool
    from penstock.faults import FaultEngine

__all__ = [
    "IO",
    "Batch",
    "CancelledError",
    "EngineInfo",
    "Error",
    "File",
    "ForkError",
    "FormatError",
    "Future",
    "Latency",
    "MemoryBudgetError",
    "Operation",
    "Pool",
    "PoolStats",
    "Preallocate",
    "Read",
    "Settings",
    "ShortReadError",
    "Stats",
    "StripeSet",
    "Sync",
    "Truncate",
    "UnsupportedError",
    "UsageError",
    "Write",
    "engines",
    "wait_any",
]


# ---- what there is to do ----


class Read(NamedTuple):
    """Reads from `offset` into the buffer. `exact`: the end of the file before its end is a ShortReadError."""

    file: File
    offset: int
    buffer: Any
    exact: bool = True


class Write(NamedTuple):
    """Writes the buffer at `offset`."""

    file: File
    offset: int
    buffer: Any


class Sync(NamedTuple):
    """Makes durable what was written before it in its batch (fdatasync). Starts when all before it is done; what comes
    after it starts when it is done."""

    file: File


class Truncate(NamedTuple):
    """Sets the length of the file; ordered like Sync."""

    file: File
    size: int


class Preallocate(NamedTuple):
    """Has the file system set space aside, as fallocate; ordered like Sync."""

    file: File
    size: int
    offset: int = 0


Operation = Union[Read, Write, Sync, Truncate, Preallocate]
_OPERATIONS = (Read, Write, Sync, Truncate, Preallocate)


def _prepare(operation: Operation, core: Core) -> Request:
    """What the library needs; the memory is pinned."""
    if not isinstance(operation, _OPERATIONS):
        raise TypeError(f"{type(operation).__name__} is no I/O operation")
    state = getattr(operation.file, "_state", None)
    if state is None or state.core is not core:
        raise UsageError("an operation on something that is no file of this I/O handle")
    if isinstance(operation, Read):
        memory = Memory(operation.buffer, writable=True)
        return Request(state, operation.offset, memory, 0, native.READ, not operation.exact)
    if isinstance(operation, Write):
        memory = Memory(operation.buffer, writable=False)
        return Request(state, operation.offset, memory, 0, native.WRITE, False)
    if isinstance(operation, Sync):
        return Request(state, 0, None, 0, native.SYNC, False)
    if isinstance(operation, Truncate):
        return Request(state, operation.size, None, 0, native.TRUNCATE, False)
    return Request(state, operation.offset, None, operation.size, native.PREALLOCATE, False)


def _prepare_all(operations: Sequence[Operation], core: Core) -> list[Request]:
    requests: list[Request] = []
    try:
        for operation in operations:
            requests.append(_prepare(operation, core))
    except BaseException:
        release_all(r.memory for r in requests if r.memory is not None)
        raise
    return requests


# ---- what is under way ----

_Self = TypeVar("_Self", bound="_Pending")


class _Pending:
    """What a submission returns."""

    __slots__ = ("__weakref__", "_asked", "_flight")

    def __init__(self, flight: Flight) -> None:
        self._flight = flight
        self._asked = False  # for what became of it

    def done(self) -> bool:
        """Whether it is finished, well or not. Never waits."""
        flight = self._flight
        if not flight.finished:
            flight.core.check()
            flight.poll()
        return flight.finished

    def running(self) -> bool:
        return not self.done()

    def wait(self, timeout: float | None = None) -> bool:
        """Waits until it is finished, at most `timeout` seconds; whether it is. Raises no error of the transfer."""
        return self._flight.wait(timeout)

    def cancel(self) -> bool:
        """Asks for what has not started to be dropped, and for what has to be cut short. False: it is finished
        already. Otherwise it will be soon, and `result` tells what became of it: it may still succeed."""
        return self._flight.cancel()

    def add_done_callback(self: _Self, callback: Callable[[_Self], object]) -> None:
        """Calls `callback(self)` when it is finished: at once if it is, else from some thread."""

        def call() -> None:
            callback(self)

        self._on_done(call)

    def _on_done(self, call: Callable[[], object]) -> None:
        if not self._flight.finished:
            self._flight.core.check()
            if self._flight.add_callback(call):
                self._flight.core.watch(self._flight, thread=True)
                return
        call()

    def _first_error(self) -> Error | None:
        self._asked = True
        errors = self._flight.errors
        return errors[min(errors)] if errors else None

    def exception(self, timeout: float | None = None) -> Error | None:
        """The first failed operation's error, or None. Waits like `result`."""
        if not self._flight.wait(timeout):
            raise TimeoutError("the transfer is not finished")
        return self._first_error()

    def _wait_or_raise(self, timeout: float | None) -> None:
        error = self.exception(timeout)
        if error is not None:
            try:
                raise error
            finally:
                del error  # no cycle through the traceback

    def __del__(self) -> None:
        flight: Flight | None = getattr(self, "_flight", None)
        if flight is None or self._asked:
            return
        if flight.finished:
            if flight.errors and flight.core.is_ours():
                flight.report()
        else:
            flight.drop()


class Future(_Pending):
    """A transfer under way. In asyncio, `await` it: cancelling the task cancels the transfer, and the task ends when
    the buffer is free again."""

    __slots__ = ()

    def result(self, timeout: float | None = None) -> int:
        """Waits for the end; the bytes transferred. Raises the transfer's error, or TimeoutError after `timeout`
        seconds (the transfer goes on then)."""
        self._wait_or_raise(timeout)
        return self._flight.results[0]

    def cancelled(self) -> bool:
        """Whether it is finished because it was cancelled."""
        return self.done() and isinstance(self._flight.errors.get(0), CancelledError)

    def __await__(self) -> Generator[Any, None, int]:
        yield from self._flight.wait_in_loop().__await__()
        return self.result()


class Batch(_Pending):
    """Operations that were submitted together. In asyncio, `await` it for the list of results."""

    __slots__ = ()

    def __len__(self) -> int:
        return self._flight.count

    def result(self, timeout: float | None = None) -> list[int]:
        """Waits for the end of all; the bytes that each transferred (0 for Sync, Truncate, Preallocate). Raises the
        error of the first that failed, or TimeoutError after `timeout` seconds."""
        self._wait_or_raise(timeout)
        return list(self._flight.results)

    def outcomes(self, timeout: float | None = None) -> list[int | Error]:
        """Waits like `result`; the bytes or the error of each operation."""
        self.exception(timeout)
        errors = self._flight.errors
        return [errors.get(i, bytes_) for i, bytes_ in enumerate(self._flight.results)]

    def result_of(self, index: int, timeout: float | None = None) -> int:
        """Waits for one operation; its bytes. Its buffer may be used again then, though it stays pinned until all are
        finished."""
        index = range(len(self))[index]
        if not self._flight.wait(timeout, index):
            raise TimeoutError(f"operation {index} is not finished")
        outcome = self._flight.outcome(index)
        if isinstance(outcome, Error):
            self._asked = True
            raise outcome
        return outcome

    def as_completed(self, timeout: float | None = None) -> Iterator[tuple[int, int | Error]]:
        """Yields (index, bytes or error) of each operation, in the order in which they finish. TimeoutError when all
        are not finished after `timeout` seconds."""
        deadline = None if timeout is None else time.monotonic() + timeout
        self._asked = True
        for position in range(len(self)):
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            if not self._flight.wait_next(position, left):
                raise TimeoutError(f"{len(self) - position} of {len(self)} operations are not finished")
            order = self._flight.order
            assert order is not None
            yield order[position], self._flight.outcome(order[position])

    def cancel_operation(self, index: int) -> bool:
        """Like `cancel`, for one operation."""
        return self._flight.cancel(range(len(self))[index])

    def __await__(self) -> Generator[Any, None, list[int]]:
        yield from self._flight.wait_in_loop().__await__()
        return self.result()


_P = TypeVar("_P", Future, Batch)


def wait_any(pending: Iterable[_P], timeout: float | None = None) -> _P:
    """Waits until one of several futures or batches (of any handles) is finished and returns it: the first in the
    sequence, where more than one are. TimeoutError after `timeout` seconds."""
    candidates = list(pending)
    if not candidates:
        raise UsageError("there is nothing to wait for")
    for one in candidates:
        if one.done():
            return one
    event = threading.Event()
    watched = []
    try:
        for one in candidates:
            one._on_done(event.set)
            watched.append(one)
        if not event.wait(timeout):
            raise TimeoutError("none of the transfers is finished")
    finally:
        for one in watched:
            one._flight.remove_callback(event.set)
    return next(one for one in candidates if one._flight.finished)


# ---- files ----

_MODES = {
    "r": native.OPEN_READ,
    "r+": native.OPEN_WRITE,
    "w": native.OPEN_WRITE | native.OPEN_CREATE | native.OPEN_TRUNCATE,
    "c": native.OPEN_WRITE | native.OPEN_CREATE,
    "x": native.OPEN_WRITE | native.OPEN_CREATE | native.OPEN_EXCLUSIVE,
}


def mode_flags(mode: str) -> int:
    flags = _MODES.get(mode.replace("b", "", 1))
    if flags is None:
        raise UsageError(f"there is no mode {mode!r} to open a file in (r, r+, w, c, x)")
    return flags


class File:
    """An open file. Closing waits for the transfers that are under way."""

    def __init__(self, state: FileState, mode: str) -> None:
        """Use IO.open."""
        self._state = state
        self.mode = mode
        with state.core.lock:
            state.core.files.add(state)

    # ---- transfers ----

    def _run(self, operation: Operation) -> int:
        core = self._state.core
        core.check()
        flight = core.submit([_prepare(operation, core)], notifies=False)
        try:
            flight.wait(None)
        except BaseException:  # Ctrl-C: the caller's buffer is not to change behind its back
            flight.cancel()
            flight.wait(None)
            raise
        if flight.errors:
            raise flight.errors[0]
        return flight.results[0]

    def read_into(self, buffer: Any, offset: int = 0, *, exact: bool = True) -> int:
        """Fills the buffer from `offset` on; the bytes read. The end of the file before that is a ShortReadError,
        unless `exact` is false: then fewer bytes are fine, and what the buffer holds behind them is undefined."""
        return self._run(Read(self, offset, buffer, exact))

    def write_from(self, buffer: Any, offset: int = 0) -> int:
        """Writes the buffer at `offset`; the bytes written: all of them. Not durable before `sync`."""
        return self._run(Write(self, offset, buffer))

    def read(self, size: int | None = None, offset: int = 0) -> bytearray:
        """Up to `size` bytes from `offset` on; all there are by default (and with -1, as files of Python's)."""
        if size is None or size < 0:
            size = max(0, self.size - offset)
        content = bytearray(size)
        got = self.read_into(content, offset, exact=False)
        del content[got:]
        return content

    def submit_read(self, buffer: Any, offset: int = 0, *, exact: bool = True) -> Future:
        """Like `read_into`, without waiting."""
        core = self._state.core
        core.check()
        return Future(core.submit([_prepare(Read(self, offset, buffer, exact), core)]))

    def submit_write(self, buffer: Any, offset: int = 0) -> Future:
        """Like `write_from`, without waiting. The buffer must not change until it is finished."""
        core = self._state.core
        core.check()
        return Future(core.submit([_prepare(Write(self, offset, buffer), core)]))

    def submit_sync(self) -> Future:
        """Like `sync`, without waiting. It covers what is finished when it is submitted."""
        core = self._state.core
        core.check()
        return Future(core.submit([_prepare(Sync(self), core)]))

    # ---- the file itself ----

    def sync(self) -> None:
        """Makes what was written durable (fdatasync). Raises the error of a delayed write."""
        self._run(Sync(self))

    def truncate(self, size: int) -> None:
        """Sets the length."""
        self._run(Truncate(self, size))

    def preallocate(self, size: int, offset: int = 0) -> None:
        """Has the file system set space aside; the length grows with it. Nothing where that is unsupported."""
        self._run(Preallocate(self, size, offset))

    @property
    def size(self) -> int:
        """The length now, in bytes."""
        out = c_uint64()
        with self._open_handle() as handle:
            native.call(lib.pst_io_file_get_bytes, handle, byref(out))
        return out.value

    @property
    def path(self) -> str:
        return self._state.path

    @property
    def direct(self) -> bool:
        """Whether transfers go past the page cache."""
        with self._open_handle() as handle:
            return bool(lib.pst_io_file_is_direct(handle))

    @property
    def alignment(self) -> int:
        """Offsets, lengths and addresses that are multiples of this travel without a copy."""
        with self._open_handle() as handle:
            return int(lib.pst_io_file_alignment(handle))

    @property
    def closed(self) -> bool:
        return self._state.closed

    def _open_handle(self) -> _Handle:
        return _Handle(self._state)

    def close(self) -> None:
        """Waits for what is under way, then closes. Raises the error of a delayed write."""
        self._state.close()

    def __enter__(self) -> File:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<penstock.io.File {self.path!r} {self.mode}{' closed' if self.closed else ''}>"


class _Handle:
    """A file's native handle for a moment, in which nobody closes it."""

    def __init__(self, state: FileState) -> None:
        self._state = state

    def __enter__(self) -> int:
        state = self._state
        state.core.check()
        state.core.lock.acquire()
        if state.closed:
            state.core.lock.release()
            raise UsageError("the file is closed", path=state.path)
        return state.handle

    def __exit__(self, *_: object) -> None:
        self._state.core.lock.release()


# ---- the handle ----


@dataclass(frozen=True)
class Settings:
    """What a handle works with, defaults filled in."""

    engine: str
    block_size: int
    queue_depth: int
    workers: int
    buffered: bool
    single_submit: bool
    overlap_events: bool


@dataclass(frozen=True)
class Stats:
    """Bytes as transferred with the kernel, edges included."""

    bytes_read: int
    bytes_written: int
    pieces: int
    bounced_bytes: int
    continued: int
    busy_ns: int


@dataclass(frozen=True)
class Latency:
    """Of I/Os, from the engine's getting them until they came back; quantiles are right to about 3 %."""

    count: int
    min_ns: int
    mean_ns: int
    p50_ns: int
    p90_ns: int
    p99_ns: int
    p999_ns: int
    max_ns: int


@dataclass(frozen=True)
class EngineInfo:
    """An I/O engine on this machine."""

    name: str
    description: str
    works: bool
    why_not: str
    automatic: bool  # "auto" may choose it


def engines() -> list[EngineInfo]:
    """All engines, best first, each tried out."""
    found: list[EngineInfo] = []
    info = native.sized(native.EngineInfo)
    while lib.pst_io_engine_at(len(found), byref(info)) == 1:
        found.append(
            EngineInfo(
                info.name.decode(),
                (info.description or b"").decode(),
                info.status == 0,
                info.why_not.decode("utf-8", "replace"),
                info.automatic,
            )
        )
    return found


def _fields(structure: Any) -> dict[str, int]:
    return {name: getattr(structure, name) for name, *_ in structure._fields_}


def make_options(
    engine: str | FaultEngine = "auto",
    *,
    block_size: int = 0,
    queue_depth: int = 0,
    workers: int = 0,
    intra_op_parallelism: int = 0,
    single_submit: bool = False,
    overlap_events: bool = True,
    buffered: bool = False,
    measure_latency: bool = False,
    path: str | os.PathLike[str] | None = None,
) -> Any:
    """The native options of the settings that `IO` takes. The engine must outlive what is made with them."""
    if workers and intra_op_parallelism and workers != intra_op_parallelism:
        raise UsageError("workers and intra_op_parallelism are the same thing; they differ")
    for name, value, bits in (
        ("block_size", block_size, 64),
        ("queue_depth", queue_depth, 32),
        ("workers", workers or intra_op_parallelism, 32),
    ):
        if not 0 <= operator.index(value) < 2**bits:
            raise UsageError(f"{name} cannot be {value}")
    return native.sized(
        native.IoOptions,
        engine=engine.encode() if isinstance(engine, str) else None,
        block_size=block_size,
        queue_depth=queue_depth,
        workers=workers or intra_op_parallelism,
        buffered=buffered,
        single_submit=single_submit,
        overlap_events=native.SWITCH_ON if overlap_events else native.SWITCH_OFF,
        measure_latency=measure_latency,
        engine_table=None if isinstance(engine, str) else engine.table,
        path=None if path is None else os.fsencode(path),
    )


class IO:
    """An I/O handle: an engine and its threads. Close it, or use it in a `with` statement.

    Zero and None are the library's defaults. `block_size`: bytes of one I/O; `queue_depth`: I/Os in flight per worker;
    `workers` (`intra_op_parallelism` is the same): threads that share every transfer; `single_submit`: one system call
    per I/O; `overlap_events`: refill the queue as completions come; `buffered`: go through the page cache even where
    direct I/O works; `path`: where the files will be, by which "auto" chooses the engine.
    """

    def __init__(
        self,
        engine: str | FaultEngine = "auto",
        *,
        block_size: int = 0,
        queue_depth: int = 0,
        workers: int = 0,
        intra_op_parallelism: int = 0,
        single_submit: bool = False,
        overlap_events: bool = True,
        buffered: bool = False,
        measure_latency: bool = False,
        path: str | os.PathLike[str] | None = None,
    ) -> None:
        self._engine = engine  # a FaultEngine must outlive the handle
        options = make_options(
            engine,
            block_size=block_size,
            queue_depth=queue_depth,
            workers=workers,
            intra_op_parallelism=intra_op_parallelism,
            single_submit=single_submit,
            overlap_events=overlap_events,
            buffered=buffered,
            measure_latency=measure_latency,
            path=path,
        )
        self._core = Core(options, keeps=engine)
        found = native.sized(native.IoOptions)
        lib.pst_io_get_settings(self._core.handle, byref(found))
        self.settings = Settings(
            (found.engine or lib.pst_io_engine_name(self._core.handle)).decode(),
            found.block_size,
            found.queue_depth,
            found.workers,
            found.buffered,
            found.single_submit,
            found.overlap_events != native.SWITCH_OFF,
        )

    # ---- files ----

    def open(self, path: str | bytes | os.PathLike[Any], mode: str = "r") -> File:
        """Opens a regular file or a block device. Modes: "r" to read; "r+" to read and write what exists; "w" to
        write anew, emptied or made; "c" to read and write, made if it is missing; "x" to make what must not exist."""
        flags = mode_flags(mode)
        name = os.fsencode(path)
        if b"\0" in name:
            raise UsageError("a path with a zero byte in it")
        out = c_void_p()
        self._core.call(lib.pst_io_file_open, name, flags, byref(out))
        return self._file(out, mode)

    def open_fd(self, fd: int, mode: str = "r", name: str | None = None) -> File:
        """Opens the file behind a descriptor, which stays the caller's and may be closed at once. `name` is for
        messages. The descriptor's own access must allow the mode, which is "r" or "r+"."""
        if mode_flags(mode) & ~native.OPEN_WRITE:
            raise UsageError(f"a descriptor is open already: mode {mode!r} is for paths (r, r+)")
        out = c_void_p()
        label = None if name is None else os.fsencode(name)
        self._core.call(lib.pst_io_file_open_fd, fd, mode_flags(mode), label, byref(out))
        return self._file(out, mode)

    def _file(self, handle: c_void_p, mode: str) -> File:
        path = os.fsdecode(lib.pst_io_file_path(handle))
        return File(FileState(self._core, handle.value or 0, path), mode)

    # ---- operations ----

    def submit(self, operations: Iterable[Operation]) -> Batch:
        """Submits operations together. Reads and writes between two ordered operations (Sync, Truncate, Preallocate)
        are carried out in any order."""
        core = self._core
        core.check()
        return Batch(core.submit(_prepare_all(list(operations), core)))

    def run(self, operations: Iterable[Operation], timeout: float | None = None) -> list[int]:
        """Submits operations and waits for them; see Batch.result. At the time limit they are cancelled."""
        batch = self.submit(operations)
        try:
            return batch.result(timeout)
        except BaseException:
            if batch.cancel():
                batch.wait()
            raise

    # ---- memory ----

    def pool(self, budget: int, **options: Any) -> Pool:
        """A pool of aligned, locked memory that this handle's engine knows; see Pool."""
        from penstock._pool import Pool

        return Pool(budget, io=self, **options)

    # ---- figures ----

    def stats(self) -> Stats:
        out = native.IoStats()
        self._core.figure(lib.pst_io_get_stats, byref(out))
        return Stats(**_fields(out))

    def latency(self, reset: bool = False) -> Latency:
        """Zeros unless the handle was made with `measure_latency`. `reset` starts anew."""
        out = native.IoLatency()
        self._core.figure(lib.pst_io_get_latency, reset, byref(out))
        return Latency(**_fields(out))

    @property
    def engine(self) -> str:
        """The engine in use."""
        return self.settings.engine

    @property
    def closed(self) -> bool:
        return self._core.closed

    def close(self) -> None:
        """Waits for what is under way, closes the files, stops the threads (those last when a pool's memory is still
        in use: with the last of it)."""
        self._core.close()

    def __enter__(self) -> IO:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = " closed" if self.closed else ""
        s = self.settings
        return f"<penstock.io.IO {s.engine} block_size={s.block_size} queue_depth={s.queue_depth}{state}>"


from penstock._pool import Pool, PoolStats  # noqa: E402  (they need what is above)
from penstock._stripe import StripeSet  # noqa: E402
