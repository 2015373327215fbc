# SPDX-License-Identifier: Apache-2.0
"""The files that a handle keeps open.

A file is opened once and found again by its path, or by the number of the caller's descriptor. Each use asks the system
which inode is there now: a file that was replaced, renamed or deleted is never served from its old descriptors. One
that no transfer uses is closed after IDLE_S, so that a deleted file's space is soon free, and so are those opened first
where a handle has more than MAX_IDLE, or a sixteenth of the descriptors that the process may have.

Files are never truncated: what another rank has written beyond a tensor's end stays.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import logging
import os
import resource
import stat
import time
from typing import Any

from penstock import _native, errors

log = logging.getLogger("penstock")

IDLE_S = 2.0
MAX_IDLE = 256
FILE_MODE = 0o600  # of a new file, less the umask: as DeepSpeed's

Key = str | bytes | int  # path or descriptor


class File:
    """An open file of a handle."""

    __slots__ = ("device", "high", "inode", "key", "low", "pointer", "slots", "used_s", "writable", "writers")

    def __init__(self, pointer: int, key: Key, info: os.stat_result, writable: bool) -> None:
        self.pointer = pointer
        self.key = key
        self.device = info.st_dev
        self.inode = info.st_ino
        self.writable = writable
        self.slots: dict[Any, bool] = {}  # transfers under way, and whether each is a write
        self.writers = 0  # of them
        self.low = self.high = 0  # what they reach over
        self.used_s = 0.0  # when the last transfer was done; 0: none was yet

    def add(self, slot: Any, write: bool) -> None:
        if self.slots:
            self.low = min(self.low, slot.start)
            self.high = max(self.high, slot.end)
        else:
            self.low, self.high = slot.start, slot.end
        self.slots[slot] = write
        self.writers += write

    def may_conflict(self, write: bool, start: int, end: int) -> bool:
        """False if no transfer under way can be one that must be over before this one starts."""
        return (write or self.writers > 0) and start < self.high and self.low < end


def name_of(key: Key) -> str:
    return f"descriptor {key}" if isinstance(key, int) else os.fsdecode(key)


def problem_of(key: Key, number: int) -> OSError:
    return OSError(number, os.strerror(number), name_of(key))


def _open_path(path: str | bytes, write: bool) -> int:
    # Opening a pipe would wait for its other end.
    common = os.O_CLOEXEC | os.O_NONBLOCK
    if not write:
        return os.open(path, common | os.O_RDONLY)
    try:
        return os.open(path, common | os.O_CREAT | os.O_RDWR, FILE_MODE)
    except PermissionError:
        return os.open(path, common | os.O_CREAT | os.O_WRONLY, FILE_MODE)


def _allows_writing(descriptor: int) -> bool:
    return fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY


class Files:
    """All methods are called under the handle's lock. They raise OSError."""

    def __init__(self, io: int) -> None:
        self._io = io
        self._open: dict[Key, File] = {}  # least recently opened first
        self._retired: list[File] = []  # replaced, but with transfers under way
        self._most = min(MAX_IDLE, max(resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 16, 16))
        self.error = _native.ErrorRecord()
        self.record = ctypes.byref(self.error)  # for calls under the lock

    def acquire(self, key: Key, write: bool, end: int) -> File:
        """The file, created if it is to be written. A file to be read must have `end` bytes at least."""
        info = self._look(key, write)
        if info is not None and not write and end > info.st_size and stat.S_ISREG(info.st_mode):
            raise errors.make(
                errors.E_SHORT, f"has {info.st_size} bytes, and {end} are needed", name_of(key), info.st_size
            )
        file = self._open.get(key)
        if file is not None:
            if (
                info is not None
                and file.inode == info.st_ino
                and file.device == info.st_dev
                and (file.writable or not write)
            ):
                return file
            self._retire(file)
        return self._open_file(key, info, write)

    def _look(self, key: Key, write: bool) -> os.stat_result | None:
        if isinstance(key, int):
            if key < 0 or (write and not _allows_writing(key)):
                raise problem_of(key, errno.EBADF)
            return os.fstat(key)
        try:
            return os.stat(key)
        except FileNotFoundError:
            if not write:
                raise
            return None

    def _open_file(self, key: Key, info: os.stat_result | None, write: bool) -> File:
        try:
            file = self._open_once(key, info, write)
        except OSError as problem:
            if problem.errno not in (errno.EMFILE, errno.ENFILE) or not self.close_idle(0.0):
                raise
            file = self._open_once(key, info, write)
        self._open[key] = file
        if len(self._open) > self._most:
            self._close_oldest(file)
        return file

    def _open_once(self, key: Key, info: os.stat_result | None, write: bool) -> File:
        descriptor = -1
        try:
            name = None
            if isinstance(key, int):
                descriptor = key
            else:
                self._check_kind(key, info)
                descriptor = _open_path(key, write)
                name = os.fsencode(key)
            info = os.fstat(descriptor)
            self._check_kind(key, info)
            out = ctypes.c_void_p()
            flags = _native.OPEN_WRITE if write else _native.OPEN_READ
            status = _native.lib.pst_io_file_open_fd(self._io, descriptor, flags, name, ctypes.byref(out), self.record)
            if status < 0:
                raise _native.exception(self.error, status)
            assert out.value is not None
            return File(out.value, key, info, write)
        finally:
            if descriptor >= 0 and not isinstance(key, int):
                os.close(descriptor)

    def _check_kind(self, key: Key, info: os.stat_result | None) -> None:
        if info is None or stat.S_ISREG(info.st_mode) or stat.S_ISBLK(info.st_mode):
            return
        if stat.S_ISDIR(info.st_mode):
            raise problem_of(key, errno.EISDIR)
        raise OSError(errno.EINVAL, "is neither a regular file nor a block device", name_of(key))

    def release(self, file: File, slot: Any) -> None:
        """A transfer is done."""
        file.writers -= file.slots.pop(slot)
        if file.slots:
            return
        file.used_s = time.monotonic()
        if file in self._retired:
            self._retired.remove(file)
            self._close(file)

    def _retire(self, file: File) -> None:
        del self._open[file.key]
        if file.slots:
            self._retired.append(file)
        else:
            self._close(file)

    def _close(self, file: File) -> None:
        status = _native.lib.pst_io_file_close(file.pointer, self.record)
        if status < 0:
            log.error("%s", _native.exception(self.error, status))

    def _close_oldest(self, but: File) -> None:
        for file in list(self._open.values()):
            if len(self._open) <= self._most:
                return
            if not file.slots and file is not but:
                self._retire(file)

    def close_idle(self, idle_s: float) -> bool:
        """Closes the files that were not used for that long; whether there were any."""
        before = time.monotonic() - idle_s
        idle = [file for file in self._open.values() if not file.slots and file.used_s <= before]
        for file in idle:
            self._retire(file)
        return bool(idle)

    def close_all(self) -> None:
        """Nothing is under way any more."""
        for file in [*self._open.values(), *self._retired]:
            self._close(file)
        self._open.clear()
        self._retired.clear()

    def under_way(self) -> list[Any]:
        """The transfers that are."""
        return [slot for file in [*self._open.values(), *self._retired] for slot in file.slots]

    def __len__(self) -> int:
        return len(self._open)
