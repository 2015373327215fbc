# SPDX-License-Identifier: Apache-2.0
"""The C library as ctypes sees it: structures, functions, errors. Nothing here has a policy.

`lib` loads the library at the first use of one of its functions, and declares each function when it is first used, so
that a library that lacks one fails by name there and nowhere else. All functions are called through a CDLL: the
interpreter lock is released for the time of every call.

The library is looked for in this order: the file that the environment variable PENSTOCK_LIBRARY names; beside this
module (an installed wheel); build/ of the source checkout that this module lies in; the system's. It must be of the
package's version.
"""

from __future__ import annotations

import atexit
import ctypes
import logging
import os
import threading
from collections.abc import Callable
from ctypes import (
    CFUNCTYPE,
    POINTER,
    Structure,
    byref,
    c_bool,
    c_char,
    c_char_p,
    c_double,
    c_int,
    c_int32,
    c_int64,
    c_size_t,
    c_uint,
    c_uint32,
    c_uint64,
    c_void_p,
)
from pathlib import Path
from typing import Any

from penstock import __version__, errors

NO_OFFSET = 2**64 - 1
FOREVER = 2**64 - 1  # a time-out, ns

# pst_io_switch
SWITCH_DEFAULT, SWITCH_ON, SWITCH_OFF = 0, 1, 2

# PST_IO_OPEN_*
OPEN_READ, OPEN_WRITE, OPEN_CREATE, OPEN_TRUNCATE, OPEN_EXCLUSIVE = 0, 1, 2, 4, 8

# pst_io_kind
READ, WRITE, SYNC, TRUNCATE, PREALLOCATE = range(5)

# PST_IO_ENGINE_*
ENGINE_SYNCHRONOUS, ENGINE_FILE_SLOTS, ENGINE_BUFFER_SLOTS, ENGINE_NO_DATA = 1, 2, 4, 8

# PST_IO_FAULT_*
FAULT_ERROR, FAULT_SHORT, FAULT_DELAY, FAULT_REORDER, FAULT_TORN = 1, 2, 4, 8, 16

# pst_log_level
LOG_WARNING, LOG_INFO, LOG_DEBUG = range(3)

LOG_SINK = CFUNCTYPE(None, c_void_p, c_int, c_char_p)


# ---- structures, field by field as in include/penstock/*.h ----


class ErrorRecord(Structure):
    """pst_error"""

    _fields_ = [("code", c_int), ("offset", c_uint64), ("path", c_char * 512), ("message", c_char * 512)]


class IoOptions(Structure):
    """pst_io_options"""

    _fields_ = [
        ("struct_size", c_size_t),
        ("engine", c_char_p),
        ("block_size", c_uint64),
        ("queue_depth", c_uint32),
        ("workers", c_uint32),
        ("buffered", c_bool),
        ("single_submit", c_bool),
        ("overlap_events", c_int),
        ("measure_latency", c_bool),
        ("engine_table", c_void_p),
        ("path", c_char_p),
    ]


class EngineInfo(Structure):
    """pst_io_engine_info"""

    _fields_ = [
        ("struct_size", c_size_t),
        ("name", c_char_p),
        ("description", c_char_p),
        ("flags", c_uint32),
        ("automatic", c_bool),
        ("status", c_int),
        ("why_not", c_char * 256),
    ]


class Segment(Structure):
    """pst_io_segment"""

    _fields_ = [("memory", c_void_p), ("bytes", c_uint64)]


class Op(Structure):
    """pst_io_op"""

    _fields_ = [
        ("file", c_void_p),
        ("offset", c_uint64),
        ("buffer", c_void_p),
        ("bytes", c_uint64),
        ("kind", c_int),
        ("may_be_short", c_bool),
        ("segment_count", c_uint32),
        ("segments", c_void_p),  # Segment *
        ("result", c_int64),
    ]


class IoStats(Structure):
    """pst_io_stats"""

    _fields_ = [
        (name, c_uint64) for name in ("bytes_read", "bytes_written", "pieces", "bounced_bytes", "continued", "busy_ns")
    ]


class IoLatency(Structure):
    """pst_io_latency"""

    _fields_ = [
        (name, c_uint64) for name in ("count", "min_ns", "mean_ns", "p50_ns", "p90_ns", "p99_ns", "p999_ns", "max_ns")
    ]


class PoolOptions(Structure):
    """pst_io_pool_options"""

    _fields_ = [
        ("struct_size", c_size_t),
        ("budget_bytes", c_uint64),
        ("arena_bytes", c_uint64),
        ("lock", c_int),
        ("huge_pages", c_int),
        ("near_path", c_char_p),
    ]


class PoolStats(Structure):
    """pst_io_pool_stats"""

    _fields_ = [
        ("budget_bytes", c_uint64),
        ("held_bytes", c_uint64),
        ("out_bytes", c_uint64),
        ("out_count", c_uint64),
        ("peak_out_bytes", c_uint64),
        ("locked_bytes", c_uint64),
        ("huge_bytes", c_uint64),
        ("registered_bytes", c_uint64),
        ("numa_node", c_int32),
        ("lock_status", c_int),
    ]


class FaultOptions(Structure):
    """pst_io_fault_options"""

    _fields_ = [
        ("struct_size", c_size_t),
        ("faults", c_uint32),
        ("seed", c_uint64),
        ("rate", c_double),
        ("at", c_int64),
        ("times", c_int64),
        ("reads", c_bool),
        ("writes", c_bool),
        ("errors", POINTER(c_int)),
        ("error_count", c_uint32),
        ("min_delay_ns", c_uint64),
        ("max_delay_ns", c_uint64),
        ("reorder_window", c_uint32),
    ]


class FaultCounts(Structure):
    """pst_io_fault_counts"""

    _fields_ = [(name, c_uint64) for name in ("requests", "errors", "shorts", "delays", "reorders", "torn")]


def sized(kind: type[Structure], **fields: Any) -> Any:
    """A structure whose struct_size is set."""
    return kind(struct_size=ctypes.sizeof(kind), **fields)


# ---- functions ----

_ERR = POINTER(ErrorRecord)
_OUT = POINTER(c_void_p)

# name: (result type, argument types). Handles are c_void_p: integers in Python.
FUNCTIONS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    # types.h, log.h
    "pst_version": (c_char_p, ()),
    "pst_strerror": (c_char_p, (c_int,)),
    "pst_dtype_bits": (c_uint, (c_int,)),
    "pst_dtype_name": (c_char_p, (c_int,)),
    "pst_log_set_sink": (None, (LOG_SINK, c_void_p, c_int)),
    # io.h
    "pst_io_open": (c_int, (POINTER(IoOptions), _OUT, _ERR)),
    "pst_io_close": (None, (c_void_p,)),
    "pst_io_engine_name": (c_char_p, (c_void_p,)),
    "pst_io_get_settings": (None, (c_void_p, POINTER(IoOptions))),
    "pst_io_engine_at": (c_int, (c_uint32, POINTER(EngineInfo))),
    "pst_io_file_open": (c_int, (c_void_p, c_char_p, c_uint, _OUT, _ERR)),
    "pst_io_file_open_fd": (c_int, (c_void_p, c_int, c_uint, c_char_p, _OUT, _ERR)),
    "pst_io_file_close": (c_int, (c_void_p, _ERR)),
    "pst_io_file_bytes": (c_uint64, (c_void_p,)),
    "pst_io_file_get_bytes": (c_int, (c_void_p, POINTER(c_uint64), _ERR)),
    "pst_io_file_path": (c_char_p, (c_void_p,)),
    "pst_io_file_is_direct": (c_bool, (c_void_p,)),
    "pst_io_file_alignment": (c_uint32, (c_void_p,)),
    "pst_io_file_memory_alignment": (c_uint32, (c_void_p,)),
    "pst_io_file_sync": (c_int, (c_void_p, _ERR)),
    "pst_io_file_truncate": (c_int, (c_void_p, c_uint64, _ERR)),
    "pst_io_file_preallocate": (c_int, (c_void_p, c_uint64, _ERR)),
    "pst_io_register": (c_int, (c_void_p, c_void_p, c_uint64, _ERR)),
    "pst_io_unregister": (None, (c_void_p, c_void_p)),
    "pst_io_batch_create": (c_int, (c_void_p, c_uint32, _OUT, _ERR)),
    "pst_io_batch_destroy": (None, (c_void_p,)),
    "pst_io_submit": (c_int, (c_void_p, c_void_p, c_uint32, _ERR)),
    "pst_io_wait": (c_int, (c_void_p, c_uint64, _ERR)),
    "pst_io_wait_op": (c_int, (c_void_p, c_uint32, c_uint64, _ERR)),
    "pst_io_wait_any": (c_int, (POINTER(c_void_p), c_uint32, c_uint64, POINTER(c_uint32), _ERR)),
    "pst_io_next_done": (c_int, (c_void_p, c_uint64, POINTER(c_uint32), _ERR)),
    "pst_io_op_error": (c_int, (c_void_p, c_uint32, _ERR)),
    "pst_io_batch_notify": (c_int, (c_void_p, c_int, _ERR)),
    "pst_io_cancel": (None, (c_void_p,)),
    "pst_io_cancel_op": (None, (c_void_p, c_uint32)),
    "pst_io_batch_completed_ns": (c_uint64, (c_void_p,)),
    "pst_io_transfer": (c_int, (c_void_p, POINTER(Op), _ERR)),
    "pst_io_get_stats": (None, (c_void_p, POINTER(IoStats))),
    "pst_io_get_latency": (None, (c_void_p, c_bool, POINTER(IoLatency))),
    # io_pool.h
    "pst_io_pool_create": (c_int, (c_void_p, POINTER(PoolOptions), _OUT, _ERR)),
    "pst_io_pool_destroy": (None, (c_void_p,)),
    "pst_io_pool_take": (c_int, (c_void_p, c_uint64, c_uint64, _OUT, _ERR)),
    "pst_io_pool_give": (c_int, (c_void_p, c_void_p, _ERR)),
    "pst_io_pool_holds": (c_bool, (c_void_p, c_void_p, c_uint64)),
    "pst_io_pool_get_stats": (None, (c_void_p, POINTER(PoolStats))),
    # io_stripe.h
    "pst_stripe_create": (c_int, (POINTER(c_char_p), c_uint32, c_uint64, _ERR)),
    "pst_stripe_open": (c_int, (POINTER(c_char_p), c_uint32, _OUT, _ERR)),
    "pst_stripe_open_member": (c_int, (c_char_p, _OUT, _ERR)),
    "pst_stripe_close": (None, (c_void_p,)),
    "pst_stripe_members": (c_uint32, (c_void_p,)),
    "pst_stripe_bytes": (c_uint64, (c_void_p,)),
    "pst_stripe_is_member": (c_bool, (c_char_p,)),
    "pst_stripe_file_open": (c_int, (c_void_p, c_void_p, c_char_p, c_uint, _OUT, _ERR)),
    "pst_stripe_file_remove": (c_int, (c_void_p, c_char_p, _ERR)),
    # io_fault.h
    "pst_io_fault_create": (c_int, (c_void_p, c_char_p, POINTER(FaultOptions), _OUT, _ERR)),
    "pst_io_fault_destroy": (None, (c_void_p,)),
    "pst_io_fault_get_counts": (None, (c_void_p, POINTER(FaultCounts))),
}

LIBRARY_NAME = "libpenstock.so.0"  # the name that also the program of the wheel asks for
LIBRARY_VARIABLE = "PENSTOCK_LIBRARY"


def library_path() -> str:
    """The library that is (or will be) loaded, by the search order above; a bare name is the system's."""
    named = os.environ.get(LIBRARY_VARIABLE)
    if named:
        return named
    here = Path(__file__).resolve().parent
    beside = here / LIBRARY_NAME
    if beside.is_file():
        return str(beside)
    checkout = here.parents[1]
    built = checkout / "build" / LIBRARY_NAME
    if (checkout / "include" / "penstock" / "io.h").is_file() and built.is_file():
        return str(built)
    return LIBRARY_NAME


def _load(path: str) -> ctypes.CDLL:
    try:
        cdll = ctypes.CDLL(path)
    except OSError as problem:
        raise errors.LibraryError(
            f"cannot load the C library {path}: {problem} (`make build` builds it; {LIBRARY_VARIABLE} names another)"
        ) from problem
    try:
        version = cdll.pst_version
    except AttributeError:
        raise errors.LibraryError(f"{path} is not the library of penstock") from None
    version.restype, version.argtypes = c_char_p, ()
    found = version().decode()
    if found != __version__:
        raise errors.LibraryError(f"{path} is version {found}, the Python package is version {__version__}")
    return cdll


_LOG_LEVELS = {LOG_WARNING: logging.WARNING, LOG_INFO: logging.INFO, LOG_DEBUG: logging.DEBUG}


def _log_line(_user: int | None, level: int, line: bytes) -> None:
    """The library's notes go where Python's go. Called from any thread, with the interpreter lock taken by ctypes."""
    logging.getLogger("penstock").log(_LOG_LEVELS.get(level, logging.DEBUG), "%s", line.decode("utf-8", "replace"))


_log_sink = LOG_SINK(_log_line)  # as long as the library may call it


def _connect_log(cdll: ctypes.CDLL) -> None:
    try:
        set_sink = cdll.pst_log_set_sink
    except AttributeError:  # told of when it is used
        return
    set_sink.restype, set_sink.argtypes = FUNCTIONS["pst_log_set_sink"]
    set_sink(_log_sink, None, LOG_INFO)
    # A thread of the library that wants to log while the interpreter is taken down would find no interpreter.
    atexit.register(set_sink, LOG_SINK(), None, LOG_WARNING)


class Library:
    """Functions of the C library as attributes, declared at their first use."""

    _cdll: ctypes.CDLL | None = None

    def __init__(self) -> None:
        self._loading = threading.Lock()

    @property
    def path(self) -> str:
        """The file that is loaded (it loads it), or the name that the system resolved."""
        return self.load()._name

    def load(self) -> ctypes.CDLL:
        with self._loading:
            if self._cdll is None:
                cdll = _load(library_path())
                _connect_log(cdll)
                self._cdll = cdll
        return self._cdll

    def has(self, name: str) -> bool:
        """Whether the library has this function."""
        return hasattr(self.load(), name)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        """Called for a function that was not used yet."""
        if name not in FUNCTIONS:
            raise AttributeError(name)
        cdll = self.load()
        try:
            function: Any = getattr(cdll, name)
        except AttributeError:
            raise errors.LibraryError(f"{cdll._name} is too old: it has no {name}") from None
        function.restype, function.argtypes = FUNCTIONS[name]
        setattr(self, name, function)
        return function  # type: ignore[no-any-return]


lib = Library()


# ---- errors ----


def exception(record: ErrorRecord, code: int | None = None) -> errors.Error:
    """The exception of an error record. `code` is what the function returned, when the record may be unset."""
    if record.code == 0 and code is not None:
        return errors.make(code, (lib.pst_strerror(code) or b"?").decode("utf-8", "replace"))
    path = os.fsdecode(record.path) or None
    offset = None if record.offset == NO_OFFSET else record.offset
    return errors.make(record.code, record.message.decode("utf-8", "replace"), path, offset)


def check(status: int, record: ErrorRecord) -> int:
    """Raises what the record says if status is negative; returns status otherwise."""
    if status < 0:
        raise exception(record, status)
    return status


def call(function: Callable[..., int], *arguments: Any) -> int:
    """Calls a function whose last argument is `pst_error *err`, with one, and checks what it returns."""
    record = ErrorRecord()
    status: int = function(*arguments, byref(record))
    if status < 0:
        raise exception(record, status)
    return status


def timeout_ns(seconds: float | None) -> int:
    """A time-out of the library from one in seconds; None: for ever."""
    return FOREVER if seconds is None else min(FOREVER - 1, max(0, int(seconds * 1e9)))
