# SPDX-License-Identifier: Apache-2.0
"""Stripe sets: one logical folder of files spread over several folders, usually one per drive."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Iterable
from ctypes import byref, c_char_p, c_void_p
from typing import TYPE_CHECKING, Any, Union

from penstock import _native as native
from penstock._native import lib
from penstock.errors import UsageError

if TYPE_CHECKING:
    from penstock.io import IO, File

Path = Union[str, "os.PathLike[str]"]


def _array(folders: Iterable[Path]) -> ctypes.Array[c_char_p]:
    if isinstance(folders, (str, bytes, os.PathLike)):
        raise UsageError("a stripe set is made of a list of folders")
    names = [os.fsencode(folder) for folder in folders]
    if any(b"\0" in name for name in names):
        raise UsageError("a path with a zero byte in it")
    return (c_char_p * len(names))(*names)


class StripeSet:
    """A set that exists. All its folders are named, in the order in which it was made; a missing, foreign or reordered
    one is refused by name."""

    def __init__(self, folders: Iterable[Path]) -> None:
        names = _array(folders)
        out = c_void_p()
        native.call(lib.pst_stripe_open, names, len(names), byref(out))
        self._handle = out.value
        self._lock = threading.Lock()

    @classmethod
    def create(cls, folders: Iterable[Path], stripe_bytes: int = 0) -> StripeSet:
        """Makes a new set of 1 to 64 existing folders, durable when it returns, and opens it. `stripe_bytes`: a
        multiple of 4096 up to 1 GiB; 0: 1 MiB."""
        chosen = list(folders) if not isinstance(folders, (str, bytes, os.PathLike)) else folders
        names = _array(chosen)
        if not 0 <= stripe_bytes < 2**63:
            raise UsageError(f"a stripe of {stripe_bytes} bytes cannot be")
        native.call(lib.pst_stripe_create, names, len(names), stripe_bytes)
        return cls(chosen)

    @staticmethod
    def is_member(folder: Path) -> bool:
        """Whether a folder belongs to a set."""
        return bool(lib.pst_stripe_is_member(os.fsencode(folder)))

    def _open_handle(self) -> int:
        """The lock is held."""
        if self._handle is None:
            raise UsageError("the stripe set is closed")
        return self._handle

    @property
    def members(self) -> int:
        with self._lock:
            return int(lib.pst_stripe_members(self._open_handle()))

    @property
    def stripe_bytes(self) -> int:
        with self._lock:
            return int(lib.pst_stripe_bytes(self._open_handle()))

    def open(self, io: IO, name: Path, mode: str = "r") -> File:
        """Opens a logical file, as IO.open opens a plain one; transfers work on all members in parallel. The file may
        outlive the set."""
        from penstock.io import mode_flags

        out = c_void_p()
        with self._lock, io._core.using():
            handle = self._open_handle()
            native.call(
                lib.pst_stripe_file_open, handle, io._core.handle, os.fsencode(name), mode_flags(mode), byref(out)
            )
        return io._file(out, mode)

    def remove(self, name: Path) -> None:
        """Removes all parts of a logical file; missing ones are fine."""
        with self._lock:
            native.call(lib.pst_stripe_file_remove, self._open_handle(), os.fsencode(name))

    def close(self) -> None:
        with self._lock:
            handle, self._handle = self._handle, None
        lib.pst_stripe_close(handle)

    def __enter__(self) -> StripeSet:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_handle", None) is not None:
            self.close()
