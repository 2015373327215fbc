# SPDX-License-Identifier: Apache-2.0
"""Processes that save one checkpoint together, through the key-value store of torch.distributed.

Collectives of the training's process groups would have to be called in one order by all ranks, and a save runs
beside the training. So the few small messages of a save go through the store by which the processes found each
other: on a connection of its own, under a prefix of its own for each save. A rank that fails says so there, and the
others learn it at their next message instead of waiting for the time-out.
"""

from __future__ import annotations

import ctypes
import errno
import itertools
import struct
import threading
import time
from typing import Any

from penstock import _ckpt, errors

_instances = itertools.count()
_instances_lock = threading.Lock()


class RanksError(errors.Error):
    """Another rank failed, or did not come in time."""


class World:
    """The ranks that use one Checkpointer (or the like) together. `store`: torch.distributed's, or None for a process
    alone. All ranks make their worlds in the same order, and open their talks by the same names."""

    def __init__(
        self, rank: int = 0, count: int = 1, store: Any = None, timeout: float = 600.0, name: str = ""
    ) -> None:
        if count > 1 and store is None:
            raise errors.UsageError("several ranks need a store")
        if not timeout > 0:
            raise errors.UsageError("the time-out must be above 0")
        self.rank = rank
        self.count = count
        self.timeout = timeout
        # Its own connection: a store answers one request at a time, and training may wait for something there.
        clone = getattr(store, "clone", None)
        self._store = clone() if clone is not None else store
        with _instances_lock:
            self._prefix = f"penstock/{next(_instances)}/{name}"

    @classmethod
    def of_torch(cls, group: Any = None, timeout: float = 600.0, name: str = "") -> World:
        """The ranks of a process group, by default of all; this process alone where torch.distributed is not
        initialized (or this process does not belong to the group)."""
        import torch.distributed as dist

        if not (dist.is_available() and dist.is_initialized()):
            return cls(timeout=timeout)
        count = dist.get_world_size(group)
        if count <= 1:
            return cls(timeout=timeout)
        from torch.distributed import distributed_c10d

        name += "" if group is None else str(getattr(group, "group_name", ""))
        return cls(dist.get_rank(group), count, distributed_c10d._get_default_store(), timeout, name)

    def talk(self, name: str) -> Talk:
        return Talk(self, self._store, f"{self._prefix}/{name}")


class Talk:
    """The messages of one save. One thread at a time. With one rank, nothing is sent."""

    def __init__(self, world: World, store: Any, prefix: str) -> None:
        self.world = world
        self.problem: BaseException | None = None  # why the last all_gather of the C library failed
        self._store = store
        self._prefix = prefix
        self._sent = 0
        self._callback = _ckpt.ALL_GATHER(self._c_all_gather)  # lives as long as this
        self._record = _ckpt.Ranks(rank=world.rank, count=world.count, all_gather=self._callback)

    @property
    def record(self) -> Any:
        """A pointer for options of the C library, or None for one rank. Valid as long as this object."""
        return ctypes.pointer(self._record) if self.world.count > 1 else None

    def _key(self, number: int, rank: int) -> str:
        return f"{self._prefix}/{number}/{rank}"

    def _failed_key(self) -> str:
        return f"{self._prefix}/failed"

    def all_gather(self, mine: bytes) -> list[bytes]:
        """Each rank's bytes, in order of rank. RanksError: one of them failed, or did not come in time."""
        world = self.world
        if world.count == 1:
            return [mine]
        number = self._sent
        self._sent += 1
        keys = [self._key(number, rank) for rank in range(world.count)]
        try:
            # A byte before them: an empty value is not one in every store.
            self._store.set(keys[world.rank], b"=" + mine)
            self._wait(keys)
            return [bytes(self._store.get(key))[1:] for key in keys]
        except errors.Error:
            raise
        except Exception as problem:
            what = str(problem).partition("\n")[0]
            raise RanksError(f"the store of torch.distributed does not answer: {what}", -errno.EIO) from problem

    def _wait(self, keys: list[str]) -> None:
        until = time.monotonic() + self.world.timeout
        pause = 0.0005
        while not self._store.check(keys):
            # A rank that failed after this message had sent it before: then all of it may be there by now, and each rank
            # judges for itself, with one outcome.
            if self._store.check([self._failed_key()]) and not self._store.check(keys):
                why = bytes(self._store.get(self._failed_key())).decode("utf-8", "replace")
                raise RanksError(why, -errno.ECANCELED)
            if time.monotonic() > until:
                absent = [rank for rank, key in enumerate(keys) if not self._store.check([key])]
                names = ", ".join(map(str, absent[:8])) + (", ..." if len(absent) > 8 else "")
                raise RanksError(f"rank {names} did not come within {self.world.timeout:g} s", -errno.ETIMEDOUT)
            time.sleep(pause)
            pause = min(pause * 1.5, 0.05)

    def share(self, value: bytes) -> bytes:
        """The first rank's bytes, for all."""
        return self.all_gather(value if self.world.rank == 0 else b"")[0]

    def fail(self, why: BaseException | str) -> None:
        """Tells the others that this rank failed, unless one did so before."""
        if self.world.count == 1:
            return
        try:
            self._store.compare_set(self._failed_key(), "", f"rank {self.world.rank}: {why}")
        except Exception:  # the store is gone, and with it the ranks' connection to each other
            pass

    def leave(self, seconds: float = 30.0) -> None:
        """After the last message. The first rank, whose process may hold the store, waits until all have read it (this
        long at most), and removes the messages."""
        world = self.world
        if world.count == 1:
            return
        try:
            left = f"{self._prefix}/left"
            self._store.add(left, 1)
            if world.rank != 0:
                return
            until = time.monotonic() + min(world.timeout, seconds)
            while self._store.add(left, 0) < world.count:
                if time.monotonic() > until:
                    return
                time.sleep(0.002)
            for number in range(self._sent):
                for rank in range(world.count):
                    self._store.delete_key(self._key(number, rank))
            for key in (left, self._failed_key()):
                self._store.delete_key(key)
        except Exception:  # nothing more depends on it
            pass

    def explain(self, error: BaseException) -> BaseException:
        """What the C library reports of a failed message does not say why; this does."""
        problem, self.problem = self.problem, None
        if problem is None or not isinstance(error, errors.Error):
            return error
        said = RanksError(str(problem), getattr(problem, "code", error.code), error.path)
        said.__cause__ = error
        return said

    def _c_all_gather(self, _user: int | None, mine: int, size: int, everything: int) -> int:
        """pst_ckpt_ranks.all_gather. Called by threads of the C library; nothing may be raised."""
        try:
            parts = self.all_gather(ctypes.string_at(mine, size))
            if any(len(part) != size for part in parts):
                raise RanksError("the ranks do not save the same: their messages differ in size", errors.E_USAGE)
            ctypes.memmove(everything, b"".join(parts), size * len(parts))
            return 0
        except errors.Error as problem:
            self.problem = problem
            return problem.code
        except BaseException as problem:
            self.problem = problem
            return -errno.EIO


def pack(*parts: bytes) -> bytes:
    """Several strings of bytes as one."""
    return b"".join(struct.pack("<Q", len(part)) + part for part in parts)


def unpack(packed: bytes) -> list[bytes]:
    parts, at = [], 0
    while at < len(packed):
        (size,) = struct.unpack_from("<Q", packed, at)
        parts.append(packed[at + 8 : at + 8 + size])
        at += 8 + size
    return parts
