# SPDX-License-Identifier: Apache-2.0
"""The interface that DeepSpeed's users call, used as DeepSpeed's own tests use theirs."""

from __future__ import annotations

import inspect
import multiprocessing
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from penstock import deepspeed as ours

torch = pytest.importorskip("torch")

BLOCK = 1024  # DeepSpeed tests with this one, far below a page
DEPTH = 2
PARALLEL = 2
IO_BYTES = 4 * BLOCK * DEPTH * PARALLEL

modes = pytest.mark.parametrize(
    "single_submit, overlap_events", [(False, False), (False, True), (True, False), (True, True)]
)
pinned_or_not = pytest.mark.parametrize("pinned", [True, False])
parallel_or_not = pytest.mark.parametrize("parallelism", [1, PARALLEL])


def buffer_of(handle: ours.aio_handle, source: torch.Tensor, pinned: bool) -> torch.Tensor:
    buffer = handle.new_cpu_locked_tensor(source.numel(), source) if pinned else torch.empty_like(source)
    buffer.copy_(source)
    assert handle.is_pinned(buffer) == pinned
    return buffer


def blank_of(handle: ours.aio_handle, count: int, pinned: bool) -> torch.Tensor:
    return buffer_of(handle, torch.zeros(count, dtype=torch.uint8), pinned)


def test_defaults(handles: Any) -> None:
    handle = handles()
    assert handle.get_block_size() == 1048576
    assert handle.get_queue_depth() == 128
    assert handle.get_single_submit() is False
    assert handle.get_overlap_events() is False
    assert handle.get_intra_op_parallelism() == 1
    assert handle.get_alignment() == 512


@modes
@parallel_or_not
@pytest.mark.parametrize("by_keyword", [True, False])
def test_settings(handles: Any, single_submit: bool, overlap_events: bool, parallelism: int, by_keyword: bool) -> None:
    values: dict[str, Any] = {
        "block_size": BLOCK,
        "queue_depth": DEPTH,
        "single_submit": single_submit,
        "overlap_events": overlap_events,
        "intra_op_parallelism": parallelism,
    }
    handle = handles(**values) if by_keyword else handles(*values.values())
    for name, value in values.items():
        assert getattr(handle, f"get_{name}")() == value
    assert handle.get_alignment() == parallelism * 512


def test_names_of_arguments() -> None:
    """As DeepSpeed names them; the misspelt one is the real one."""

    def names(function: Any) -> list[str]:
        return [name for name in inspect.signature(function).parameters if name != "self"]

    handle = ours.aio_handle
    for function in (handle.read, handle.write):
        assert names(function) == ["buffer", "filename", "validate", "file_offset"]
    for function in (handle.sync_pread, handle.sync_pwrite, handle.async_pread):
        assert names(function) == ["buffer", "filename", "file_offset"]
    assert names(handle.new_cpu_locked_tensor) == ["num_elem", "example_tenosr"]
    assert names(handle.free_cpu_locked_tensor) == ["tensor"]
    assert names(handle.is_pinned) == ["buffer"]
    assert names(ours.pin_handle.new_cpu_locked_tensor) == ["num_elem", "example_tensor"]
    whole = ["buffer", "filename", "block_size", "queue_depth", "single_submit", "overlap_events", "validate"]
    assert names(ours.aio_read) == names(ours.aio_write) == whole
    assert names(ours.deepspeed_memcpy) == ["dest", "src"]


@modes
@pinned_or_not
@parallel_or_not
class TestRead:
    @pytest.fixture()
    def handle(self, handles: Any, single_submit: bool, overlap_events: bool, parallelism: int) -> ours.aio_handle:
        return handles(BLOCK, DEPTH, single_submit, overlap_events, parallelism)

    @pytest.fixture()
    def source(self, random_bytes: Any, tmp_path: Path) -> tuple[torch.Tensor, str]:
        data = random_bytes(IO_BYTES)
        (tmp_path / "source").write_bytes(data.numpy().tobytes())
        return data, str(tmp_path / "source")

    def test_blocking(self, handle: ours.aio_handle, source: Any, pinned: bool) -> None:
        buffer = blank_of(handle, IO_BYTES, pinned)
        assert handle.sync_pread(buffer, source[1]) == 1
        assert torch.equal(buffer, source[0])

    def test_asynchronous(self, handle: ours.aio_handle, source: Any, pinned: bool) -> None:
        buffer = blank_of(handle, IO_BYTES, pinned)
        assert handle.async_pread(buffer, source[1]) == 0
        assert handle.wait() == 1
        assert torch.equal(buffer, source[0])

    def test_in_the_calling_thread(self, handle: ours.aio_handle, source: Any, pinned: bool) -> None:
        buffer = blank_of(handle, IO_BYTES, pinned)
        assert handle.read(buffer, source[1], False) == 0
        assert torch.equal(buffer, source[0])

    @pytest.mark.parametrize("validate", [True, False])
    def test_with_choice(self, handle: ours.aio_handle, source: Any, pinned: bool, validate: bool) -> None:
        buffer = blank_of(handle, IO_BYTES, pinned)
        assert handle.pread(buffer, source[1], validate, False) == 1
        assert torch.equal(buffer, source[0])
        buffer.zero_()
        assert handle.pread(buffer, source[1], validate, True) == 0
        assert handle.pread(buffer[512:], source[1], validate, True, 512) == 0
        assert handle.wait() == 2
        assert torch.equal(buffer, source[0])
        assert handle.pread(buffer=buffer, filename=source[1], validate=validate, **{"async": False}) == 1


@modes
@pinned_or_not
@parallel_or_not
class TestWrite:
    @pytest.fixture()
    def handle(self, handles: Any, single_submit: bool, overlap_events: bool, parallelism: int) -> ours.aio_handle:
        return handles(BLOCK, DEPTH, single_submit, overlap_events, parallelism)

    @pytest.fixture()
    def data(self, random_bytes: Any, handle: ours.aio_handle, pinned: bool) -> torch.Tensor:
        return buffer_of(handle, random_bytes(IO_BYTES), pinned)

    def test_blocking(self, handle: ours.aio_handle, data: torch.Tensor, tmp_path: Path) -> None:
        assert handle.sync_pwrite(data, str(tmp_path / "new")) == 1
        assert (tmp_path / "new").read_bytes() == data.numpy().tobytes()

    def test_asynchronous(self, handle: ours.aio_handle, data: torch.Tensor, tmp_path: Path) -> None:
        assert handle.async_pwrite(data, str(tmp_path / "new")) == 0
        assert handle.wait() == 1
        assert (tmp_path / "new").read_bytes() == data.numpy().tobytes()

    def test_in_the_calling_thread(self, handle: ours.aio_handle, data: torch.Tensor, tmp_path: Path) -> None:
        assert handle.write(data, str(tmp_path / "new"), False) == 0
        assert (tmp_path / "new").read_bytes() == data.numpy().tobytes()

    @pytest.mark.parametrize("validate", [True, False])
    def test_with_choice(self, handle: ours.aio_handle, data: torch.Tensor, tmp_path: Path, validate: bool) -> None:
        assert handle.pwrite(data, str(tmp_path / "new"), validate, False) == 1
        assert handle.pwrite(data, str(tmp_path / "later"), validate, True) == 0
        assert handle.wait() == 1
        for name in ("new", "later"):
            assert (tmp_path / name).read_bytes() == data.numpy().tobytes()

    @pytest.mark.parametrize("direct", [True, False])
    @pytest.mark.parametrize("by_keyword", [True, False])
    def test_by_descriptor(
        self, handle: ours.aio_handle, data: torch.Tensor, tmp_path: Path, direct: bool, by_keyword: bool
    ) -> None:
        flags = os.O_CREAT | os.O_WRONLY | (os.O_DIRECT if direct else 0)
        descriptor = os.open(tmp_path / "new", flags, 0o600)
        half = IO_BYTES // 2
        if by_keyword:
            assert handle.async_pwrite(buffer=data[:half], fd=descriptor) == 0
            assert handle.async_pwrite(buffer=data[half:], fd=descriptor, file_offset=half) == 0
        else:
            assert handle.async_pwrite(data[:half], descriptor, 0) == 0
            assert handle.async_pwrite(data[half:], descriptor, half) == 0
        os.fsync(descriptor)  # still the caller's
        assert handle.wait() == 2
        os.close(descriptor)
        assert (tmp_path / "new").read_bytes() == data.numpy().tobytes()


@pinned_or_not
@pytest.mark.parametrize("count", [2, 3])
class TestQueue:
    """Several operations under one wait()."""

    def test_reads(self, handles: Any, random_bytes: Any, tmp_path: Path, pinned: bool, count: int) -> None:
        handle = handles(BLOCK, DEPTH, True, True, PARALLEL)
        data = [random_bytes(IO_BYTES) for _ in range(count)]
        for i, one in enumerate(data):
            (tmp_path / str(i)).write_bytes(one.numpy().tobytes())
        buffers = [blank_of(handle, IO_BYTES, pinned) for _ in range(count)]
        for i, buffer in enumerate(buffers):
            assert handle.async_pread(buffer, str(tmp_path / str(i))) == 0
        assert handle.wait() == count
        assert handle.wait() == 0
        assert all(torch.equal(a, b) for a, b in zip(buffers, data, strict=True))

    def test_writes(self, handles: Any, random_bytes: Any, tmp_path: Path, pinned: bool, count: int) -> None:
        handle = handles(BLOCK, DEPTH, True, True, PARALLEL)
        data = [buffer_of(handle, random_bytes(IO_BYTES), pinned) for _ in range(count)]
        for i, one in enumerate(data):
            assert handle.async_pwrite(one, str(tmp_path / str(i))) == 0
        assert handle.wait() == count
        for i, one in enumerate(data):
            assert (tmp_path / str(i)).read_bytes() == one.numpy().tobytes()

    def test_blocking_one_counts_all(
        self, handles: Any, random_bytes: Any, tmp_path: Path, pinned: bool, count: int
    ) -> None:
        handle = handles()
        data = buffer_of(handle, random_bytes(IO_BYTES), pinned)
        for i in range(count):
            assert handle.async_pwrite(data, str(tmp_path / str(i))) == 0
        assert handle.sync_pwrite(data, str(tmp_path / "last")) == count + 1
        assert handle.wait() == 0


@pinned_or_not
@pytest.mark.parametrize("parts", [[1, 1, 1], [1, 1, 2], [1, 2, 1], [2, 1, 1]])
class TestOffsets:
    """Parts of a file, in units of 512 bytes."""

    UNIT = 512

    def test_writes(self, handles: Any, random_bytes: Any, tmp_path: Path, pinned: bool, parts: list[int]) -> None:
        handle = handles(BLOCK, DEPTH, True, True, PARALLEL)
        data = buffer_of(handle, random_bytes(sum(parts) * self.UNIT), pinned)
        at = 0
        for part in parts:
            end = at + part * self.UNIT
            assert handle.sync_pwrite(data[at:end], str(tmp_path / "new"), at) == 1
            at = end
            assert (tmp_path / "new").read_bytes() == data[:at].numpy().tobytes()

    def test_reads(self, handles: Any, random_bytes: Any, tmp_path: Path, pinned: bool, parts: list[int]) -> None:
        handle = handles(BLOCK, DEPTH, True, True, PARALLEL)
        data = random_bytes(sum(parts) * self.UNIT)
        (tmp_path / "source").write_bytes(data.numpy().tobytes())
        buffer = blank_of(handle, data.numel(), pinned)
        at = 0
        for part in parts:
            end = at + part * self.UNIT
            assert handle.sync_pread(buffer[at:end], str(tmp_path / "source"), file_offset=at) == 1
            at = end
        assert torch.equal(buffer, data)


def write_part(path: str, rank: int, part_bytes: int, ready: Any) -> None:
    handle = ours.aio_handle(BLOCK, DEPTH, True, True, PARALLEL)
    data = torch.full((part_bytes,), rank + 1, dtype=torch.uint8)
    ready.wait()
    assert handle.async_pwrite(data, path, rank * part_bytes) == 0
    assert handle.wait() == 1


@pytest.mark.parametrize("part_bytes", [512, 4096, 5000, 1 << 20])
def test_ranks_write_parts_of_one_file(tmp_path: Path, part_bytes: int) -> None:
    ranks = 2
    context = multiprocessing.get_context("forkserver")
    ready = context.Barrier(ranks)
    processes = [
        context.Process(target=write_part, args=(str(tmp_path / "shared"), rank, part_bytes, ready))
        for rank in range(ranks)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    wanted = b"".join(bytes([rank + 1]) * part_bytes for rank in range(ranks))
    assert (tmp_path / "shared").read_bytes() == wanted


@pytest.mark.parametrize("overlap_events", [True, False])
@pytest.mark.parametrize("validate", [True, False])
def test_functions(random_bytes: Any, tmp_path: Path, overlap_events: bool, validate: bool) -> None:
    data = random_bytes(IO_BYTES)
    path = str(tmp_path / "file")
    assert ours.aio_write(data, path, BLOCK, DEPTH, False, overlap_events, validate) == 0
    assert (tmp_path / "file").read_bytes() == data.numpy().tobytes()
    buffer = torch.zeros_like(data)
    assert ours.aio_read(buffer, path, BLOCK, DEPTH, False, overlap_events, validate) == 0
    assert torch.equal(buffer, data)


def test_memcpy(random_bytes: Any) -> None:
    source = random_bytes(1 << 20).view(torch.float32)
    dest = torch.empty_like(source)
    assert ours.deepspeed_memcpy(dest, source) == 0
    assert torch.equal(dest.view(torch.uint8), source.view(torch.uint8))
    columns = torch.zeros(4, 6)
    assert ours.deepspeed_memcpy(columns.t(), torch.arange(24.0).reshape(6, 4)) == 0
    assert torch.equal(columns.t(), torch.arange(24.0).reshape(6, 4))
    with pytest.raises(ValueError):
        ours.deepspeed_memcpy(torch.empty(3), torch.empty(4))


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.bool, torch.float8_e4m3fn]
)
def test_element_types(handles: Any, tmp_path: Path, dtype: torch.dtype) -> None:
    handle = handles()
    tensor = handle.new_cpu_locked_tensor(1000, torch.empty(0, dtype=dtype))
    assert tensor.dtype == dtype and tensor.shape == (1000,) and tensor._base is None
    tensor.view(torch.uint8).fill_(1)
    assert handle.sync_pwrite(tensor, tmp_path / "file") == 1  # any kind of path
    back = torch.empty(10, 100, dtype=dtype)
    assert handle.sync_pread(back, os.fsencode(tmp_path / "file")) == 1
    assert torch.equal(back.view(torch.uint8).flatten(), tensor.view(torch.uint8))


def test_tensors_that_are_not_contiguous(handles: Any, random_bytes: Any, tmp_path: Path) -> None:
    handle = handles()
    data = random_bytes(64 * 48).view(64, 48)
    assert handle.sync_pwrite(data.t(), str(tmp_path / "file")) == 1
    assert (tmp_path / "file").read_bytes() == data.t().contiguous().numpy().tobytes()
    back = torch.zeros(64, 48, dtype=torch.uint8)
    assert handle.sync_pread(back.t(), str(tmp_path / "file")) == 1
    assert torch.equal(back, data)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_tensors_in_device_memory(handles: Any, random_bytes: Any, tmp_path: Path) -> None:
    handle = handles()
    data = random_bytes(100_000).cuda()
    assert handle.async_pwrite(data, str(tmp_path / "file")) == 0
    assert handle.wait() == 1
    back = torch.zeros_like(data)
    assert handle.async_pread(back, str(tmp_path / "file")) == 0
    assert handle.wait() == 1
    assert torch.equal(back, data)
    assert not handle.is_pinned(data)
    gds = ours.gds_handle()
    with pytest.raises(NotImplementedError, match="yet"):
        gds.sync_pread(back, str(tmp_path / "file"))


def test_gds_handle(random_bytes: Any, tmp_path: Path) -> None:
    handle = ours.gds_handle(intra_op_parallelism=4)
    assert handle.get_alignment() == 512
    data = random_bytes(10_000)
    assert handle.sync_pwrite(data, str(tmp_path / "file")) == 1
    back = torch.zeros_like(data)
    assert handle.sync_pread(back, str(tmp_path / "file")) == 1
    assert torch.equal(back, data)
    for call in (
        lambda: handle.new_pinned_device_tensor(10, data),
        lambda: handle.pin_device_tensor(data),
        lambda: handle.unpin_device_tensor(data),
        lambda: handle.free_pinned_device_tensor(data),
    ):
        with pytest.raises(NotImplementedError, match="yet"):
            call()


def test_arguments_of_wrong_types(handles: Any, tmp_path: Path) -> None:
    handle = handles()
    data = torch.zeros(8)
    for call in (
        lambda: handle.sync_pread([1, 2], "file"),
        lambda: handle.sync_pwrite(data, None),
        lambda: handle.async_pwrite(data),
        lambda: handle.pread(data, "file", False),
        lambda: handle.pwrite(data, "file", False, False, offset=1),
        lambda: handle.new_cpu_locked_tensor(1.5, data),
        lambda: ours.aio_handle("big"),
    ):
        with pytest.raises(TypeError):
            call()
    for call in (
        lambda: ours.aio_handle(block_size=0),
        lambda: ours.aio_handle(queue_depth=-1),
        lambda: ours.aio_handle(intra_op_parallelism=0),
        lambda: handle.sync_pwrite(torch.empty(8, device="meta"), str(tmp_path / "file")),
        lambda: handle.sync_pwrite(torch.eye(3).to_sparse(), str(tmp_path / "file")),
    ):
        with pytest.raises((ValueError, TypeError)):
            call()


def test_same_bytes_of_a_file_in_order(handles: Any, tmp_path: Path) -> None:
    """Without a wait() between, as with a queue that is worked off from its front."""
    handle = handles()
    path = str(tmp_path / "file")
    sizes = [3 << 20, 1 << 20, 5000, 4096]
    for _ in range(5):
        for value, size in enumerate(sizes, 1):
            assert handle.async_pwrite(torch.full((size,), value, dtype=torch.uint8), path) == 0
        back = torch.zeros(sizes[0], dtype=torch.uint8)
        assert handle.async_pread(back, path) == 0
        assert handle.wait() == len(sizes) + 1
        ends = [*sizes[1:], 0]
        for value, (size, end) in enumerate(zip(sizes, ends, strict=True), 1):
            assert bool((back[end:size] == value).all())


def test_a_handle_in_each_of_64_threads(random_bytes: Any, tmp_path: Path) -> None:
    data = random_bytes(300_000)
    problems: list[str] = []

    def work(number: int) -> None:
        try:
            handle = ours.aio_handle(block_size=65536, queue_depth=4, intra_op_parallelism=1 + number % 2)
            path = str(tmp_path / str(number))
            buffer = handle.new_cpu_locked_tensor(data.numel(), data)
            for _ in range(3):
                assert handle.async_pwrite(data, path) == 0
                assert handle.wait() == 1
                buffer.zero_()
                assert handle.sync_pread(buffer, path) == 1
                assert torch.equal(buffer, data)
            assert handle.free_cpu_locked_tensor(buffer)
        except BaseException as problem:
            problems.append(repr(problem))
            raise

    threads = [threading.Thread(target=work, args=(i,)) for i in range(64)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems


def test_a_handle_shared_by_threads(handles: Any, random_bytes: Any, tmp_path: Path) -> None:
    handle = handles(block_size=65536)
    data = random_bytes(1 << 20)
    counts: list[int] = []

    def work(number: int) -> None:
        for i in range(20):
            assert handle.async_pwrite(data, str(tmp_path / f"{number}-{i % 4}")) == 0
            if i % 5 == 4:
                counts.append(handle.wait())

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert min(counts) >= 0 and sum(counts) + handle.wait() == 160
    assert all(path.read_bytes() == data.numpy().tobytes() for path in tmp_path.iterdir())


def test_ten_thousand_operations_in_flight(handles: Any, random_bytes: Any, tmp_path: Path) -> None:
    handle = handles()
    files, each = 100, 100
    data = random_bytes(files * each * 512)
    for i in range(files * each):
        path = str(tmp_path / str(i // each))
        assert handle.async_pwrite(data[i * 512 : (i + 1) * 512], path, i % each * 512) == 0
    assert handle.wait() == files * each
    for i in range(files):
        assert (tmp_path / str(i)).read_bytes() == data[i * each * 512 : (i + 1) * each * 512].numpy().tobytes()
    back = torch.zeros_like(data)
    for i in range(files * each):
        path = str(tmp_path / str(i // each))
        assert handle.async_pread(back[i * 512 : (i + 1) * 512], path, i % each * 512) == 0
    assert handle.wait() == files * each
    assert torch.equal(back, data)
