# SPDX-License-Identifier: Apache-2.0
"""Exceptions of the library.

All of them are `Error`, a kind of `OSError`: `errno` and `filename` are set where they apply, besides `code` (a
negative errno or one of the library's own codes), `path`, `offset` (bytes, in the file) and `message`. Where Python
has a class for the same thing, the exception is of that class too: a missing file is a `FileNotFoundError`, a wrong
argument a `ValueError`, the end of the file before the bytes that were asked for an `EOFError`.
"""

from __future__ import annotations

import concurrent.futures
import errno as _errno
import pickle as _pickle

E_FORMAT = -4097
E_UNSUPPORTED = -4098
E_BUDGET = -4099
E_USAGE = -4100
E_SHORT = -4101
E_CANCELLED = -4102


class Error(OSError):
    """A failure that the library reported."""

    code: int
    path: str | None
    offset: int | None
    message: str

    def __init__(self, message: str, code: int = E_USAGE, path: str | None = None, offset: int | None = None) -> None:
        number = -code if code > E_FORMAT else _OWN_ERRNO.get(code, _errno.EIO)
        super().__init__(number, message)
        self.code = code
        self.path = path
        self.filename = path
        self.offset = offset
        self.message = message

    def __str__(self) -> str:
        text = self.message if self.path is None else f"{self.path}: {self.message}"
        return text if self.offset is None else f"{text} (at byte {self.offset})"

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.message, self.code, self.path, self.offset)


class FormatError(Error, ValueError):
    """A file's content is not what its format demands."""


class UnsupportedError(Error, NotImplementedError):
    """Well-formed, but not something that this version can do."""


class MemoryBudgetError(Error, MemoryError):
    """A memory budget is too small; the message names what is in use or what would do."""


class UsageError(Error, ValueError):
    """Arguments that make no sense (together), or a handle that is closed."""


class ShortReadError(Error, EOFError):
    """The file ended before the bytes that were asked for; `offset` is where."""


class CancelledError(Error, concurrent.futures.CancelledError):
    """The transfer was cancelled."""


class ForkError(UsageError):
    """A handle of the parent process was used in a forked child."""


class PickleError(UsageError, _pickle.PicklingError):
    """An object that Python's pickler cannot write; the cause is its own exception."""


class LibraryError(ImportError):
    """The C library is missing, of another version, or lacks a function."""


class FileMissingError(Error, FileNotFoundError):
    """There is no such file."""


class FileIsThereError(Error, FileExistsError):
    """The file exists already."""


class FileAccessError(Error, PermissionError):
    """The system forbids it."""


class FileIsFolderError(Error, IsADirectoryError):
    """A folder where a file is needed."""


class FileNoFolderError(Error, NotADirectoryError):
    """A part of the path is no folder."""


_OWN_ERRNO = {
    E_FORMAT: _errno.EBADMSG,
    E_UNSUPPORTED: _errno.ENOTSUP,
    E_BUDGET: _errno.ENOMEM,
    E_USAGE: _errno.EINVAL,
    E_SHORT: _errno.ENODATA,
    E_CANCELLED: _errno.ECANCELED,
}

_CLASSES: dict[int, type[Error]] = {
    E_FORMAT: FormatError,
    E_UNSUPPORTED: UnsupportedError,
    E_BUDGET: MemoryBudgetError,
    E_USAGE: UsageError,
    E_SHORT: ShortReadError,
    E_CANCELLED: CancelledError,
    -_errno.ENOENT: FileMissingError,
    -_errno.EEXIST: FileIsThereError,
    -_errno.EACCES: FileAccessError,
    -_errno.EPERM: FileAccessError,
    -_errno.EISDIR: FileIsFolderError,
    -_errno.ENOTDIR: FileNoFolderError,
}


def make(code: int, message: str, path: str | None = None, offset: int | None = None) -> Error:
    """The exception for an error code of the library."""
    return _CLASSES.get(code, Error)(message, code, path, offset)
