# SPDX-License-Identifier: Apache-2.0
"""Locked tensors: what they are, who knows them, and what becomes of them."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest
from interpreters import run_python
from penstock import deepspeed as ours
from penstock.deepspeed import _memory

torch = pytest.importorskip("torch")

EXAMPLE = torch.empty(0, dtype=torch.uint8)


def locked_bytes() -> int:
    """Of this process, as the system counts them."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmLck:"))


def resident_bytes() -> int:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * _memory.PAGE_BYTES


@pytest.fixture(params=["aio_handle", "pin_handle"])
def maker(request: Any, handles: Any) -> Any:
    return handles() if request.param == "aio_handle" else ours.pin_handle()


@pytest.mark.parametrize("count", [1, 4096, 5000, 3_000_000])
def test_new_tensor(maker: Any, count: int) -> None:
    gc.collect()
    before = locked_bytes()
    tensor = maker.new_cpu_locked_tensor(count, torch.empty(0, dtype=torch.float32))
    assert tensor.shape == (count,) and tensor.dtype == torch.float32 and tensor.device.type == "cpu"
    assert tensor.data_ptr() % _memory.PAGE_BYTES == 0
    tensor.fill_(1.0)
    assert float(tensor.sum(dtype=torch.float64)) == count
    region = _memory.find(tensor.data_ptr(), tensor.nbytes)
    assert region is not None
    if region.locked:
        assert locked_bytes() - before >= tensor.nbytes
    assert maker.free_cpu_locked_tensor(tensor) is True
    assert locked_bytes() == before


def test_is_pinned(maker: Any, handles: Any) -> None:
    """Views too, and whoever is asked."""
    tensor = maker.new_cpu_locked_tensor(10_000, EXAMPLE)
    neighbour = maker.new_cpu_locked_tensor(10_000, EXAMPLE)
    for asked in (maker, handles(), ours.gds_handle(), ours.pin_handle()):
        assert asked.is_pinned(tensor)
        assert asked.is_pinned(tensor[5000:5001])
        assert asked.is_pinned(tensor.view(torch.int16).reshape(50, 100)[7])
        assert asked.is_pinned(neighbour)
        assert not asked.is_pinned(torch.empty(10_000))
        assert not asked.is_pinned(torch.empty(8, device="meta"))
    beyond = torch.frombuffer(_memory.find(tensor.data_ptr(), 1), dtype=torch.uint8)
    assert beyond.numel() > tensor.numel()
    assert not maker.is_pinned(beyond[tensor.numel() - 1 : tensor.numel() + 1])


def test_free(maker: Any) -> None:
    tensor = maker.new_cpu_locked_tensor(10_000, EXAMPLE)
    assert maker.free_cpu_locked_tensor(tensor[1:]) is False
    assert maker.free_cpu_locked_tensor(torch.empty(5)) is False
    assert maker.is_pinned(tensor)
    other = ours.pin_handle()  # not the one that made it
    assert other.free_cpu_locked_tensor(tensor[:7]) is True  # what counts is where it starts
    assert maker.free_cpu_locked_tensor(tensor) is False
    assert not maker.is_pinned(tensor)


def test_free_by_address() -> None:
    handle = ours.pin_handle()
    tensor = handle.new_cpu_locked_tensor(10_000, EXAMPLE)
    assert handle.free_cpu_locked_tensor_by_ptr(tensor.data_ptr() + 1) is False
    assert handle.free_cpu_locked_tensor_by_ptr(address=tensor.data_ptr()) is True
    assert handle.free_cpu_locked_tensor_by_ptr(tensor.data_ptr()) is False


def test_memory_goes_at_once_when_freed_and_views_stay_harmless(handles: Any) -> None:
    handle = handles()
    gc.collect()
    before = resident_bytes()
    tensor = handle.new_cpu_locked_tensor(64 << 20, EXAMPLE).fill_(9)
    view = tensor[1000:2000]
    assert resident_bytes() - before > 60 << 20
    assert handle.free_cpu_locked_tensor(tensor) is True
    assert resident_bytes() - before < 20 << 20
    assert not bool(view.any())
    view.fill_(1)
    assert int(view.sum()) == 1000
    other = handle.new_cpu_locked_tensor(64 << 20, EXAMPLE).fill_(3)
    assert int(view.sum()) == 1000 and int(other[0]) == 3


def test_memory_goes_with_its_last_tensor(handles: Any, random_bytes: Any, tmp_path: Path) -> None:
    handle = handles()
    gc.collect()
    before, regions = locked_bytes(), len(_memory._regions)
    for _ in range(10):
        tensor = handle.new_cpu_locked_tensor(1 << 20, EXAMPLE)
        view = tensor[100:]
        del tensor
        assert len(_memory._regions) == regions + 1
        assert handle.sync_pwrite(view, str(tmp_path / "file")) == 1
        del view
    assert len(_memory._regions) == regions
    assert locked_bytes() == before


def test_freed_while_it_is_written(handles: Any, random_bytes: Any, tmp_path: Path) -> None:
    handle = handles()
    data = random_bytes(16 << 20)
    tensor = handle.new_cpu_locked_tensor(data.numel(), EXAMPLE).copy_(data)
    assert handle.async_pwrite(tensor, str(tmp_path / "file")) == 0
    assert handle.free_cpu_locked_tensor(tensor) is True
    del tensor
    assert handle.wait() == 1
    assert (tmp_path / "file").read_bytes() == data.numpy().tobytes()


def test_new_memory_at_old_addresses(handles: Any, random_bytes: Any, tmp_path: Path) -> None:
    """What an engine knows of memory that went must not be used for what comes in its place."""
    first, second = handles(), handles(intra_op_parallelism=2)
    addresses = set()
    path = str(tmp_path / "file")
    for i in range(30):
        data = random_bytes(3 << 20)
        tensor = first.new_cpu_locked_tensor(data.numel(), EXAMPLE).copy_(data)
        addresses.add(tensor.data_ptr())
        assert second.sync_pwrite(tensor, path) == 1
        tensor.zero_()
        assert first.sync_pread(tensor, path) == 1
        assert torch.equal(tensor, data)
        if i % 2:
            first.free_cpu_locked_tensor(tensor)
        del tensor
    assert len(addresses) < 30


def test_more_tensors_than_an_engine_takes(handles: Any, random_bytes: Any, tmp_path: Path) -> None:
    handle = handles()
    data = random_bytes(8192)
    tensors = [handle.new_cpu_locked_tensor(8192, EXAMPLE).copy_(data) for _ in range(100)]
    for i, tensor in enumerate(tensors):
        assert handle.async_pwrite(tensor, str(tmp_path / "file"), i * 8192) == 0
    assert handle.wait() == 100
    assert (tmp_path / "file").read_bytes() == data.numpy().tobytes() * 100


def test_tensor_outlives_its_handle(random_bytes: Any) -> None:
    handle = ours.aio_handle()
    tensor = handle.new_cpu_locked_tensor(1 << 20, EXAMPLE).fill_(5)
    handle.close()
    del handle
    assert bool((tensor == 5).all()) and ours.pin_handle().is_pinned(tensor)


@pytest.mark.parametrize("count", [0, -1])
def test_sizes(maker: Any, count: int) -> None:
    if count == 0:
        assert maker.new_cpu_locked_tensor(0, EXAMPLE).numel() == 0
    else:
        with pytest.raises(ValueError):
            maker.new_cpu_locked_tensor(count, EXAMPLE)


def test_too_much(maker: Any) -> None:
    """There, it ends the process."""
    with pytest.raises(MemoryError):
        maker.new_cpu_locked_tensor(1 << 50, EXAMPLE)


def test_limit_of_locked_memory(tmp_path: Path) -> None:
    """There, it ends the process. Here it works unlocked, and says so once."""
    code = """
import ctypes, logging, os, resource, sys, torch
resource.setrlimit(resource.RLIMIT_MEMLOCK, (65536, 65536))
# Root may lock all it likes: CAP_IPC_LOCK (14) is given up, by capget and capset (x86-64: 125 and 126).
header, sets = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
libc = ctypes.CDLL(None, use_errno=True)
assert libc.syscall(125, header, sets) == 0
for i in range(2):
    sets[i] &= ~(1 << 14)
assert libc.syscall(126, header, sets) == 0
logging.basicConfig()
from penstock import deepspeed as ours
handle = ours.aio_handle()
a, b = (handle.new_cpu_locked_tensor(3 << 20, torch.empty(0, dtype=torch.uint8)).fill_(7) for _ in range(2))
assert handle.is_pinned(a) and handle.is_pinned(b[100:])
assert handle.sync_pwrite(a, sys.argv[1]) == 1
b.zero_()
assert handle.sync_pread(b, sys.argv[1]) == 1
assert torch.equal(a, b)
assert handle.free_cpu_locked_tensor(a) and not handle.free_cpu_locked_tensor(a)
"""
    done = run_python(code, str(tmp_path / "file"))
    assert done.stderr.count("RLIMIT_MEMLOCK is 65536") == 1
