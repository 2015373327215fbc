# SPDX-License-Identifier: Apache-2.0
"""Many operations, files and threads; no descriptor and no thread left."""

from __future__ import annotations

import random
import resource
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from penstock.io import IO, Batch, Future, Read, Write, wait_any
from resources import Resources


def test_10_000_operations_under_one_ticket(tmp_path: Path, rng: random.Random, resources: Resources) -> None:
    count, size = 10_000, 512
    data = np.frombuffer(rng.randbytes(count * size), "u1").reshape(count, size)
    found = np.zeros_like(data)
    order = rng.sample(range(count), count)
    with IO() as io, io.open(tmp_path / "f", "w") as file:
        assert io.submit([Write(file, i * size, data[i]) for i in order]).result() == [size] * count
        batch = io.submit([Read(file, i * size, found[i]) for i in order])
        assert sorted(i for i, outcome in batch.as_completed() if outcome == size) == list(range(count))
    assert (found == data).all()
    resources.assert_back()


def test_10_000_futures_in_flight(io: IO, tmp_path: Path, rng: random.Random) -> None:
    count = 10_000
    data = rng.randbytes(count)
    (tmp_path / "f").write_bytes(data)
    with io.open(tmp_path / "f") as file:
        buffers = [bytearray(1) for _ in range(count)]
        futures = [file.submit_read(b, i) for i, b in enumerate(buffers)]
        remaining = threading.Semaphore(0)
        for future in futures:
            future.add_done_callback(lambda _: remaining.release())
        for _ in range(count):
            assert remaining.acquire(timeout=60)
    assert b"".join(buffers) == data


def test_1000_files(tmp_path: Path, rng: random.Random, resources: Resources) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 4096:
        pytest.skip("this process may not have 4096 descriptors")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 4096), hard))
    try:
        with IO() as io:
            files = [io.open(tmp_path / f"{i}", "w") for i in range(1000)]
            data = [rng.randbytes(700 + i) for i in range(1000)]
            io.submit([Write(f, 0, d) for f, d in zip(files, data, strict=True)]).result()
            found = [bytearray(len(d)) for d in data]
            io.submit([Read(f, 0, b) for f, b in zip(files, found, strict=True)]).result()
            assert found == data
        resources.assert_back()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_64_threads_each_with_a_handle(tmp_path: Path, resources: Resources) -> None:
    problems: list[BaseException] = []

    def work(number: int) -> None:
        try:
            rng = random.Random(number)
            data = rng.randbytes(100_000)
            with IO(queue_depth=4) as io, io.open(tmp_path / f"{number}", "w") as file:
                file.write_from(data)
                for _ in range(10):
                    offsets = [rng.randrange(90_000) for _ in range(8)]
                    buffers = [bytearray(1000) for _ in offsets]
                    futures = [file.submit_read(b, o) for b, o in zip(buffers, offsets, strict=True)]
                    wait_any(futures, 60)
                    assert [f.result(60) for f in futures] == [1000] * 8
                    assert buffers == [data[o : o + 1000] for o in offsets]
        except BaseException as problem:
            problems.append(problem)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(64)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert problems == [] and not any(thread.is_alive() for thread in threads)
    resources.assert_back()


def test_16_threads_share_a_handle_and_a_file(tmp_path: Path, rng: random.Random, resources: Resources) -> None:
    """Each thread has its own part of the file and uses every way of waiting; a model in memory is compared."""
    part = 50_000
    model = [bytearray(rng.randbytes(part)) for _ in range(16)]
    (tmp_path / "f").write_bytes(b"".join(model))
    seeds = [rng.randrange(1 << 30) for _ in model]
    problems: list[BaseException] = []

    def work(number: int) -> None:
        try:
            rng = random.Random(seeds[number])
            mine, base = model[number], number * part
            for _ in range(100):
                offset = rng.randrange(part - 600)
                size = rng.randrange(600)
                if rng.random() < 0.5:
                    mine[offset : offset + size] = data = rng.randbytes(size)
                    pending: Future | Batch = file.submit_write(data, base + offset)
                    buffer = None
                else:
                    buffer = bytearray(size)
                    pending = io.submit([Read(file, base + offset, buffer)])
                way = rng.randrange(4)
                if way == 0:
                    pending.result(60)
                elif way == 1:
                    assert wait_any([pending], 60) is pending
                elif way == 2:
                    event = threading.Event()
                    pending.add_done_callback(lambda _, e=event: e.set())  # type: ignore[misc]
                    assert event.wait(60)
                else:
                    while not pending.done():
                        time.sleep(0)
                assert pending.result(0) in (size, [size])
                assert buffer is None or buffer == mine[offset : offset + size]
        except BaseException as problem:
            problems.append(problem)

    with IO() as io, io.open(tmp_path / "f", "r+") as file:
        threads = [threading.Thread(target=work, args=(i,)) for i in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        assert problems == [] and not any(thread.is_alive() for thread in threads)
    assert (tmp_path / "f").read_bytes() == b"".join(model)
    resources.assert_back()
