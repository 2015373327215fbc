# SPDX-License-Identifier: Apache-2.0
"""Pools of aligned, locked memory, as NumPy arrays, PyTorch tensors and plain buffers.

Memory goes back to its pool when the last object that shows it is collected. A pool that is closed gives nothing more;
it ends, and with it the memory, when all is back.
"""

from __future__ import annotations

import ctypes
import math
import os
import threading
import weakref
from collections.abc import Sequence
from ctypes import byref, c_void_p
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from penstock import _native as native
from penstock._native import lib
from penstock.errors import ForkError, UsageError

if TYPE_CHECKING:
    from penstock._flight import Core
    from penstock.io import IO


@dataclass(frozen=True)
class PoolStats:
    """`held`: taken from the system; `out`: in use. lock_status: 0, or why memory is not locked (a negative errno)."""

    budget_bytes: int
    held_bytes: int
    out_bytes: int
    out_count: int
    peak_out_bytes: int
    locked_bytes: int
    huge_bytes: int
    registered_bytes: int
    numa_node: int
    lock_status: int


class _State:
    """The native pool. It lives until it is closed and all memory is back."""

    def __init__(self, options: native.PoolOptions, core: Core | None) -> None:
        self.pid = os.getpid()
        self.lock = threading.RLock()  # finalizers take it
        self.out = 0
        self.closed = False
        self.core = core
        self.handle: int | None = None
        out = c_void_p()
        if core is None:
            native.call(lib.pst_io_pool_create, None, byref(options), byref(out))
        else:
            with core.using():
                native.call(lib.pst_io_pool_create, core.handle, byref(options), byref(out))
                with core.lock:
                    core.pools += 1
        self.handle = out.value

    def check(self) -> int:
        """The native pool. The lock is held."""
        if self.closed or self.handle is None:
            raise UsageError("the pool is closed")
        return self.handle

    def check_process(self) -> None:
        if self.pid != os.getpid():
            raise ForkError("this pool belongs to the parent process; a forked child makes its own")

    def take(self, size: int, alignment: int) -> int:
        self.check_process()
        if not 0 <= size < 2**63 or not 0 <= alignment < 2**63 or alignment & (alignment - 1):
            raise UsageError(f"{size} bytes at an alignment of {alignment} cannot be")
        out = c_void_p()
        with self.lock:
            handle = self.check()
            self.out += 1
        try:
            native.call(lib.pst_io_pool_take, handle, size, alignment, byref(out))
        except BaseException:
            self._back()
            raise
        return out.value or 0

    def give(self, address: int) -> None:
        if self.pid != os.getpid() or self.handle is None:
            return
        lib.pst_io_pool_give(self.handle, address, None)
        self._back()

    def _back(self) -> None:
        with self.lock:
            self.out -= 1
            ends = self.closed and self.out == 0
        if ends:
            self._end()

    def close(self) -> None:
        if self.pid != os.getpid():
            return
        with self.lock:
            ends = not self.closed and self.out == 0
            self.closed = True
        if ends:
            self._end()

    def _end(self) -> None:
        handle, self.handle = self.handle, None
        if handle is None:
            return
        lib.pst_io_pool_destroy(handle)
        if self.core is not None:
            with self.core.lock:
                self.core.pools -= 1
            self.core.release_native()


class Pool:
    """Memory for transfers within a budget of bytes: aligned, locked, in huge pages where the system has them.

    `io`: the handle whose engine shall know the memory (IO.pool does that). `arena`: bytes taken from the system at
    once. `near`: a path on the drive whose NUMA node the memory shall be near. Where locking is forbidden
    (RLIMIT_MEMLOCK) the memory is given unlocked, and `stats().lock_status` says why.
    """

    def __init__(
        self,
        budget: int,
        *,
        io: IO | None = None,
        arena: int = 0,
        lock: bool = True,
        huge_pages: bool = True,
        near: str | os.PathLike[str] | None = None,
    ) -> None:
        if not 0 < budget < 2**63 or not 0 <= arena < 2**63:
            raise UsageError(f"a pool of {budget} bytes in arenas of {arena} cannot be")
        options = native.sized(
            native.PoolOptions,
            budget_bytes=budget,
            arena_bytes=arena,
            lock=native.SWITCH_DEFAULT if lock else native.SWITCH_OFF,
            huge_pages=native.SWITCH_DEFAULT if huge_pages else native.SWITCH_OFF,
            near_path=None if near is None else os.fsencode(near),
        )
        self._state = _State(options, None if io is None else io._core)

    def buffer(self, size: int, alignment: int = 0) -> memoryview:
        """`size` bytes, contents undefined, at a multiple of `alignment` (a power of two up to 2 MiB; 0: 4096)."""
        if size == 0:
            self._state.check_process()
            return memoryview(bytearray())
        address = self._state.take(size, alignment)
        block = (ctypes.c_ubyte * size).from_address(address)
        weakref.finalize(block, self._state.give, address).atexit = False
        return memoryview(block).cast("B")

    def numpy(self, shape: int | Sequence[int], dtype: Any = "u1", alignment: int = 0) -> Any:
        """A NumPy array, contents undefined."""
        import numpy

        element = numpy.dtype(dtype)
        if element.hasobject:
            raise UsageError(f"an array of Python objects (dtype {element}) has no plain bytes")
        sizes = (shape,) if isinstance(shape, int) else tuple(shape)
        view = self.buffer(_count(sizes) * element.itemsize, alignment)
        return numpy.ndarray(sizes, dtype=element, buffer=view)

    def torch(self, shape: int | Sequence[int], dtype: Any = None, alignment: int = 0) -> Any:
        """A PyTorch tensor, contents undefined. `dtype`: torch's default one unless given."""
        import torch

        element = torch.get_default_dtype() if dtype is None else dtype
        sizes = (shape,) if isinstance(shape, int) else tuple(shape)
        count = _count(sizes)
        if count == 0:
            return torch.empty(sizes, dtype=element)
        view = self.buffer(count * element.itemsize, alignment)
        return torch.frombuffer(view, dtype=element, count=count).reshape(sizes)

    def holds(self, buffer: Any) -> bool:
        """Whether all of a buffer lies inside one that the pool gave."""
        from penstock._buffers import pin

        self._state.check_process()
        held = pin(buffer, writable=False)
        try:
            with self._state.lock:
                handle = self._state.check()
                return bool(lib.pst_io_pool_holds(handle, held.address, held.nbytes))
        finally:
            held.release()

    def stats(self) -> PoolStats:
        self._state.check_process()
        out = native.PoolStats()
        with self._state.lock:
            lib.pst_io_pool_get_stats(self._state.check(), byref(out))
        return PoolStats(**{name: getattr(out, name) for name, *_ in out._fields_})

    @property
    def closed(self) -> bool:
        return self._state.closed

    def close(self) -> None:
        """Gives nothing more from now on. What is in use stays valid; the memory goes when all is back."""
        self._state.close()

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        state: _State | None = getattr(self, "_state", None)
        if state is not None:
            state.close()


def _count(sizes: tuple[int, ...]) -> int:
    if any(n < 0 for n in sizes):
        raise UsageError(f"a shape of {sizes} cannot be")
    return math.prod(sizes)
