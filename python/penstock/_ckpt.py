# SPDX-License-Identifier: Apache-2.0
"""Checkpoints as ctypes sees them (include/penstock/ckpt.h), and what all that saves or loads with them shares.

`Tensors` is a C array of tensors together with all that must stay while the library looks at it. `Checkpoint` is an
opened one. Neither knows of torch.
"""

from __future__ import annotations

import ctypes
import os
import threading
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from ctypes import (
    CFUNCTYPE,
    POINTER,
    Structure,
    byref,
    c_bool,
    c_char_p,
    c_double,
    c_int,
    c_int64,
    c_size_t,
    c_uint32,
    c_uint64,
    c_void_p,
)
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

from penstock import _native as native
from penstock._native import lib
from penstock.errors import E_FORMAT, Error, FormatError, UsageError

# pst_ckpt_format
AUTO, SAFETENSORS, TORCH = range(3)

# pst_ckpt_stage
COPIED, DURABLE = range(2)

# pst_ckpt_kind
(
    NONE,
    BOOL,
    INT,
    FLOAT,
    COMPLEX,
    TEXT,
    BYTES,
    BYTEARRAY,
    LIST,
    TUPLE,
    SET,
    DICT,
    TENSOR,
    NAMED,
) = range(14)

# pst_dtype, by number
DTYPES = (
    "BOOL U8 I8 F8_E5M2 F8_E4M3 F8_E8M0 F4 F6_E2M3 F6_E3M2 I16 U16 F16 BF16 I32 U32 F32 F64 I64 U64 C64 "
    "F8_E4M3FNUZ F8_E5M2FNUZ C32 C128"
).split()
U8 = DTYPES.index("U8")
MAX_RANK = 8

SOURCE = CFUNCTYPE(c_int, c_void_p, c_uint64, c_uint64, c_void_p, POINTER(native.ErrorRecord))
ALL_GATHER = CFUNCTYPE(c_int, c_void_p, c_void_p, c_size_t, c_void_p)


# ---- structures ----


class TensorRecord(Structure):
    """pst_ckpt_tensor. Addresses are numbers: `Tensors` keeps what they point to."""

    _fields_ = [
        ("name", c_void_p),
        ("dtype", c_int),
        ("rank", c_uint32),
        ("shape", c_void_p),
        ("data", c_void_p),
        ("source", c_void_p),
        ("user", c_void_p),
    ]


class Pair(Structure):
    """pst_ckpt_pair"""

    _fields_ = [("key", c_char_p), ("value", c_char_p)]


class Ranks(Structure):
    """pst_ckpt_ranks"""

    _fields_ = [("rank", c_uint32), ("count", c_uint32), ("all_gather", ALL_GATHER), ("user", c_void_p)]


class Options(Structure):
    """pst_ckpt_options"""

    _fields_ = [
        ("struct_size", c_size_t),
        ("path", c_char_p),
        ("format", c_int),
        ("shard_bytes", c_uint64),
        ("metadata", POINTER(Pair)),
        ("metadata_count", c_size_t),
        ("pickle", c_void_p),
        ("pickle_bytes", c_size_t),
        ("no_digests", c_bool),
        ("ring_bytes", c_uint64),
        ("snapshot_bytes", c_uint64),
        ("bytes_per_second", c_uint64),
        ("ranks", POINTER(Ranks)),
        ("io", native.IoOptions),
        ("archive_name", c_char_p),
    ]


class ReportRecord(Structure):
    """pst_ckpt_report"""

    _fields_ = [
        ("struct_size", c_size_t),
        ("data_bytes", c_uint64),
        ("file_bytes", c_uint64),
        ("written_bytes", c_uint64),
        ("tensors", c_uint64),
        ("files", c_uint64),
        ("blocked_seconds", c_double),
        ("copied_seconds", c_double),
        ("seconds", c_double),
        ("io_engine", c_char_p),
        ("block_size", c_uint64),
        ("queue_depth", c_uint32),
        ("io_workers", c_uint32),
        ("direct", c_bool),
        ("retried", c_uint64),
        ("ring_bytes", c_uint64),
        ("buffers_in_flight", c_uint32),
    ]


class OpenOptions(Structure):
    """pst_ckpt_open_options"""

    _fields_ = [
        ("struct_size", c_size_t),
        ("path", c_char_p),
        ("verify", c_bool),
        ("io", native.IoOptions),
        ("ring_bytes", c_uint64),
    ]


class TensorInfoRecord(Structure):
    """pst_ckpt_tensor_info"""

    _fields_ = [
        ("name", c_char_p),
        ("dtype", c_int),
        ("rank", c_uint32),
        ("shape", POINTER(c_uint64)),
        ("strides", POINTER(c_int64)),
        ("bytes", c_uint64),
        ("storage", c_uint32),
        ("storage_begin", c_uint64),
        ("file", c_char_p),
        ("has_digest", c_bool),
    ]


class StorageInfoRecord(Structure):
    """pst_ckpt_storage_info"""

    _fields_ = [("dtype", c_int), ("bytes", c_uint64), ("file", c_char_p)]


class ReadOp(Structure):
    """pst_ckpt_read_op"""

    _fields_ = [
        ("tensor", c_size_t),
        ("start", c_void_p),
        ("stop", c_void_p),
        ("out", c_void_p),
        ("is_storage", c_bool),
    ]


class ValueRecord(Structure):
    """pst_ckpt_value"""

    _fields_ = [
        ("kind", c_int),
        ("integer", c_int64),
        ("number", c_double),
        ("imaginary", c_double),
        ("text", c_void_p),
        ("text_bytes", c_size_t),
        ("children", POINTER(c_uint32)),
        ("child_count", c_size_t),
        ("requires_grad", c_bool),
        ("conjugate", c_bool),
        ("negative", c_bool),
        ("attributes", c_uint32),
    ]


class CommitOptions(Structure):
    """pst_ckpt_commit_options"""

    _fields_ = [
        ("struct_size", c_size_t),
        ("keep_last", c_uint32),
        ("replace", c_bool),
        ("metadata", POINTER(Pair)),
        ("metadata_count", c_size_t),
    ]


# ---- functions ----

_ERR = POINTER(native.ErrorRecord)
_OUT = POINTER(c_void_p)
_TENSORS = POINTER(TensorRecord)

FUNCTIONS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "pst_ckpt_save": (c_int, (POINTER(Options), _TENSORS, c_size_t, POINTER(ReportRecord), _ERR)),
    "pst_ckpt_begin": (c_int, (POINTER(Options), _TENSORS, c_size_t, _OUT, _ERR)),
    "pst_ckpt_wait": (c_int, (c_void_p, c_int, c_uint64, _ERR)),
    "pst_ckpt_retry": (c_int, (c_void_p, _ERR)),
    "pst_ckpt_cancel": (None, (c_void_p,)),
    "pst_ckpt_hurry": (None, (c_void_p,)),
    "pst_ckpt_get_report": (c_int, (c_void_p, POINTER(ReportRecord))),
    "pst_ckpt_end": (None, (c_void_p,)),
    "pst_ckpt_open": (c_int, (POINTER(OpenOptions), _OUT, _ERR)),
    "pst_ckpt_close": (None, (c_void_p,)),
    "pst_ckpt_get_format": (c_int, (c_void_p,)),
    "pst_ckpt_tensor_count": (c_size_t, (c_void_p,)),
    "pst_ckpt_tensor_at": (c_int, (c_void_p, c_size_t, POINTER(TensorInfoRecord))),
    "pst_ckpt_find": (c_int64, (c_void_p, c_char_p)),
    "pst_ckpt_storage_count": (c_size_t, (c_void_p,)),
    "pst_ckpt_storage_at": (c_int, (c_void_p, c_size_t, POINTER(StorageInfoRecord))),
    "pst_ckpt_read": (c_int, (c_void_p, POINTER(ReadOp), c_size_t, _ERR)),
    "pst_ckpt_metadata": (c_char_p, (c_void_p, c_char_p)),
    "pst_ckpt_value_count": (c_size_t, (c_void_p,)),
    "pst_ckpt_value_at": (c_int, (c_void_p, c_size_t, POINTER(ValueRecord))),
    "pst_ckpt_step_begin": (c_int, (c_char_p, c_uint64, POINTER(Ranks), _OUT, _ERR)),
    "pst_ckpt_step_path": (c_char_p, (c_void_p,)),
    "pst_ckpt_step_commit": (c_int, (c_void_p, POINTER(CommitOptions), _ERR)),
    "pst_ckpt_step_end": (None, (c_void_p,)),
    "pst_ckpt_latest": (c_int, (c_char_p, POINTER(c_uint64), _OUT, _ERR)),
    "pst_ckpt_free_path": (None, (c_void_p,)),
    "pst_ckpt_steps": (c_int64, (c_char_p, POINTER(c_uint64), c_size_t, _ERR)),
    "pst_ckpt_sweep": (c_int, (c_char_p, POINTER(c_uint32), _ERR)),
}
native.FUNCTIONS.update(FUNCTIONS)


# ---- what every call needs ----


def fs_path(path: str | os.PathLike[str], what: str) -> bytes:
    """A path for the library. `what` is who takes it, for the refusal of anything else."""
    if hasattr(path, "write") or hasattr(path, "read"):
        raise UsageError(
            f"{what} takes a path, not a {type(path).__name__}: files are read and written past Python's file objects "
            "(torch.save and torch.load take those)"
        )
    try:
        name = os.fsencode(path)
    except TypeError:
        raise UsageError(f"{what} takes a path, not a {type(path).__name__}") from None
    if b"\0" in name:
        raise UsageError("a path with a zero byte in it")
    return name


def io_options(settings: Mapping[str, Any] | None) -> Any:
    """pst_io_options of the settings that penstock.io.IO takes, by name."""
    from penstock.io import make_options

    try:
        return make_options(**(settings or {}))
    except TypeError as problem:
        raise UsageError(f"settings of I/O: {problem}") from None


def metadata_pairs(metadata: Mapping[str, str] | None) -> Any:
    """An array of pst_ckpt_pair, or None. It holds its strings."""
    if not metadata:
        return None
    for key, value in metadata.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise UsageError(f"metadata is text: {key!r} is {value!r}")
        if "\0" in key or "\0" in value:
            raise UsageError(f"metadata with a zero character: {key!r}")
    return (Pair * len(metadata))(*[Pair(_utf8(k), _utf8(v)) for k, v in metadata.items()])


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise UsageError(f"{text!r} is no text that can be stored") from None


# ---- saving ----


@dataclass(frozen=True)
class Report:
    """What a save did. `data_bytes`: of the tensors; `written_bytes`: by this process; `seconds`: until durable."""

    data_bytes: int
    file_bytes: int
    written_bytes: int
    tensors: int
    files: int
    blocked_seconds: float
    copied_seconds: float
    seconds: float
    io_engine: str
    block_size: int
    queue_depth: int
    io_workers: int
    direct: bool
    retried: int
    ring_bytes: int
    buffers_in_flight: int

    @classmethod
    def of(cls, record: ReportRecord) -> Report:
        fields = {name: getattr(record, name) for name, *_ in ReportRecord._fields_[1:]}
        fields["io_engine"] = (record.io_engine or b"").decode()
        return cls(**fields)


Source = Callable[[int, int, int], None]  # (offset, bytes, address): puts a tensor's bytes there


class Tensors:
    """Tensors to be saved, in order: host memory as it lies, or a source that copies on demand.

    All that they point to is kept alive by this object, which must itself live until the save is over.
    """

    def __init__(self) -> None:
        # dtype, rank, place of the shape, address, source
        self._records: list[tuple[int, int, int, int, Source | None]] = []
        self._names = bytearray()
        self._name_places = array("Q")
        self._shapes = array("Q")
        self._keep: list[Any] = []
        self._table: Any = None
        self._call = SOURCE(self._source)  # holds self; `release` breaks the circle
        self.raised: BaseException | None = None  # by a source, in the library's thread

    def add(
        self, name: str, dtype: int, shape: Sequence[int], address: int, keep: Any, source: Source | None = None
    ) -> None:
        """`address`: where its bytes lie, row-major, held by `keep`; with a source, it is not looked at."""
        encoded = _utf8(name)
        if b"\0" in encoded:
            raise UsageError(f"a tensor's name with a zero character: {name!r}")
        if len(shape) > MAX_RANK:
            raise UsageError(f"tensor {name!r} has {len(shape)} dimensions, more than {MAX_RANK}")
        self._name_places.append(len(self._names))
        self._names += encoded + b"\0"
        self._records.append((dtype, len(shape), len(self._shapes), address, source))
        self._shapes.extend(shape)
        self._keep.append(keep)

    def add_bytes(self, sizes: Sequence[int], addresses: Sequence[int], keep: Sequence[Any]) -> None:
        """Bytes in memory, named by their places from 0: the same as to add each, in less time."""
        assert not self._records
        names = [b"%d\0" % number for number in range(len(sizes))]
        self._names += b"".join(names)
        self._name_places.extend(accumulate(map(len, names[:-1]), initial=0) if names else ())
        self._records = [(U8, 1, number, address, None) for number, address in enumerate(addresses)]
        self._shapes.extend(sizes)
        self._keep.extend(keep)

    def __len__(self) -> int:
        return len(self._records)

    def table(self) -> Any:
        """The array of pst_ckpt_tensor. Nothing can be added once it is made."""
        if self._table is not None:
            return self._table
        names = (ctypes.c_char * (len(self._names) + 1)).from_buffer_copy(self._names + b"\0")
        shapes = self._shapes.buffer_info()[0]
        first_name = ctypes.addressof(names)
        call = ctypes.cast(self._call, c_void_p).value
        table = (TensorRecord * len(self._records))()
        for index, (dtype, rank, shape, address, source) in enumerate(self._records):
            record = table[index]
            record.name = first_name + self._name_places[index]
            record.dtype = dtype
            record.rank = rank
            record.shape = shapes + 8 * shape
            if source is None:
                record.data = address or None
            else:
                record.source = call
                record.user = index
        self._keep.append(names)
        self._table = table
        return table

    def _source(self, user: int | None, offset: int, size: int, out: int, err: Any) -> int:
        """pst_ckpt_source: calls a tensor's own. Nothing is raised through C: what is, is kept."""
        try:
            source = self._records[user or 0][4]
            if source is None:
                raise UsageError("a tensor without a source")
            source(offset, size, out)
            return 0
        except BaseException as problem:
            self.raised = problem
            code = problem.code if isinstance(problem, Error) else -5  # EIO
            if err:
                err[0].code = code
                err[0].offset = native.NO_OFFSET
                err[0].path = b""
                err[0].message = f"a tensor cannot be copied from its device: {problem}".encode()[:500]
            return code

    def release(self) -> None:
        """Drops all that it holds. The library must be done with it."""
        self._table = None
        self._records = []
        self._keep = []
        del self._call


@dataclass
class Request:
    """Options of a save, and what they point to."""

    options: Options
    keep: tuple[Any, ...]


def request(
    path: bytes,
    *,
    format: int,
    digests: bool = True,
    shard_bytes: int = 0,
    metadata: Mapping[str, str] | None = None,
    pickle: Any = None,
    archive_name: str | None = None,
    ring_bytes: int = 0,
    snapshot_bytes: int = 0,
    bytes_per_second: int = 0,
    io: Mapping[str, Any] | None = None,
) -> Request:
    """pst_ckpt_options. `pickle`: data.pkl's bytes as something with a writable buffer, or bytes."""
    sizes = {"shard_bytes": shard_bytes, "ring_bytes": ring_bytes, "snapshot_bytes": snapshot_bytes}
    for name, value in {**sizes, "bytes_per_second": bytes_per_second}.items():
        if not isinstance(value, int) or not 0 <= value < 2**64:
            raise UsageError(f"{name} cannot be {value!r}")
    pairs = metadata_pairs(metadata)
    options: Options = native.sized(
        Options,
        path=path,
        format=format,
        no_digests=not digests,
        bytes_per_second=bytes_per_second,
        io=io_options(io),
        archive_name=None if archive_name is None else archive_name.encode(),
        **sizes,
    )
    if pairs is not None:
        options.metadata = pairs
        options.metadata_count = len(pairs)
    held = None
    if pickle is not None:
        from penstock._buffers import pin

        held = pin(pickle, writable=False)
        options.pickle = held.address
        options.pickle_bytes = held.nbytes
    engine = (io or {}).get("engine")
    return Request(options, (path, pairs, pickle, held, engine))


def save(what: Request, tensors: Tensors) -> Report:
    """pst_ckpt_save: returns when it is durable."""
    record = native.sized(ReportRecord)
    table = tensors.table()
    try:
        native.call(lib.pst_ckpt_save, byref(what.options), table, len(tensors), byref(record))
    except Error as problem:
        if tensors.raised is not None:
            raise problem from tensors.raised
        raise
    return Report.of(record)


# ---- loading ----


@dataclass(frozen=True)
class TensorInfo:
    """pst_ckpt_tensor_info: what a checkpoint says of a tensor."""

    index: int
    name: str
    dtype: int
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None
    nbytes: int
    storage: int
    storage_begin: int
    file: str
    has_digest: bool


def alone(info: TensorInfo) -> TensorInfo:
    """The same tensor, row-major in memory of its own."""
    return replace(info, strides=None, storage_begin=0)


@dataclass(frozen=True)
class Read:
    """One of the things that are read together: a tensor, a slice of one, or a storage, to an address."""

    number: int
    address: int
    start: tuple[int, ...] | None = None
    stop: tuple[int, ...] | None = None
    is_storage: bool = False


class Checkpoint:
    """An opened checkpoint. Any thread; closing waits for nobody: the last reader closes it."""

    def __init__(
        self,
        path: bytes,
        *,
        verify: bool = False,
        ring_bytes: int = 0,
        io: Mapping[str, Any] | None = None,
    ) -> None:
        self.path = os.fsdecode(path)
        self._engine = (io or {}).get("engine")  # a FaultEngine must outlive the handle
        options = native.sized(OpenOptions, path=path, verify=verify, ring_bytes=ring_bytes, io=io_options(io))
        out = c_void_p()
        self._lock = threading.Lock()
        self._users = 0
        self._closed = True
        native.call(lib.pst_ckpt_open, byref(options), byref(out))
        self._handle = out.value
        self._closed = False
        self.format: int = lib.pst_ckpt_get_format(self._handle)

    @contextmanager
    def using(self) -> Iterator[int]:
        """The handle, for a while in which it is not closed."""
        with self._lock:
            if self._closed or self._handle is None:
                raise UsageError("the checkpoint is closed", path=self.path)
            self._users += 1
            handle = self._handle
        try:
            yield handle
        finally:
            with self._lock:
                self._users -= 1
                ends = self._closed and self._users == 0
            if ends:
                self._end()

    def _end(self) -> None:
        handle, self._handle = self._handle, None
        if handle is not None:
            lib.pst_ckpt_close(handle)

    def close(self) -> None:
        with self._lock:
            ends = not self._closed and self._users == 0
            self._closed = True
        if ends:
            self._end()

    @property
    def closed(self) -> bool:
        return self._closed

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_lock", None) is not None:
            self.close()

    # ---- what is in it ----

    def tensor_count(self) -> int:
        with self.using() as handle:
            return int(lib.pst_ckpt_tensor_count(handle))

    def tensor(self, index: int) -> TensorInfo:
        out = TensorInfoRecord()
        with self.using() as handle:
            native.check(lib.pst_ckpt_tensor_at(handle, index, byref(out)), native.ErrorRecord())
            return TensorInfo(
                index,
                (out.name or b"").decode("utf-8", "surrogatepass"),
                out.dtype,
                tuple(out.shape[: out.rank]),
                tuple(out.strides[: out.rank]) if out.strides else None,
                out.bytes,
                out.storage,
                out.storage_begin,
                os.fsdecode(out.file or b""),
                out.has_digest,
            )

    def tensors(self) -> list[TensorInfo]:
        return [self.tensor(index) for index in range(self.tensor_count())]

    def storage_count(self) -> int:
        with self.using() as handle:
            return int(lib.pst_ckpt_storage_count(handle))

    def storage_bytes(self, number: int) -> int:
        out = StorageInfoRecord()
        with self.using() as handle:
            native.check(lib.pst_ckpt_storage_at(handle, number, byref(out)), native.ErrorRecord())
        return int(out.bytes)

    def metadata(self, key: str) -> str | None:
        with self.using() as handle:
            found = lib.pst_ckpt_metadata(handle, key.encode("utf-8", "surrogatepass"))
        return None if found is None else found.decode("utf-8", "surrogatepass")

    def value_count(self) -> int:
        with self.using() as handle:
            return int(lib.pst_ckpt_value_count(handle))

    def read(self, wanted: Sequence[Read]) -> None:
        """All of them at once. The memory at their addresses is the caller's to hold."""
        if not wanted:
            return
        table = (ReadOp * len(wanted))()
        bounds = array("Q")
        for read in wanted:
            bounds.extend(read.start or ())
            bounds.extend(read.stop or ())
        place = bounds.buffer_info()[0]
        for index, read in enumerate(wanted):
            op = table[index]
            op.tensor = read.number
            op.out = read.address or None
            op.is_storage = read.is_storage
            if read.start is not None and read.stop is not None:
                op.start = place
                place += 8 * len(read.start)
                op.stop = place
                place += 8 * len(read.stop)
        with self.using() as handle:
            native.call(lib.pst_ckpt_read, handle, table, len(wanted))

    def wrong(self, what: str) -> FormatError:
        """The error of a file whose content makes no sense."""
        return FormatError(what, E_FORMAT, self.path)
