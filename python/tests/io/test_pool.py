# SPDX-License-Identifier: Apache-2.0
"""Pools: kinds of memory, the budget, return by garbage collection, closing in any order."""

from __future__ import annotations

import gc
import random
import threading
from pathlib import Path

import numpy as np
import pytest
from penstock.io import IO, MemoryBudgetError, Pool, UsageError
from resources import Resources

try:
    import torch
except ImportError:
    torch = None  # type: ignore[assignment]

MIB = 1 << 20


def test_kinds_of_memory(io: IO, path: Path, contents: bytes) -> None:
    with io.pool(64 * MIB) as pool, io.open(path) as file:
        buffer = pool.buffer(10_000)
        array = pool.numpy((3, 1000), "f4")
        assert isinstance(buffer, memoryview) and buffer.nbytes == 10_000 and not buffer.readonly
        assert array.shape == (3, 1000) and array.dtype == np.float32 and array.ctypes.data % 4096 == 0
        assert file.read_into([buffer, array]) == 22_000
        assert bytes(buffer) + array.tobytes() == contents[:22_000]
        assert pool.numpy(5).shape == (5,) and pool.numpy((2, 0)).size == 0
        assert pool.numpy(4, alignment=2 * MIB).ctypes.data % (2 * MIB) == 0
        stats = pool.stats()
        assert stats.out_count >= 2 and stats.out_bytes >= 22_000
        assert stats.budget_bytes == 64 * MIB and 0 < stats.held_bytes <= 64 * MIB
        assert pool.holds(buffer) and pool.holds(array[1:]) and not pool.holds(bytearray(5))


@pytest.mark.skipif(torch is None, reason="PyTorch is not installed")
def test_tensors(io: IO, path: Path, contents: bytes) -> None:
    with io.pool(64 * MIB) as pool, io.open(path) as file:
        tensor = pool.torch((4, 250), torch.bfloat16)
        assert tensor.shape == (4, 250) and tensor.dtype == torch.bfloat16 and tensor.is_contiguous()
        assert file.read_into(tensor) == 2000
        assert bytes(tensor.view(torch.uint8).numpy()) == contents[:2000]
        assert pool.holds(tensor) and pool.torch(3).dtype == torch.get_default_dtype()
        assert pool.torch((0, 4)).shape == (0, 4)
        view = tensor[1]
        del tensor
        gc.collect()
        assert pool.stats().out_count == 1 and view.shape == (250,)
        del view
        gc.collect()
        assert pool.stats().out_count == 0


def test_memory_comes_back_with_its_last_view() -> None:
    with Pool(32 * MIB) as pool:
        array = pool.numpy(1000, "f8")
        part = array[10:20].view("u1")
        del array
        gc.collect()
        assert pool.stats().out_count == 1
        del part
        gc.collect()
        assert pool.stats().out_count == 0
        for _ in range(200):
            pool.buffer(8 * MIB)[0] = 1


def test_the_budget_holds() -> None:
    with Pool(8 * MIB, arena=2 * MIB) as pool:
        kept = [pool.buffer(MIB)]
        with pytest.raises(MemoryBudgetError):
            while True:
                kept.append(pool.buffer(MIB))
        assert 4 <= len(kept) <= 8 and pool.stats().held_bytes <= 8 * MIB
        assert issubclass(MemoryBudgetError, MemoryError)
        count = len(kept)
        del kept
        gc.collect()
        assert len([pool.buffer(MIB) for _ in range(count)]) == count


@pytest.mark.parametrize("budget", [0, -1, 1 << 70])
def test_wrong_budgets(budget: int) -> None:
    with pytest.raises(ValueError):
        Pool(budget)


def test_wrong_requests() -> None:
    with Pool(4 * MIB) as pool:
        for size, alignment in ((-1, 0), (1 << 63, 0), (10, 3), (10, -8)):
            with pytest.raises((ValueError, MemoryError)):
                pool.buffer(size, alignment)
        with pytest.raises(ValueError):
            pool.numpy((-1, 4))
        with pytest.raises(ValueError):
            pool.numpy(4, object)
        gc.collect()
        assert pool.stats().out_count == 0
    with pytest.raises(UsageError, match="closed"):
        pool.buffer(1)


def test_memory_outlives_pool_and_handle(path: Path, contents: bytes, resources: Resources) -> None:
    """The handle's threads stay until the memory that the engine knows is back."""
    io = IO()
    pool = io.pool(16 * MIB)
    array = pool.numpy(4096)
    with io.open(path) as file:
        file.read_into(array)
    pool.close()
    io.close()
    assert io.closed and array.tobytes() == contents[:4096]
    array[:] = 7
    del array
    resources.assert_back()


def test_transfers_pin_pool_memory(io: IO, path: Path, contents: bytes) -> None:
    with io.pool(16 * MIB) as pool, io.open(path) as file:
        target = bytearray(4096)
        for _ in range(50):
            file.submit_read(pool.numpy(4096))  # array and future are dropped at once
        file.read_into(target)
        assert target == contents[:4096]


def test_many_threads_take_and_give(rng: random.Random) -> None:
    problems: list[BaseException] = []
    seeds = [rng.randrange(1 << 30) for _ in range(8)]

    def work(number: int) -> None:
        try:
            own = random.Random(seeds[number])
            kept: list[np.ndarray] = []
            for _ in range(300):
                array = pool.numpy(own.randrange(1, 20_000))
                array[:] = number
                kept.append(array)
                if len(kept) > 5:
                    assert (kept.pop(own.randrange(6)) == number).all()
        except BaseException as problem:
            problems.append(problem)

    with Pool(64 * MIB) as pool:
        threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        gc.collect()
        assert problems == [] and pool.stats().out_count == 0
