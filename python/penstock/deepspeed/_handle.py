# SPDX-License-Identifier: Apache-2.0
"""aio_handle: DeepSpeed's interface to asynchronous I/O, on the I/O library.

Every transfer is a batch of one operation, in a slot that is used again. Submitting is a look at the inode (`_files`),
the fields of the operation, and one call of the library; waiting is one call per operation.

What DeepSpeed leaves open or gets wrong is settled so:
 - any offset, length and alignment, and any split over intra_op_parallelism workers, works;
 - a transfer that cannot be started returns -1 at once and is not counted by wait(); one that fails later makes wait()
   (or the blocking call) return -1; both are logged with path, offset and cause;
 - a blocking pread or pwrite waits for everything that is pending, as DeepSpeed's does, and returns the count of all;
 - wait() with nothing pending returns 0;
 - transfers of one handle to overlapping bytes of a file happen in the order in which they were started;
 - nothing is truncated or synced by a write; truncate() and fsync() are there for it;
 - tensors that are not contiguous, or not in host memory, go through a copy in host memory.

Locks: a handle's lock is held while something is started, never while wait() waits.
"""

from __future__ import annotations

import atexit
import ctypes
import logging
import operator
import os
import threading
import weakref
from typing import TYPE_CHECKING, Any

from penstock import _native, errors
from penstock.deepspeed import _memory, _watch
from penstock.deepspeed._files import IDLE_S, File, Files, Key, name_of

if TYPE_CHECKING:
    import torch

log = logging.getLogger("penstock")

Path = str | bytes | os.PathLike[str] | os.PathLike[bytes]

PAGE_BYTES = 4096
MAX_BLOCK_BYTES = 1 << 30
MAX_DEPTH = 4096
MAX_WORKERS = 64
MAX_FREE_SLOTS = 256
VALIDATED_AT_ONCE_BYTES = 8 << 20

_lib = _native.lib
_handles: weakref.WeakSet[aio_handle] = weakref.WeakSet()
_MISSING = object()
# A pst_io_engine that handles use instead of the automatic choice: one that fails on purpose, in tests.
engine_table: int | None = None


class _Slot:
    """One transfer: what the library needs to know of it, and what keeps its memory alive."""

    __slots__ = (
        "batch",
        "buffer",
        "end",
        "file",
        "key",
        "lock",
        "op",
        "op_at",
        "outcome",
        "staging",
        "start",
        "validate",
    )

    key: Key
    file: File | None
    buffer: torch.Tensor | None
    staging: torch.Tensor | None  # host memory that stands in for the buffer's
    start: int  # in the file
    end: int
    validate: bool
    outcome: bool | None  # whether it went well; None: not known yet

    def __init__(self, io: int) -> None:
        self.op = _native.Op()
        self.op_at = ctypes.addressof(self.op)
        out = ctypes.c_void_p()
        _native.call(_lib.pst_io_batch_create, io, 1, ctypes.byref(out))
        self.batch: int | None = out.value
        self.outcome = None
        self.lock = threading.Lock()  # a batch belongs to one thread at a time


def _as_key(path: Path | int) -> Key:
    if type(path) is str:
        return path
    if isinstance(path, int) and not isinstance(path, bool):
        return int(path)
    key = os.fspath(path)  # type: ignore[arg-type]  # raises TypeError
    if isinstance(key, bytes):
        return key
    return str(key)


def _open_io(block_bytes: int, depth: int, single: bool, overlap: bool, workers: int) -> int:
    options = _native.sized(
        _native.IoOptions,
        block_size=min(max(-(-block_bytes // PAGE_BYTES), 1) * PAGE_BYTES, MAX_BLOCK_BYTES),
        queue_depth=min(depth, MAX_DEPTH),
        single_submit=single,
        overlap_events=_native.SWITCH_ON if overlap else _native.SWITCH_OFF,
        # One worker is the default, except for an engine whose threads carry out one I/O each: there it is several.
        workers=0 if workers == 1 else min(workers, MAX_WORKERS),
        engine_table=engine_table,
    )
    out = ctypes.c_void_p()
    _native.call(_lib.pst_io_open, ctypes.byref(options), ctypes.byref(out))
    assert out.value is not None
    return out.value


class aio_handle:
    """Asynchronous transfers between tensors and files. See the head of this module."""

    def __init__(
        self,
        block_size: int = 1024 * 1024,
        queue_depth: int = 128,
        single_submit: bool = False,
        overlap_events: bool = False,
        intra_op_parallelism: int = 1,
    ) -> None:
        self._io: int | None = None
        self._block_size = operator.index(block_size)
        self._queue_depth = operator.index(queue_depth)
        self._single_submit = bool(single_submit)
        self._overlap_events = bool(overlap_events)
        self._parallelism = operator.index(intra_op_parallelism)
        for name in ("block_size", "queue_depth", "parallelism"):
            if getattr(self, "_" + name) < 1:
                raise ValueError(f"{name.replace('par', 'intra_op_par')} must be at least 1")
        self._lock = threading.RLock()
        self._pending: list[_Slot] = []
        self._free: list[_Slot] = []
        # The locked memory that the last transfers were in, already known to the engine; empty: none.
        self._met_from = self._met_to = 0
        self._io = _open_io(
            self._block_size, self._queue_depth, self._single_submit, self._overlap_events, self._parallelism
        )
        self._files = Files(self._io)
        self._submit = _lib.pst_io_submit
        self._wait_for = _lib.pst_io_wait
        _handles.add(self)

    # ---- settings, as given ----

    def get_block_size(self) -> int:
        return self._block_size

    def get_queue_depth(self) -> int:
        return self._queue_depth

    def get_single_submit(self) -> bool:
        return self._single_submit

    def get_overlap_events(self) -> bool:
        return self._overlap_events

    def get_intra_op_parallelism(self) -> int:
        return self._parallelism

    def get_alignment(self) -> int:
        """What DeepSpeed's callers pad sizes to. Nothing here needs it."""
        return self._parallelism * 512

    # ---- blocking transfers ----

    def read(self, buffer: torch.Tensor, filename: Path, validate: bool, file_offset: int = 0) -> int:
        """Reads a whole file, which must have as many bytes as the buffer. 0 or -1."""
        key = _as_key(filename)
        try:
            file_bytes = os.stat(key).st_size
        except OSError as problem:
            log.error("read failed: %s", problem)
            return -1
        if buffer.nbytes != file_bytes - file_offset:
            log.error(
                "%s: read of the whole file failed: it has %d bytes from offset %d on, the buffer %d",
                name_of(key),
                max(file_bytes - file_offset, 0),
                file_offset,
                buffer.nbytes,
            )
            return -1
        return self._transfer_now(buffer, key, False, file_offset, validate)

    def write(self, buffer: torch.Tensor, filename: Path, validate: bool, file_offset: int = 0) -> int:
        """Writes the buffer. 0 or -1. What the file holds beyond it stays: other ranks may have written there."""
        return self._transfer_now(buffer, _as_key(filename), True, file_offset, validate)

    def _transfer_now(self, buffer: torch.Tensor, key: Key, write: bool, offset: int, validate: bool) -> int:
        slot = self._start(buffer, key, write, offset, validate)
        if slot is None:
            return -1
        good = self._complete(slot)
        self._recycle(slot)
        return 0 if good else -1

    def sync_pread(self, buffer: torch.Tensor, filename: Path, file_offset: int = 0) -> int:
        """Reads, and waits for all that is pending. The number of operations, that is 1 when none was; or -1."""
        return -1 if self._post(buffer, filename, False, file_offset, False) < 0 else self.wait()

    def sync_pwrite(self, buffer: torch.Tensor, filename: Path, file_offset: int = 0) -> int:
        """Writes, and waits for all that is pending. The number of operations, that is 1 when none was; or -1."""
        return -1 if self._post(buffer, filename, True, file_offset, False) < 0 else self.wait()

    # ---- with a choice: `async` is a word of the language now, and can only be given by position or in a dict ----

    def pread(
        self,
        buffer: torch.Tensor,
        filename: Path,
        validate: bool,
        async_: Any = _MISSING,
        file_offset: int = 0,
        **keywords: Any,
    ) -> int:
        """(buffer, filename, validate, async, file_offset=0): 0 or -1 if asynchronous, else as sync_pread."""
        later = _the_async("pread", async_, keywords)
        if self._post(buffer, filename, False, file_offset, validate) < 0:
            return -1
        return 0 if later else self.wait()

    def pwrite(
        self,
        buffer: torch.Tensor,
        filename: Path,
        validate: bool,
        async_: Any = _MISSING,
        file_offset: int = 0,
        **keywords: Any,
    ) -> int:
        """(buffer, filename, validate, async, file_offset=0): 0 or -1 if asynchronous, else as sync_pwrite."""
        later = _the_async("pwrite", async_, keywords)
        if self._post(buffer, filename, True, file_offset, validate) < 0:
            return -1
        return 0 if later else self.wait()

    # ---- asynchronous transfers ----

    def async_pread(self, buffer: torch.Tensor, filename: Path, file_offset: int = 0) -> int:
        """Starts to read; the buffer is the handle's until wait(). 0 or -1."""
        return self._post(buffer, filename, False, file_offset, False)

    def async_pwrite(
        self, buffer: torch.Tensor, filename: Path | int | None = None, file_offset: int = 0, *, fd: int | None = None
    ) -> int:
        """(buffer, filename, file_offset=0) or (buffer, fd, file_offset=0). Starts to write; the buffer is the
        handle's until wait(). The descriptor stays the caller's, who may close it at once. 0 or -1."""
        if (filename is None) == (fd is None):
            raise TypeError("async_pwrite() needs a filename or a descriptor (fd)")
        target = operator.index(fd) if fd is not None else filename
        return self._post(buffer, target, True, file_offset, False)  # type: ignore[arg-type]

    def wait(self) -> int:
        """Waits for all that is pending: the number of operations, or -1 when any of them failed."""
        with self._lock:
            slots, self._pending = self._pending, []
        count = failed = 0
        try:
            for slot in slots:
                if not self._complete(slot):
                    failed += 1
                count += 1
        finally:
            if count < len(slots):  # an exception: these can still be waited for
                with self._lock:
                    self._pending[:0] = slots[count:]
        for slot in slots:
            self._recycle(slot)
        return -1 if failed else count

    # ---- memory ----

    def new_cpu_locked_tensor(self, num_elem: int, example_tenosr: torch.Tensor) -> torch.Tensor:
        """A one-dimensional, page-aligned, locked tensor of the example's element type, contents undefined."""
        tensor = _memory.new_tensor(num_elem, example_tenosr.dtype)
        with self._lock:
            self._meet(tensor.data_ptr(), tensor.nbytes)
        return tensor

    def free_cpu_locked_tensor(self, tensor: torch.Tensor) -> bool:
        """Gives its memory back. False unless the tensor starts where a locked tensor starts."""
        return _memory.free(tensor.data_ptr())

    def is_pinned(self, buffer: torch.Tensor) -> bool:
        """Whether it is pinned by torch or lies in locked memory of this process, whichever handle made it."""
        return _memory.is_pinned(buffer)

    # ---- not in DeepSpeed ----

    def truncate(self, filename: Path, num_bytes: int) -> int:
        """Sets the length of a file. Nothing of it may be pending. 0 or -1."""
        return self._file_call(filename, "truncate", _lib.pst_io_file_truncate, operator.index(num_bytes))

    def fsync(self, filename: Path) -> int:
        """Makes what was written to a file, and waited for, durable. 0 or -1."""
        return self._file_call(filename, "fsync", _lib.pst_io_file_sync)

    def close(self) -> None:
        """Waits for what is pending, and ends the handle's threads. It happens by itself when the handle goes."""
        with self._lock:
            io, self._io = self._io, None
            if io is None:
                return
            slots, self._pending = self._pending, []
        for slot in slots:
            self._complete(slot)
            self._recycle(slot)
        with self._lock:
            with _memory._lock:
                for reference in list(_memory._regions.values()):
                    region = reference()
                    if region is not None and region.known_to.pop(self, False):
                        _lib.pst_io_unregister(io, region.start)
            for slot in self._free:
                _lib.pst_io_batch_destroy(slot.batch)
            self._free.clear()
            self._files.close_all()
            _lib.pst_io_close(io)
        _watch.remove(self)

    def __del__(self) -> None:
        if getattr(self, "_io", None) is not None:
            self.close()

    def __repr__(self) -> str:
        return (
            f"<{type(self).__name__} block_size={self._block_size} queue_depth={self._queue_depth} "
            f"single_submit={self._single_submit} overlap_events={self._overlap_events} "
            f"intra_op_parallelism={self._parallelism}>"
        )

    # ---- inside ----

    def _post(self, buffer: torch.Tensor, target: Path | int, write: bool, offset: int, validate: bool) -> int:
        with self._lock:
            slot = self._start(buffer, target if type(target) is str else _as_key(target), write, offset, validate)
            if slot is None:
                return -1
            self._pending.append(slot)
            return 0

    def _start(self, buffer: torch.Tensor, key: Key, write: bool, offset: int, validate: bool) -> _Slot | None:
        """Hands a transfer to the library; None after it said why not."""
        try:
            byte_count = buffer.nbytes
            plain = buffer.is_cpu and buffer.is_contiguous()
        except AttributeError:
            raise TypeError(f"a torch.Tensor is needed, not {type(buffer).__name__}") from None
        except RuntimeError as problem:
            raise ValueError(f"a tensor without bytes to transfer: {problem}") from problem
        staging = None if plain else self._stage(buffer, write)
        memory = buffer if staging is None else staging
        address = memory.data_ptr()
        with self._lock:
            io = self._io
            if io is None:
                raise errors.UsageError("the handle is closed, or of the parent process")
            try:
                if offset < 0:
                    raise errors.make(errors.E_USAGE, f"a transfer at the negative offset {offset}", name_of(key))
                end = offset + byte_count
                file = self._files.acquire(key, write, end)
                if not file.used_s:
                    _watch.add(self)
                if file.slots and file.may_conflict(write, offset, end):
                    self._keep_order(file, write, offset, end)
                if address < self._met_from or address + byte_count > self._met_to:
                    self._meet(address, byte_count)
                slot = self._free.pop() if self._free else _Slot(io)
            except OSError as problem:
                log.error("%s of %d bytes at offset %d failed: %s", _verb(write), byte_count, offset, problem)
                return None
            op = slot.op
            op.file = file.pointer
            op.offset = offset
            op.buffer = address
            op.bytes = byte_count
            op.kind = write  # PST_IO_READ is 0, PST_IO_WRITE is 1
            slot.key = key
            slot.file = file
            slot.buffer = buffer
            slot.staging = staging
            slot.start = offset
            slot.end = end
            slot.validate = validate
            slot.outcome = None
            record = self._files.record
            if self._submit(slot.batch, slot.op_at, 1, record) < 0:
                log.error("%s failed: %s", _verb(write), _native.exception(self._files.error))
                self._recycle(slot)
                return None
            file.add(slot, write)
            return slot

    def _stage(self, buffer: torch.Tensor, write: bool) -> torch.Tensor:
        """Contiguous host memory for a tensor that is none."""
        import torch

        if buffer.layout is not torch.strided or buffer.is_meta:
            raise ValueError(f"a {buffer.layout} tensor on {buffer.device} has no bytes to transfer")
        staging = torch.empty(buffer.shape, dtype=buffer.dtype, device="cpu")
        if write:
            staging.copy_(buffer.detach())
        return staging

    def _keep_order(self, file: File, write: bool, start: int, end: int) -> None:
        """Waits for transfers under way that this one must come after."""
        for slot in list(file.slots):
            if start < slot.end and slot.start < end and (write or slot.op.kind):
                self._complete(slot)

    def _complete(self, slot: _Slot) -> bool:
        """Waits for a transfer, looks at how it went, and lets its file go. Once; any further call says the same."""
        if slot.outcome is not None:
            return slot.outcome
        with slot.lock:
            status = self._wait_for(slot.batch, _native.FOREVER, None)
        with self._lock:
            if slot.outcome is None:
                slot.outcome = self._settle(slot, status)
                assert slot.file is not None
                self._files.release(slot.file, slot)
            return slot.outcome

    def _settle(self, slot: _Slot, status: int) -> bool:
        write = bool(slot.op.kind)
        if status < 0:
            record = _native.ErrorRecord()
            code = _lib.pst_io_op_error(slot.batch, 0, ctypes.byref(record))
            log.error(
                "%s of %d bytes failed: %s", _verb(write), slot.op.bytes, _native.exception(record, code or status)
            )
            return False
        if slot.validate and not _validate(slot):
            return False
        if slot.staging is not None and slot.buffer is not None and not write:
            import torch

            with torch.no_grad():
                slot.buffer.copy_(slot.staging)
        return True

    def _recycle(self, slot: _Slot) -> None:
        slot.file = slot.buffer = slot.staging = None
        if len(self._free) < MAX_FREE_SLOTS and self._io is not None:
            self._free.append(slot)
        else:
            _lib.pst_io_batch_destroy(slot.batch)

    def _meet(self, address: int, byte_count: int) -> None:
        """Makes the locked memory that a transfer lies in known to the engine. The lock is held."""
        region = _memory.find(address, byte_count)
        if region is None:
            return
        with _memory._lock:
            if self not in region.known_to:
                status = _lib.pst_io_register(self._io, region.start, region.bytes, None)
                region.known_to[self] = status >= 0  # else there are too many: it works, a little slower
            self._met_from, self._met_to = region.start, region.end

    def _unregister(self, region: _memory.Region) -> None:
        """The memory's lock is held."""
        if self._met_from == region.start:
            self._met_from = self._met_to = 0
        if region.known_to.pop(self, False) and self._io is not None:
            _lib.pst_io_unregister(self._io, region.start)

    def _leave_region(self, region: _memory.Region) -> bool:
        """Unregisters it, unless a transfer in it is under way."""
        with self._lock:
            for slot in self._files.under_way():
                address = slot.op.buffer or 0
                if address < region.end and region.start < address + slot.op.bytes:
                    return False
            with _memory._lock:
                self._unregister(region)
            return True

    def _file_call(self, filename: Path, verb: str, function: Any, *arguments: int) -> int:
        key = _as_key(filename)
        with self._lock:
            if self._io is None:
                raise errors.UsageError("the handle is closed, or of the parent process")
            try:
                os.stat(key)  # it is not to be created by this
                file = self._files.acquire(key, True, 0)
                self._keep_order(file, True, 0, 1 << 63)
                if not file.used_s:
                    _watch.add(self)
                _native.call(function, file.pointer, *arguments)
            except OSError as problem:
                log.error("%s failed: %s", verb, problem)
                return -1
        return 0

    def close_idle_files(self) -> bool:
        """For the thread of _watch: whether any are left."""
        with self._lock:
            if self._io is None:
                return False
            self._files.close_idle(IDLE_S)
            return len(self._files) > 0

    def _disown(self) -> None:
        """In a forked child: the threads are the parent's, and nothing of the handle may be touched."""
        self._io = None
        self._lock = threading.RLock()


def _verb(write: bool) -> str:
    return "write" if write else "read"


def _the_async(function: str, by_position: Any, keywords: dict[str, Any]) -> bool:
    value = keywords.pop("async", by_position)
    if keywords:
        raise TypeError(f"{function}() got an unexpected keyword argument {next(iter(keywords))!r}")
    if value is _MISSING:
        raise TypeError(f"{function}() needs a fourth argument, async")
    return bool(value)


def _validate(slot: _Slot) -> bool:
    """Compares memory with what the file has there, read another way."""
    op, name = slot.op, name_of(slot.key)
    try:
        with open(slot.key, "rb", buffering=0, closefd=not isinstance(slot.key, int)) as file:
            done = 0
            while done < op.bytes:
                wanted = min(VALIDATED_AT_ONCE_BYTES, op.bytes - done)
                there = os.pread(file.fileno(), wanted, op.offset + done)
                have = ctypes.string_at(op.buffer + done, len(there))
                if not there or there != have:
                    at = next((i for i, (a, b) in enumerate(zip(there, have, strict=False)) if a != b), 0)
                    log.error("%s: validation of a %s failed at offset %d", name, _verb(op.kind), op.offset + done + at)
                    return False
                done += len(there)
    except OSError as problem:
        log.error("validation of a %s failed: %s", _verb(op.kind), problem)
        return False
    return True


class gds_handle(aio_handle):
    """The interface of DeepSpeed's GPUDirect Storage handle. Tensors in host memory work as with aio_handle. Tensors in
    device memory do not, not yet: what needs them raises NotImplementedError. (aio_handle takes them, through a copy in
    host memory.)"""

    def get_alignment(self) -> int:
        return 512

    def new_pinned_device_tensor(self, num_elem: int, example_tenosr: torch.Tensor) -> torch.Tensor:
        raise _not_yet()

    def free_pinned_device_tensor(self, tensor: torch.Tensor) -> bool:
        raise _not_yet()

    def pin_device_tensor(self, tensor: torch.Tensor) -> bool:
        raise _not_yet()

    def unpin_device_tensor(self, tensor: torch.Tensor) -> bool:
        raise _not_yet()

    def _stage(self, buffer: torch.Tensor, write: bool) -> torch.Tensor:
        if not buffer.is_cpu:
            raise _not_yet()
        return super()._stage(buffer, write)


def _not_yet() -> NotImplementedError:
    return NotImplementedError(
        "penstock.deepspeed.gds_handle cannot use device memory yet; aio_handle can, through host memory"
    )


def aio_read(
    buffer: torch.Tensor,
    filename: Path,
    block_size: int,
    queue_depth: int,
    single_submit: bool,
    overlap_events: bool,
    validate: bool,
) -> int:
    """Reads a whole file, which must have as many bytes as the buffer. 0 or -1."""
    handle = aio_handle(block_size, queue_depth, single_submit, overlap_events)
    try:
        return handle.read(buffer, filename, validate)
    finally:
        handle.close()


def aio_write(
    buffer: torch.Tensor,
    filename: Path,
    block_size: int,
    queue_depth: int,
    single_submit: bool,
    overlap_events: bool,
    validate: bool,
) -> int:
    """Writes the buffer from the start of the file on. 0 or -1."""
    handle = aio_handle(block_size, queue_depth, single_submit, overlap_events)
    try:
        return handle.write(buffer, filename, validate)
    finally:
        handle.close()


def deepspeed_memcpy(dest: torch.Tensor, src: torch.Tensor) -> int:
    """Copies the values of one tensor to another of the same number of elements and type. 0."""
    import torch

    if dest.dtype != src.dtype or dest.numel() != src.numel():
        raise ValueError(f"{src.numel()} elements of {src.dtype} do not fit {dest.numel()} of {dest.dtype}")
    with torch.no_grad():
        dest.copy_(src.reshape(dest.shape))
    return 0


@atexit.register
def _close_all() -> None:
    _watch.stop()
    for handle in list(_handles):
        handle.close()


def _after_fork() -> None:
    for handle in list(_handles):
        handle._disown()
    _handles.clear()


os.register_at_fork(after_in_child=_after_fork)
