# SPDX-License-Identifier: Apache-2.0
"""Transfers in asyncio: gathered, cancelled, timed out, in several loops, mixed with plain threads."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import warnings
from pathlib import Path

import pytest
from penstock.faults import FaultEngine
from penstock.io import IO, Error, File, Read, Sync, Write
from resources import Resources


def test_gather_500(io: IO, path: Path, contents: bytes) -> None:
    buffers = [bytearray(2000) for _ in range(500)]

    async def main(file: File) -> list[int]:
        return await asyncio.gather(*(file.submit_read(b, i * 2000) for i, b in enumerate(buffers)))

    with io.open(path) as file:
        assert asyncio.run(main(file)) == [2000] * 500
    assert b"".join(buffers) == contents[:1_000_000]


def test_await_in_turn_and_batches(io: IO, path: Path, contents: bytes) -> None:
    async def main(file: File) -> None:
        for i in range(200):
            buffer = bytearray(100)
            assert await file.submit_read(buffer, i * 100) == 100
            assert buffer == contents[i * 100 : i * 100 + 100]
        assert await io.submit([Write(file, 0, b"abc"), Sync(file), Read(file, 0, bytearray(3))]) == [3, 0, 3]
        done = file.submit_read(bytearray(5))
        done.result()
        assert await done == 5 == await done

    with io.open(path, "r+") as file:
        asyncio.run(main(file))


def test_errors_are_raised_where_they_are_awaited(io: IO, path: Path) -> None:
    async def main(file: File) -> list[object]:
        reads = [file.submit_read(bytearray(10), offset) for offset in (0, 1 << 30, 5)]
        return await asyncio.gather(*reads, return_exceptions=True)

    with io.open(path) as file:
        first, second, third = asyncio.run(main(file))
    assert (first, third) == (10, 10)
    assert isinstance(second, EOFError) and isinstance(second, Error) and second.filename == str(path)


def test_the_loop_runs_while_a_transfer_is_awaited(path: Path) -> None:
    async def main(file: File) -> int:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                await asyncio.sleep(0.005)
                ticks += 1

        ticker = asyncio.create_task(tick())
        await file.submit_read(bytearray(10))
        ticker.cancel()
        return ticks

    with FaultEngine("threads", ["delay"], delay=(0.3, 0.3)) as engine, IO(engine) as io, io.open(path) as file:
        assert asyncio.run(main(file)) > 5


def test_cancelling_a_task_waits_until_the_buffer_is_free(path: Path) -> None:
    """One worker, one I/O at a time: the first transfer ends, those that have not begun are dropped."""

    async def main(file: File) -> None:
        buffers = [bytearray(10) for _ in range(6)]
        tasks = [asyncio.ensure_future(file.submit_read(b)) for b in buffers]
        await asyncio.sleep(0.1)
        began = time.monotonic()
        for task in tasks:
            task.cancel()
        await asyncio.sleep(0)
        for task in tasks:
            task.cancel()  # impatience changes nothing
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(r, asyncio.CancelledError) for r in results)
        assert time.monotonic() - began < 2.0  # not six times 0.5 s
        for buffer in buffers:
            buffer.append(0)  # raises BufferError while it is pinned

    with FaultEngine("threads", ["delay"], delay=(0.5, 0.5)) as engine, IO(engine, workers=1) as io:
        with io.open(path) as file:
            asyncio.run(main(file))


def test_wait_for_times_out(path: Path) -> None:
    async def main(file: File) -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(file.submit_read(bytearray(10)), timeout=0.05)
        assert await asyncio.wait_for(file.submit_read(bytearray(10)), timeout=30) == 10

    with FaultEngine("threads", ["delay"], delay=(0.6, 0.6)) as engine, IO(engine) as io, io.open(path) as file:
        asyncio.run(main(file))


def test_several_loops_share_a_handle(io: IO, path: Path, contents: bytes) -> None:
    problems: list[BaseException] = []

    async def main(file: File, seed: int) -> None:
        for turn in range(20):
            offsets = [(seed * 7919 + turn * 101 + i * 13) % 1_000_000 for i in range(20)]
            buffers = [bytearray(64) for _ in offsets]
            await asyncio.gather(*(file.submit_read(b, o) for b, o in zip(buffers, offsets, strict=True)))
            assert buffers == [contents[o : o + 64] for o in offsets]

    def run(file: File, seed: int) -> None:
        try:
            asyncio.run(main(file, seed))
        except BaseException as problem:
            problems.append(problem)

    def block(file: File) -> None:
        try:
            for i in range(300):
                assert file.submit_read(bytearray(64), i).result() == 64
        except BaseException as problem:
            problems.append(problem)

    with io.open(path) as file:
        threads = [threading.Thread(target=run, args=(file, i)) for i in range(6)]
        threads += [threading.Thread(target=block, args=(file,)) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert not any(thread.is_alive() for thread in threads)
    assert problems == []


def test_a_future_from_outside_the_loop_awaited_by_several(path: Path) -> None:
    async def main(future: object) -> int:
        return await future  # type: ignore[misc,no-any-return]

    async def twice(future: object) -> list[int]:
        return await asyncio.gather(main(future), main(future))

    found: list[object] = []
    with FaultEngine("threads", ["delay"], delay=(0.2, 0.2)) as engine, IO(engine) as io, io.open(path) as file:
        future = file.submit_read(bytearray(10))
        threads = [threading.Thread(target=lambda: found.append(asyncio.run(main(future)))) for _ in range(3)]
        for thread in threads:
            thread.start()
        found.extend(asyncio.run(twice(future)))
        found.append(future.result())
        for thread in threads:
            thread.join()
    assert found == [10] * 6


def test_a_loop_that_is_torn_down_leaves_nothing(path: Path, contents: bytes, resources: Resources) -> None:
    with FaultEngine("threads", ["delay"], delay=(0.2, 0.2)) as engine, IO(engine) as io, io.open(path) as file:
        loop = asyncio.new_event_loop()
        buffer = bytearray(100)
        task = loop.create_task(asyncio.wait_for(file.submit_read(buffer), 30))
        loop.run_until_complete(asyncio.sleep(0.02))
        loop.close()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            task._log_destroy_pending = False  # type: ignore[attr-defined]
            del task, loop
            gc.collect()
        end = time.monotonic() + 20
        while True:
            try:
                buffer.append(0)
                break
            except BufferError:  # pinned until the transfer is over
                assert time.monotonic() < end
                time.sleep(0.01)
    resources.assert_back()


def test_loops_and_handles_come_and_go(path: Path, resources: Resources) -> None:
    async def main() -> None:
        with IO() as io, io.open(path) as file:
            assert await file.submit_read(bytearray(10)) == 10
            assert await asyncio.gather(*(file.submit_read(bytearray(10)) for _ in range(10))) == [10] * 10

    for _ in range(20):
        asyncio.run(main())
    resources.assert_back()


def test_closing_the_handle_under_an_awaiting_task(path: Path) -> None:
    async def main(io: IO, file: File) -> int:
        task = asyncio.ensure_future(file.submit_read(bytearray(10)))
        await asyncio.sleep(0.02)
        io.close()
        return await task

    with FaultEngine("threads", ["delay"], delay=(0.2, 0.2)) as engine, IO(engine) as io:
        assert asyncio.run(main(io, io.open(path))) == 10
