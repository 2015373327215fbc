# SPDX-License-Identifier: Apache-2.0
"""Saves that the library carries out beside everything else (pst_ckpt_begin), and objects taken apart for them."""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Callable, Mapping
from ctypes import byref, c_void_p
from typing import Any

from penstock import _ckpt
from penstock import _native as native
from penstock._native import lib
from penstock.errors import Error

UNLIMITED = 2**64 - 1  # PST_CKPT_UNLIMITED

FORMATS = {"pt": _ckpt.TORCH, "torch": _ckpt.TORCH, "safetensors": _ckpt.SAFETENSORS}
ENDINGS = {"pt": "pt", "torch": "pt", "safetensors": "safetensors"}


class Image:
    """An object taken apart: tensors where they lie, and a pickle of all the rest, which is as it was from now on.
    Holds the tensors' memory until release(). The pickle is made when it is first asked for."""

    def __init__(self, format: int) -> None:
        self.format = format
        self.tensors = _ckpt.Tensors()
        self.seen: list[Any] | None = None  # the object's tensors, where they were met
        self._pickle: bytes | memoryview | None = None
        self._make_pickle: Callable[[], io.BytesIO] | None = None

    @classmethod
    def of(cls, obj: Any, format: str, what: str) -> Image:
        """`what`: for messages."""
        from penstock import _torch_save

        image = cls(FORMATS[format])
        if image.format == _ckpt.SAFETENSORS:
            _torch_save.add_tensors(image.tensors, obj)
        else:
            image._make_pickle, storages, image.seen = _torch_save.take(obj, 2, what)
            _torch_save.add_storages(image.tensors, storages)
        return image

    @classmethod
    def of_parts(cls, tensors: Mapping[str, Any]) -> Image:
        """For safetensors; tensors that share memory are written each by itself."""
        from penstock import _torch_save

        image = cls(_ckpt.SAFETENSORS)
        for name, tensor in tensors.items():
            _torch_save.add_tensors(image.tensors, {name: tensor})
        return image

    @property
    def pickle(self) -> bytes | memoryview | None:
        """data.pkl, of a file that has one. By one thread at a time."""
        if self._make_pickle is not None:
            self._pickle = self._make_pickle().getbuffer()
            self._make_pickle = None
        return self._pickle

    @pickle.setter
    def pickle(self, content: bytes) -> None:
        self._pickle, self._make_pickle = content, None

    def description(self) -> bytes:
        """Names, types and shapes of the tensors: equal on all ranks that save replicas."""
        tensors = self.tensors
        kinds = [record[:2] for record in tensors._records]
        return b"\n".join([bytes(tensors._names), tensors._shapes.tobytes(), repr(kinds).encode()])

    def begin(self, path: str, ranks: Any = None, **settings: Any) -> Begun:
        """`ranks`: Talk.record. `settings`: of _ckpt.request()."""
        if self.pickle is not None:
            from penstock._torch_save import archive_name

            settings = {**settings, "pickle": self.pickle, "archive_name": archive_name(path)}
        what = _ckpt.request(_ckpt.fs_path(path, "a checkpoint"), format=self.format, **settings)
        return Begun(what, self.tensors, ranks)

    def write(self, path: str, **settings: Any) -> _ckpt.Report:
        """Writes it now; returns when it is durable."""
        with self.begin(path, **{"bytes_per_second": UNLIMITED, **settings}) as begun:
            begun.durable()
            return begun.report()

    def release(self) -> None:
        self.tensors.release()
        self._pickle = self._make_pickle = self.seen = None


class Begun:
    """One save. The tensors' memory must stay as it is until it is copied. cancel() and hurry() may be called by any
    thread, the rest by one; end() must be called."""

    def __init__(self, what: _ckpt.Request, tensors: _ckpt.Tensors, ranks: Any = None) -> None:
        """`ranks`: Talk.record, whose talk must live as long as this."""
        if ranks is not None:
            what.options.ranks = ranks
        self._keep = (what, ranks)
        self._tensors = tensors
        self._lock = threading.Lock()
        self._handle: int | None = None
        self._process = os.getpid()
        out = c_void_p()
        native.call(lib.pst_ckpt_begin, byref(what.options), tensors.table(), len(tensors), byref(out))
        self._handle = out.value

    def _reached(self, stage: int, timeout: float | None) -> bool:
        try:
            waited = native.call(lib.pst_ckpt_wait, self._handle, stage, native.timeout_ns(timeout))
        except Error as problem:
            if self._tensors.raised is not None:
                raise problem from self._tensors.raised
            raise
        return waited == 0

    def copied(self, timeout: float | None = None) -> bool:
        """Waits until the tensors may change; False: not in time. Raises what the save failed with."""
        return self._reached(_ckpt.COPIED, timeout)

    def durable(self, timeout: float | None = None) -> bool:
        """Waits until the files survive a loss of power; False: not in time. Raises what the save failed with."""
        return self._reached(_ckpt.DURABLE, timeout)

    def report(self) -> _ckpt.Report:
        """When it is durable."""
        record = native.sized(_ckpt.ReportRecord)
        native.check(lib.pst_ckpt_get_report(self._handle, byref(record)), native.ErrorRecord())
        return _ckpt.Report.of(record)

    def cancel(self) -> None:
        with self._lock:
            if self._handle is not None:
                lib.pst_ckpt_cancel(self._handle)

    def hurry(self) -> None:
        """From now on it writes as fast as it can."""
        with self._lock:
            if self._handle is not None:
                lib.pst_ckpt_hurry(self._handle)

    def end(self) -> None:
        """Waits until it has ended, well or not, and frees it."""
        with self._lock:
            handle, self._handle = self._handle, None
        lib.pst_ckpt_end(handle)

    def __del__(self) -> None:
        """Nobody ended it, and nobody holds the tensors any more: their memory is not to be read from now on."""
        if getattr(self, "_handle", None) is not None and os.getpid() == self._process:
            self.cancel()
            self.end()

    def __enter__(self) -> Begun:
        return self

    def __exit__(self, *_: Any) -> None:
        self.end()


def sync_folder(folder: str) -> None:
    """Makes what happened to names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folders(path: str) -> None:
    """Makes a folder and those above it, durably."""
    path = os.path.abspath(path)
    if os.path.isdir(path):
        return
    above = os.path.dirname(path)
    make_folders(above)
    try:
        os.mkdir(path)
    except FileExistsError:  # by another rank, unless it is no folder
        if not os.path.isdir(path):
            raise
        return
    sync_folder(above)


def write_small(path: str, content: bytes, temporary: str) -> None:
    """A small file, there and durable at once. `temporary`: its name until then, in the same folder."""
    beside = os.path.join(os.path.dirname(path), temporary)
    try:
        with open(beside, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException:
        if os.path.exists(beside):
            os.unlink(beside)
        raise
    sync_folder(os.path.dirname(path))
