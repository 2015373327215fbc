# SPDX-License-Identifier: Apache-2.0
"""Training folders (penstock/ckpt.h): one folder per step, published when all in it is durable."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping
from ctypes import byref, c_uint32, c_uint64, c_void_p
from typing import Any, Union

from penstock import _ckpt, errors
from penstock import _native as native
from penstock._native import lib

Path = Union[str, "os.PathLike[str]"]

MANIFEST = "penstock-checkpoint.json"
_WHO = "a training folder"


class Step:
    """A step that is being made. What is not committed when it is ended is removed. `ranks`: Talk.record."""

    def __init__(self, folder: Path, step: int, ranks: Any = None) -> None:
        out = c_void_p()
        native.call(lib.pst_ckpt_step_begin, _ckpt.fs_path(folder, _WHO), step, ranks, byref(out))
        self._handle = out.value
        self.path = os.fsdecode(lib.pst_ckpt_step_path(out.value))

    def commit(self, keep_last: int = 0, replace: bool = False, metadata: Mapping[str, str] | None = None) -> None:
        options = native.sized(_ckpt.CommitOptions, keep_last=keep_last, replace=replace)
        pairs = _ckpt.metadata_pairs(metadata)
        if pairs is not None:
            options.metadata, options.metadata_count = pairs, len(pairs)
        native.call(lib.pst_ckpt_step_commit, self._handle, byref(options))

    def end(self) -> None:
        handle, self._handle = self._handle, None
        lib.pst_ckpt_step_end(handle)

    def __enter__(self) -> Step:
        return self

    def __exit__(self, *_: Any) -> None:
        self.end()


def latest(folder: Path) -> tuple[int, str] | None:
    """The newest complete step and its folder."""
    step, out = c_uint64(), c_void_p()
    record = native.ErrorRecord()
    status = lib.pst_ckpt_latest(_ckpt.fs_path(folder, _WHO), byref(step), byref(out), byref(record))
    try:
        native.check(status, record)
    except errors.FileMissingError:
        return None
    try:
        assert out.value is not None
        return step.value, os.fsdecode(ctypes.string_at(out.value))
    finally:
        lib.pst_ckpt_free_path(out)


def steps(folder: Path) -> list[int]:
    """The numbers of the complete steps, rising."""
    room = 64
    while True:
        out = (c_uint64 * room)()
        record = native.ErrorRecord()
        count = native.check(lib.pst_ckpt_steps(_ckpt.fs_path(folder, _WHO), out, room, byref(record)), record)
        if count <= room:
            return list(out[:count])
        room = count + 16


def sweep(folder: Path) -> int:
    """Removes what unfinished saves left, unless a living process works on it; how many."""
    removed = c_uint32()
    native.call(lib.pst_ckpt_sweep, _ckpt.fs_path(folder, _WHO), byref(removed))
    return removed.value


def folder_name(step: int) -> str:
    """Of a step, in its training folder."""
    return f"step-{step:06d}"
