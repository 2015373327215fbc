# SPDX-License-Identifier: Apache-2.0
"""The life of submitted operations: from the library's batch to whoever waits for it.

A `Flight` is one submission under way, a `Core` is a native handle and all that hangs on it.

Invariants:
 - a flight is held by `_in_flight` until the library is done with it, and holds its files and pinned buffers: nothing
   that the kernel may still touch can be collected, whoever drops what;
 - one thread at a time is inside the library with a flight's batch (`Flight.lock`), save for cancelling;
 - `finished` is set under `Core.lock`, before the batch is used again. Locks are taken flight first, core second.

Notice of completion: each batch adds 1 to the handle's eventfd when it is done. While anything is watched (awaited, has
a callback, or was dropped), a pump reads it and looks through what is watched: a reader in each event loop that awaits
something, or a thread. Waiting in a plain thread does not use a pump: it waits in the library.
"""

from __future__ import annotations

import _thread
import asyncio
import atexit
import contextlib
import ctypes
import logging
import os
import select
import struct
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from ctypes import byref, c_uint32, c_void_p
from typing import Any, NamedTuple

from penstock import _native as native
from penstock._buffers import Memory, release_all
from penstock._native import lib
from penstock.errors import E_USAGE, CancelledError, Error, ForkError, UsageError, make

logger = logging.getLogger("penstock")

# A wait in the library cannot be interrupted, and signals (Ctrl-C) are handled between two: this long, at most.
_SLICE_S = 0.25
_KEPT_SLOTS = 64  # idle batches of one operation that a handle keeps for the next submission
_KEPT_BULK_SLOTS = 4

_OP = struct.Struct("=QQQQi?3xI4xQq")  # native.Op, in one call for all fields
_OP_WORDS = _OP.size // 8


class Request(NamedTuple):
    """One operation, ready to be written down for the library."""

    file: FileState
    offset: int
    memory: Memory | None
    nbytes: int
    kind: int
    may_be_short: bool


class FileState:
    """A native file and how many flights use it. `Core.lock` guards it. Its File and its flights hold it: it closes
    itself when all of them are gone."""

    def __init__(self, core: Core, handle: int, path: str) -> None:
        self.core = core
        self.handle = handle
        self.path = path
        self.uses = 0
        self.closed = False

    def close(self) -> None:
        """Waits for what is in flight, then closes. Raises what closing reports."""
        core = self.core
        with core.lock if core.is_ours() else _NO_LOCK:
            if self.closed:
                return
            self.closed = True
            core.files.discard(self)
        if not core.is_ours():
            return
        core.drain(lambda flight: self in flight.files)
        native.call(lib.pst_io_file_close, self.handle)

    def __del__(self) -> None:
        try:
            self.close()
        except Error as error:  # a delayed write's error is not lost
            logger.error("closing a file: %s", error)


class _NoLock:
    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


_NO_LOCK = _NoLock()


class _Slot:
    """A native batch and memory for its operations; used by one flight at a time."""

    __slots__ = ("address", "batch", "capacity", "memory", "notifies", "record", "words")

    def __init__(self, core: Core, capacity: int, notifies: bool) -> None:
        batch = c_void_p()
        native.call(lib.pst_io_batch_create, core.handle, capacity, byref(batch))
        self.batch = batch.value
        self.capacity = capacity
        self.notifies = notifies
        self.memory = ctypes.create_string_buffer(max(1, capacity) * _OP.size)
        self.address = ctypes.addressof(self.memory)
        self.words = memoryview(self.memory).cast("B").cast("q")
        self.record = native.ErrorRecord()
        if notifies:
            try:
                native.call(lib.pst_io_batch_notify, self.batch, core.event_fd)
            except BaseException:
                self.destroy()
                raise

    def destroy(self) -> None:
        lib.pst_io_batch_destroy(self.batch)


class Flight:
    """Operations submitted together."""

    __slots__ = (
        "__weakref__",
        "callbacks",
        "core",
        "count",
        "dropped",
        "errors",
        "files",
        "finished",
        "lock",
        "memories",
        "missed",
        "order",
        "reads_only",
        "results",
        "slot",
        "watched",
    )

    def __init__(self, core: Core, files: Sequence[FileState], memories: list[Memory], count: int) -> None:
        self.core = core
        self.files = files
        self.memories = memories
        self.count = count
        self.slot: _Slot | None = None
        self.lock = threading.Lock()
        self.finished = False
        self.results: list[int] = []
        self.errors: dict[int, Error] = {}
        self.order: list[int] | None = None  # of completion, while somebody asks for it
        self.callbacks: list[Callable[[], object]] = []
        self.watched = False
        self.missed = False
        self.dropped = False
        self.reads_only = False

    # ---- the lock is held ----

    def _error_of(self, op: int, result: int) -> Error:
        assert self.slot is not None
        record = self.slot.record
        if lib.pst_io_op_error(self.slot.batch, op, byref(record)) < 0:
            return native.exception(record)
        return make(result, "failed")

    def _next_done(self, timeout_ns: int) -> bool:
        """Adds the next finished operation to the order. False: none in time, or all are there."""
        assert self.slot is not None and self.order is not None
        op = c_uint32()
        status = lib.pst_io_next_done(self.slot.batch, timeout_ns, byref(op), byref(self.slot.record))
        if status == 0:
            self.order.append(op.value)
        elif status < 0 and status != E_USAGE:
            raise native.exception(self.slot.record, status)
        return bool(status == 0)

    def _finish(self, status: int) -> list[Callable[[], object]]:
        """The library is done. Takes over the results and gives everything back; returns what is to be called."""
        slot, core = self.slot, self.core
        assert slot is not None
        self.results = slot.words[_OP_WORDS - 1 : _OP_WORDS * self.count : _OP_WORDS].tolist()
        if status < 0 and self.count == 1:
            self.errors[0] = native.exception(slot.record, status)
        elif status < 0:
            self.errors = {i: self._error_of(i, result) for i, result in enumerate(self.results) if result < 0}
        while self.order is not None and self._next_done(0):
            pass
        with core.lock:
            self.finished = True
            callbacks, self.callbacks = self.callbacks, []
            self.slot = None
            core.forget(self)
            core.keep(slot)
        release_all(self.memories)
        self.memories = []
        return callbacks

    def unlock(self) -> None:
        """Gives the lock back. A pump that came meanwhile was turned away, and would not come again for this flight."""
        self.lock.release()
        if self.missed and not self.finished:
            self.core.nudge()

    # ---- any thread ----

    def _inside(self, function: Callable[..., int], timeout_ns: int) -> bool:
        """One visit to the library, with the lock, which it gives back. `function` returns 1 when the flight is not
        done. True: this visit found that it is."""
        callbacks: list[Callable[[], object]] | None = None
        try:
            self.missed = False
            slot = self.slot
            if slot is not None and function(slot.batch, timeout_ns, byref(slot.record)) != 1:
                callbacks = self._finish(lib.pst_io_wait(slot.batch, 0, byref(slot.record)))
        finally:
            self.unlock()
        if callbacks is None:
            return False
        for callback in callbacks:
            _run(callback)
        if self.dropped:
            self.report()
        return True

    def poll(self) -> bool:
        """Whether this call found the flight done (not: whether it is done). Never waits."""
        if self.finished:
            return False
        self.missed = True  # before the try: whoever holds the lock looks at it after giving it back
        if not self.lock.acquire(blocking=False):
            return False
        return self._inside(lib.pst_io_wait, 0)

    def wait(self, timeout: float | None, op: int | None = None) -> bool:
        """Waits for all operations, or for one. False at the time limit."""
        if op is None:
            return self._wait(timeout, lambda: self.finished, lib.pst_io_wait)
        arrived = False

        def wait_op(batch: int, timeout_ns: int, record: Any) -> int:
            nonlocal arrived
            status: int = lib.pst_io_wait_op(batch, op, timeout_ns, record)
            arrived = status != 1
            return 0 if arrived and lib.pst_io_wait(batch, 0, record) != 1 else 1

        return self._wait(timeout, lambda: self.finished or arrived, wait_op)

    def wait_next(self, position: int, timeout: float | None) -> bool:
        """Waits until the order of completion is known up to a position. False at the time limit."""
        if self.order is None:
            with self.core.lock:
                if self.order is None:
                    self.order = list(range(self.count)) if self.finished else []

        def wait_next(batch: int, timeout_ns: int, record: Any) -> int:
            self._next_done(timeout_ns)
            return int(lib.pst_io_wait(batch, 0, record))

        return self._wait(timeout, lambda: len(self.order or ()) > position, wait_next)

    def _wait(self, timeout: float | None, ready: Callable[[], bool], function: Callable[..., int]) -> bool:
        """Visits the library with `function` (1: the flight is not done) until it is ready."""
        if ready():
            return True
        self.core.check()
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            if not self.lock.acquire(timeout=-1 if left is None else min(left, threading.TIMEOUT_MAX)):
                return ready()
            if ready():
                self.unlock()
                return True
            self._inside(function, native.timeout_ns(_SLICE_S if left is None else min(left, _SLICE_S)))
            if ready():
                return True
            if deadline is not None and time.monotonic() >= deadline:
                return False

    def outcome(self, op: int) -> int | Error:
        """What became of a finished operation."""
        if not self.finished:
            self.lock.acquire()
            try:
                if self.slot is not None:
                    result: int = self.slot.words[_OP_WORDS * (op + 1) - 1]
                    return self._error_of(op, result) if result < 0 else result
            finally:
                self.unlock()
        error = self.errors.get(op)
        return self.results[op] if error is None else error

    def cancel(self, op: int | None = None) -> bool:
        """Asks for it to be dropped. False when it is finished."""
        self.core.check()
        with self.core.lock:
            if self.finished or self.slot is None:
                return False
            if op is None:
                lib.pst_io_cancel(self.slot.batch)
            else:
                lib.pst_io_cancel_op(self.slot.batch, op)
        return True

    def add_callback(self, callback: Callable[[], object]) -> bool:
        """Calls it once when the flight is finished, from any thread. False when it is finished already. The caller
        then sees to a pump."""
        with self.core.lock:
            if self.finished:
                return False
            self.callbacks.append(callback)
        return True

    def remove_callback(self, callback: Callable[[], object]) -> None:
        with self.core.lock:
            if callback in self.callbacks:
                self.callbacks.remove(callback)

    def drop(self) -> None:
        """Nobody will ask for the results. Called by finalizers."""
        self.dropped = True
        if not self.finished and self.core.is_ours():
            self.core.watch(self, thread=True)

    def report(self) -> None:
        """A failure that nobody will ever see otherwise."""
        for error in self.errors.values():
            if not isinstance(error, CancelledError):
                logger.error("a transfer whose result nobody asked for failed: %s", error)
                break

    async def wait_in_loop(self) -> None:
        """Waits in the running event loop. Cancelling the task cancels the flight, and waits for its end all the
        same: the buffers are free again when this returns."""
        if self.finished:
            return
        self.core.check()
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()
        # The loop's pump holds it, not the flight: a loop that is given up with its tasks can be collected.
        weakly = weakref.ref(done)

        def callback() -> None:
            waiting = weakly()
            if waiting is None:
                return
            if asyncio._get_running_loop() is waiting.get_loop():
                _resolve(waiting)
                return
            try:
                waiting.get_loop().call_soon_threadsafe(_resolve, waiting)
            except RuntimeError:  # the loop is closed: nobody waits there any more
                pass

        if not self.add_callback(callback):
            return
        cancelled: asyncio.CancelledError | None = None
        with self.core.pump_in(loop).awaiting(done):
            self.core.watch(self, thread=False)
            while not done.done():
                try:
                    await asyncio.shield(done)
                except asyncio.CancelledError as asked:
                    cancelled = asked
                    self.cancel()
                except GeneratorExit:  # the loop is torn down without its tasks' end
                    self.cancel()
                    self.core.watch(self, thread=True)
                    raise
        if cancelled is not None:
            raise cancelled


def _resolve(waiting: asyncio.Future[None]) -> None:
    if not waiting.done():
        waiting.set_result(None)


def _run(callback: Callable[[], object]) -> None:
    try:
        callback()
    except Exception:
        logger.exception("a callback of a transfer failed")


class _LoopPump:
    """The reader of a handle's eventfd in one event loop, there while something is awaited. It reads a duplicate of
    the descriptor, so that only the loop's own thread opens and closes what the loop watches. The loop holds it."""

    __slots__ = ("__weakref__", "_core", "_fd", "_loop", "_waiting")

    def __init__(self, core: Core, loop: asyncio.AbstractEventLoop) -> None:
        self._core = core
        self._loop = loop
        self._fd = -1
        self._waiting: set[asyncio.Future[None]] = set()

    def _read(self) -> None:
        self._core.sweep(self._fd)

    @contextlib.contextmanager
    def awaiting(self, done: asyncio.Future[None]) -> Iterator[None]:
        if not self._waiting:
            self._fd = os.dup(self._core.event_fd)
            self._loop.add_reader(self._fd, self._read)
        self._waiting.add(done)
        try:
            yield
        finally:
            self._waiting.discard(done)
            if not self._waiting:
                if not self._loop.is_closed():
                    self._loop.remove_reader(self._fd)
                self._close()

    def _close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        self._close()


_Loops = weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, weakref.ref[_LoopPump]]


class Core:
    """A native handle with its batches, files, and pumps."""

    def __init__(self, options: native.IoOptions, keeps: object = None) -> None:
        self.pid = os.getpid()
        self.keeps = keeps  # what must outlive the native handle
        self.lock = threading.RLock()  # finalizers take it, wherever they happen to run
        self.closed = False
        self.handle = 0
        self.files: weakref.WeakSet[FileState] = weakref.WeakSet()
        self.watched: dict[Flight, None] = {}
        self.pools = 0  # native pools that need the handle
        self._kept: dict[tuple[int, bool], list[_Slot]] = {}
        self._loops: _Loops = weakref.WeakKeyDictionary()
        self._users = 0  # calls under way that need the native handle open
        self._idle = threading.Condition(self.lock)
        self._pumping = False
        self._pump_end: _thread.LockType | None = None
        self._pump_thread = 0
        self._native_closed = False
        out = c_void_p()
        native.call(lib.pst_io_open, byref(options), byref(out))
        self.handle = out.value or 0
        try:
            self.event_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        except BaseException:
            lib.pst_io_close(out)
            raise
        _cores.add(self)

    # ---- whether it can be used ----

    def is_ours(self) -> bool:
        return self.pid == os.getpid()

    def check(self) -> None:
        """Raises in a forked child, where the workers do not exist and waiting would never end."""
        if self.pid != os.getpid():
            raise ForkError("this I/O handle belongs to the parent process; a forked child opens its own")

    def check_open(self) -> None:
        self.check()
        if self.closed:
            raise UsageError("the I/O handle is closed")

    def call(self, function: Callable[..., int], *arguments: Any) -> None:
        """Calls a function of the native handle that returns a status. Nobody closes the handle meanwhile."""
        with self.using():
            native.call(function, self.handle, *arguments)

    def figure(self, function: Callable[..., None], *arguments: Any) -> None:
        """The same for a function that returns nothing."""
        with self.using():
            function(self.handle, *arguments)

    @contextlib.contextmanager
    def using(self) -> Iterator[None]:
        self.check()
        with self.lock:
            self.check_open()
            self._users += 1
        try:
            yield
        finally:
            with self.lock:
                self._users -= 1
                self._idle.notify_all()

    # ---- submission ----

    def _take(self, count: int, notifies: bool) -> _Slot:
        capacity = 1 if count <= 1 else 1 << (count - 1).bit_length()
        with self.lock:
            kept = self._kept.get((capacity, notifies))
            if kept:
                return kept.pop()
        return _Slot(self, capacity, notifies)

    def keep(self, slot: _Slot) -> None:
        """Puts a batch that is done aside for the next submission."""
        kept = self._kept.setdefault((slot.capacity, slot.notifies), [])
        if self.closed or len(kept) >= (_KEPT_SLOTS if slot.capacity == 1 else _KEPT_BULK_SLOTS):
            slot.destroy()
        else:
            kept.append(slot)

    def forget(self, flight: Flight) -> None:
        """The flight is over. The lock is held."""
        for file in flight.files:
            file.uses -= 1
        flight.files = ()
        self.watched.pop(flight, None)
        _in_flight.discard(flight)

    def submit(self, requests: Sequence[Request], notifies: bool = True) -> Flight:
        """Submits operations. Owns their memory from here on: it is released when they are done, or here on failure."""
        memories = [r.memory for r in requests if r.memory is not None]
        files = tuple({r.file for r in requests}) if len(requests) > 1 else tuple(r.file for r in requests)
        flight = Flight(self, files, memories, len(requests))
        flight.reads_only = all(r.kind == native.READ for r in requests)
        slot: _Slot | None = None
        try:
            self.check_open()
            slot = self._take(len(requests), notifies)
            _write_down(slot, requests)
        except BaseException:
            release_all(memories)
            if slot is not None:
                with self.lock:
                    self.keep(slot)
            raise
        flight.lock.acquire()
        try:
            self._start(flight, slot)
        finally:
            flight.unlock()
        return flight

    def _start(self, flight: Flight, slot: _Slot) -> None:
        """The flight's lock is held: who closes a file waits for it."""
        entered = False
        try:
            with self.lock:
                self.check_open()
                for file in flight.files:
                    if file.closed:
                        raise UsageError("the file is closed", path=file.path)
                for file in flight.files:
                    file.uses += 1
                _in_flight.add(flight)
                entered = True
            flight.slot = slot
            status = lib.pst_io_submit(slot.batch, slot.address, flight.count, byref(slot.record))
            if status < 0:
                raise native.exception(slot.record, status)
        except BaseException:
            with self.lock:
                flight.finished = True
                flight.slot = None
                if entered:
                    self.forget(flight)
                self.keep(slot)
            release_all(flight.memories)
            raise

    # ---- completion ----

    def nudge(self) -> None:
        """Makes a pump look again."""
        with self.lock:
            if not self._native_closed:
                os.eventfd_write(self.event_fd, 1)

    def sweep(self, event_fd: int) -> None:
        """A pump's turn: finds as many done flights as there were notices. A notice may have been for a flight that
        is not watched, or that somebody else found: then all are looked at."""
        try:
            notices = os.eventfd_read(event_fd)
        except BlockingIOError:
            return
        with self.lock:
            watched = list(self.watched)
        for flight in watched:
            if flight.poll():
                notices -= 1
                if notices == 0:
                    break

    def watch(self, flight: Flight, thread: bool) -> None:
        """Has the pumps look for this flight."""
        with self.lock:
            if flight.finished:
                return
            self.watched[flight] = None
            flight.watched = True
            if thread and not self._pumping:
                end = _thread.allocate_lock()
                end.acquire()
                try:
                    self._pump_thread = _thread.start_new_thread(self._pump, (end,))
                    self._pump_end = end
                    self._pumping = True
                except RuntimeError:  # the interpreter is shutting down; closing waits for the flight
                    pass
        # Its notice may have come before it was watched. When another one's notice was spent on it since, that one
        # is still to be found.
        if not flight.poll() and flight.finished:
            self.nudge()

    def _pump(self, end: _thread.LockType) -> None:
        """The pump thread. It ends when nothing is watched any more."""
        try:
            poller = select.poll()
            poller.register(self.event_fd, select.POLLIN)
            while True:
                with self.lock:
                    if not self.watched:
                        self._pumping = False
                        return
                poller.poll()
                self.sweep(self.event_fd)
        finally:
            end.release()

    def pump_in(self, loop: asyncio.AbstractEventLoop) -> _LoopPump:
        with self.lock:
            weakly = self._loops.get(loop)
            pump = None if weakly is None else weakly()
            if pump is None:
                pump = _LoopPump(self, loop)
                self._loops[loop] = weakref.ref(pump)
            return pump

    # ---- the end ----

    def drain(self, which: Callable[[Flight], bool], cancel_reads: bool = False) -> None:
        """Waits for flights of this handle."""
        flights = [f for f in _snapshot(_in_flight) if f.core is self and which(f)]
        for flight in flights:
            if cancel_reads and flight.reads_only:
                flight.cancel()
        for flight in flights:
            flight.wait(None)

    def close(self, cancel_reads: bool = False) -> None:
        """Waits for what is in flight, closes files, stops the workers. Raises the first error of closing a file,
        after all is done."""
        if not self.is_ours():
            self.closed = True
            return
        with self.lock:
            if self.closed:
                return
            self.closed = True
            self._idle.wait_for(lambda: self._users == 0)
            files = list(self.files)
        self.drain(lambda _: True, cancel_reads)
        problem: Error | None = None
        for file in files:
            try:
                file.close()
            except Error as error:
                problem = problem or error
        self._stop_pump()
        with self.lock:
            kept, self._kept = self._kept, {}
        for slots in kept.values():
            for slot in slots:
                slot.destroy()
        self.release_native()
        if problem is not None:
            raise problem

    def _stop_pump(self) -> None:
        """Nothing is watched any more."""
        with self.lock:
            end = self._pump_end
            if end is None or self._pump_thread == threading.get_ident():  # a callback closes the handle
                return
        self.nudge()
        with end:
            pass

    def release_native(self) -> None:
        """Closes the native handle once it is closed here and no pool needs it."""
        with self.lock:
            if not self.closed or self.pools > 0 or self._native_closed:
                return
            self._native_closed = True
        lib.pst_io_close(self.handle)
        os.close(self.event_fd)
        _cores.discard(self)

    def __del__(self) -> None:
        # Nothing is in flight: flights hold the core. A handle that failed to open has no descriptor yet.
        if hasattr(self, "event_fd") and not self.closed and self.is_ours():
            try:
                self.close()
            except Error as error:
                logger.error("closing an I/O handle: %s", error)


def _write_down(slot: _Slot, requests: Sequence[Request]) -> None:
    pack, memory = _OP.pack_into, slot.memory
    try:
        for i, r in enumerate(requests):
            m = r.memory
            if m is None:
                pack(memory, i * _OP.size, r.file.handle, r.offset, 0, r.nbytes, r.kind, False, 0, 0, 0)
            else:
                pack(
                    memory,
                    i * _OP.size,
                    r.file.handle,
                    r.offset,
                    m.address,
                    m.nbytes,
                    r.kind,
                    r.may_be_short,
                    m.segment_count,
                    m.segments,
                    0,
                )
    except struct.error as problem:
        raise UsageError(f"an offset or a length is no file position: {problem}") from None


def _snapshot(things: Iterable[Flight]) -> list[Flight]:
    while True:
        try:
            return list(things)
        except RuntimeError:  # it changed meanwhile
            continue


_in_flight: set[Flight] = set()
_cores: weakref.WeakSet[Core] = weakref.WeakSet()


def _close_all() -> None:
    """At exit: the interpreter's memory is about to go, and the kernel must be done with it first. What is being
    written is written; nobody will look at what is being read."""
    for core in list(_cores):
        try:
            core.close(cancel_reads=True)
        except Exception as error:
            logger.error("closing an I/O handle at exit: %s", error)


def _after_fork() -> None:
    """In the child nothing is in flight; the parent's buffers are not pinned here by a thread that does not exist."""
    _in_flight.clear()
    _cores.clear()


atexit.register(_close_all)
os.register_at_fork(after_in_child=_after_fork)
