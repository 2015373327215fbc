# SPDX-License-Identifier: Apache-2.0
"""Locked memory of the process, as tensors.

A region is an anonymous mapping, on huge pages where the system gives them, locked where RLIMIT_MEMLOCK allows. The
table of regions belongs to the process and not to a handle: every handle recognises every region, and registers it with
its I/O engine at the first transfer in it.

A tensor made here owns its region, as do all its views: the mapping goes when the last of them does. Freeing a tensor
before gives its memory back to the system at once and leaves the addresses mapped: views that are still there read
zeros, and nothing of another owner.

Locks: the table's lock is taken after a handle's and never before it, because a region may go at any moment, in a
thread that holds anything. It is an RLock for the same reason.
"""

from __future__ import annotations

import bisect
import ctypes
import errno
import logging
import mmap
import operator
import os
import resource
import threading
import weakref
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

log = logging.getLogger("penstock")

PAGE_BYTES = mmap.PAGESIZE
HUGE_BYTES = 2 << 20
MADV_POPULATE_WRITE = 23  # Linux 5.14

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mlock.argtypes = _libc.munlock.argtypes = (ctypes.c_void_p, ctypes.c_size_t)

_lock = threading.RLock()
_starts: list[int] = []  # rising
_regions: dict[int, weakref.ref[Region]] = {}  # by start
_changes = 0  # of the table
_told_unlocked = False
# is_pinned of the operator that ours replaced while tensors of it were there; see _install.
foreign_is_pinned: Any = None


def _round_up(value: int, unit: int) -> int:
    return (value + unit - 1) // unit * unit


class Region(mmap.mmap):
    """`bytes` bytes from `start` on, which lies `lead` bytes into the mapping. Made by new_region()."""

    start: int
    bytes: int
    lead: int
    locked: bool
    pid: int
    # Handles that met it, and whether their engine took it. A handle leaves when it closes.
    known_to: weakref.WeakKeyDictionary[Any, bool]

    def __del__(self) -> None:
        if forget is not None:  # None: the interpreter is about to end
            forget(self)

    @property
    def end(self) -> int:
        return self.start + self.bytes


def _lock_pages(region: Region) -> None:
    """Locks it, or says once why not. Either way the pages are there afterwards."""
    global _told_unlocked
    region.locked = _libc.mlock(region.start, region.bytes) == 0
    if region.locked:
        return
    problem = ctypes.get_errno()
    limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    told, _told_unlocked = _told_unlocked, True
    if not told:
        log.warning(
            "cannot lock %d bytes of memory: %s (RLIMIT_MEMLOCK is %s; raise it with `ulimit -l`); this and further "
            "buffers work unlocked, and may be paged out",
            region.bytes,
            os.strerror(problem),
            "unlimited" if limit == resource.RLIM_INFINITY else limit,
        )
    try:
        region.madvise(MADV_POPULATE_WRITE, region.lead, region.bytes)
    except OSError:
        pass  # an older kernel: the pages come at their first use


def new_region(wanted_bytes: int) -> Region:
    global _changes
    whole = _round_up(wanted_bytes, PAGE_BYTES)
    huge = wanted_bytes >= HUGE_BYTES
    length = _round_up(whole, HUGE_BYTES) + HUGE_BYTES if huge else whole
    try:
        region = Region(-1, length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as problem:
        if problem.errno == errno.ENOMEM:
            raise MemoryError(f"cannot map {length} bytes for a locked tensor") from problem
        raise
    first = ctypes.addressof(ctypes.c_char.from_buffer(region))
    region.start = _round_up(first, HUGE_BYTES) if huge else first
    region.lead = region.start - first
    region.bytes = wanted_bytes
    region.pid = os.getpid()
    region.known_to = weakref.WeakKeyDictionary()
    if huge:
        try:
            region.madvise(mmap.MADV_HUGEPAGE)
        except OSError:
            pass  # a kernel without transparent huge pages
    _lock_pages(region)
    with _lock:
        bisect.insort(_starts, region.start)
        _changes += 1
        _regions[region.start] = weakref.ref(region)
    return region


def find(address: int, byte_count: int) -> Region | None:
    """The region that all of [address, address + byte_count) lies in."""
    with _lock:
        while True:
            seen = _changes
            at = bisect.bisect_right(_starts, address) - 1
            known = _regions.get(_starts[at]) if 0 <= at < len(_starts) else None
            if seen == _changes:  # no region was collected in between, in this very thread
                break
        region = known() if known is not None else None
    return region if region is not None and address + byte_count <= region.end else None


def _leave_table(region: Region) -> bool:
    """False if it was not in the table."""
    global _changes
    with _lock:
        known = _regions.get(region.start)
        if known is None or known() not in (region, None):
            return False
        del _regions[region.start]
        _starts.remove(region.start)
        _changes += 1
        return True


def forget(region: Region) -> None:
    """The last tensor of a region is gone, and its mapping follows: no engine may know these addresses then."""
    if not hasattr(region, "known_to") or region.pid != os.getpid():
        return
    _leave_table(region)
    with _lock:
        for handle in list(region.known_to):
            handle._unregister(region)


def free(address: int) -> bool:
    """Gives the memory of the region that starts at `address` back. False if there is none."""
    with _lock:
        known = _regions.get(address)
        region = known() if known is not None else None
        if region is None or not _leave_table(region):
            return False
    # A transfer that is under way keeps it, until its last tensor goes.
    if all([handle._leave_region(region) for handle in list(region.known_to)]):
        if region.locked:
            _libc.munlock(region.start, region.bytes)
        region.madvise(mmap.MADV_DONTNEED, 0, len(region))
    return True


def new_tensor(element_count: int, dtype: torch.dtype) -> torch.Tensor:
    """A one-dimensional tensor of locked memory, contents undefined."""
    import torch

    count = operator.index(element_count)
    if count < 0:
        raise ValueError(f"a tensor of {count} elements")
    if count == 0:
        return torch.empty(0, dtype=dtype)
    region = new_region(count * dtype.itemsize)
    # Not a view of a tensor of bytes: what is given out must be the root of all its views.
    return torch.frombuffer(region, dtype=dtype, count=count, offset=region.lead)


def is_pinned(tensor: torch.Tensor) -> bool:
    """Pinned by torch, or wholly inside a region."""
    if not tensor.is_cpu:
        return False
    if find(tensor.data_ptr(), tensor.nbytes) is not None or tensor.is_pinned():
        return True
    return foreign_is_pinned is not None and foreign_is_pinned(tensor)


def _after_fork() -> None:
    global _lock
    _lock = threading.RLock()  # a thread that is not there any more may have held it


os.register_at_fork(after_in_child=_after_fork)


class pin_handle:
    """The interface of DeepSpeed's pin_memory operator to the process's locked memory."""

    def new_cpu_locked_tensor(self, num_elem: int, example_tensor: torch.Tensor) -> torch.Tensor:
        """A one-dimensional, page-aligned tensor with the element type of the example, contents undefined."""
        return new_tensor(num_elem, example_tensor.dtype)

    def free_cpu_locked_tensor(self, locked_tensor: torch.Tensor) -> bool:
        """False unless the tensor starts where a locked tensor starts."""
        return free(locked_tensor.data_ptr())

    def free_cpu_locked_tensor_by_ptr(self, address: int) -> bool:
        return free(operator.index(address))

    def is_pinned(self, buffer: torch.Tensor) -> bool:
        """Whether it is pinned by torch or lies in locked memory of this process."""
        return is_pinned(buffer)
