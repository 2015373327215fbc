# SPDX-License-Identifier: Apache-2.0
"""What goes wrong in DeepSpeed's own operator and must not go wrong here. Each test says what it is."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from interpreters import run_python
from penstock import _native
from penstock import deepspeed as ours

torch = pytest.importorskip("torch")


class TestErrorsAreReported:
    """There, the result of an I/O is never looked at: whatever happens is success."""

    @pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC, errno.EINVAL])
    def test_failed_read_and_write(
        self, failing: Any, random_bytes: Any, tmp_path: Path, complaints: Any, error: int
    ) -> None:
        data = random_bytes(100_000)
        path = tmp_path / "file"
        path.write_bytes(data.numpy().tobytes())
        handle = failing(_native.FAULT_ERROR, rate=1.0, error=error, handle={"block_size": 16384})
        where = str(path)
        for call in (
            lambda: handle.sync_pread(data, where),
            lambda: handle.sync_pwrite(data, where),
            lambda: handle.pread(data, where, False, False),
            lambda: handle.pwrite(data, where, True, False),
            lambda: handle.read(data, where, False),
            lambda: handle.write(data, where, False),
        ):
            assert call() == -1
            said = complaints()
            assert where in said and os.strerror(error) in said and "at byte" in said
        for start in (lambda: handle.async_pread(data, where), lambda: handle.async_pwrite(data, where)):
            assert start() == 0
            assert handle.wait() == -1
            assert os.strerror(error) in complaints()
        assert handle.wait() == 0

    def test_one_of_several(self, failing: Any, random_bytes: Any, tmp_path: Path, complaints: Any) -> None:
        """The others are carried out all the same, and the next wait() is not about this one."""
        handle = failing(_native.FAULT_ERROR, rate=0.0, at=1, times=1, handle={"queue_depth": 1})
        data = random_bytes(4096)
        for i in range(3):
            assert handle.async_pwrite(data, str(tmp_path / str(i))) == 0
        assert handle.wait() == -1
        assert len(complaints().splitlines()) == 1
        good = [path for path in tmp_path.iterdir() if path.read_bytes() == data.numpy().tobytes()]
        assert len(good) == 2
        assert handle.async_pwrite(data, str(tmp_path / "more")) == 0
        assert handle.wait() == 1

    def test_short_transfers_are_continued(self, failing: Any, random_bytes: Any, tmp_path: Path) -> None:
        handle = failing(_native.FAULT_SHORT, rate=0.3, seed=7, handle={"block_size": 16384})
        data = random_bytes(500_001)
        assert handle.sync_pwrite(data, str(tmp_path / "file")) == 1
        assert (tmp_path / "file").read_bytes() == data.numpy().tobytes()
        back = torch.zeros_like(data)
        assert handle.sync_pread(back, str(tmp_path / "file")) == 1
        assert torch.equal(back, data)

    def test_file_size_limit(self, tmp_path: Path) -> None:
        code = """
import resource, sys, torch
from penstock import deepspeed as ours
handle = ours.aio_handle(block_size=65536)
assert handle.sync_pwrite(torch.ones(100_000, dtype=torch.uint8), sys.argv[1]) == 1
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
assert handle.sync_pwrite(torch.ones(1_000_000, dtype=torch.uint8), sys.argv[1]) == -1
assert handle.async_pwrite(torch.ones(1_000_000, dtype=torch.uint8), sys.argv[1] + "2") == 0
assert handle.wait() == -1
assert handle.sync_pwrite(torch.ones(200_000, dtype=torch.uint8), sys.argv[1]) == 1
"""
        done = run_python(code, str(tmp_path / "file"))
        assert done.stderr.count("File too large") == 2 and str(tmp_path / "file") in done.stderr

    def test_full_file_system(self, tmp_path: Path) -> None:
        """A tmpfs of 1 MB, in a mount namespace of its own."""
        unshare = shutil.which("unshare")
        mount = f"mount -t tmpfs -o size=1M none {tmp_path}"
        prefix = [unshare or "", "--user", "--map-root-user", "--mount", "sh", "-c"]
        if unshare is None or subprocess.run([*prefix, mount], capture_output=True).returncode != 0:
            prefix[1:3] = []
            if unshare is None or subprocess.run([*prefix, mount], capture_output=True).returncode != 0:
                pytest.skip("mount namespaces are not allowed here")
        code = """
import sys, torch
from penstock import deepspeed as ours
handle = ours.aio_handle()
assert handle.sync_pwrite(torch.ones(4_000_000, dtype=torch.uint8), sys.argv[1]) == -1
assert handle.sync_pwrite(torch.ones(100, dtype=torch.uint8), sys.argv[1]) == 1
"""
        path = os.pathsep.join(filter(None, [str(Path(ours.__file__).parents[2]), os.environ.get("PYTHONPATH")]))
        done = subprocess.run(
            [*prefix, f'{mount} && exec "$@"', "sh", sys.executable, "-c", code, str(tmp_path / "file")],
            env={**os.environ, "PYTHONPATH": path},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        assert "No space left" in done.stderr


class TestSizesAndAlignments:
    """There, an end off the alignment is dropped, sizes must divide by the number of threads, and wrong sizes abort."""

    @pytest.mark.parametrize("size", [1, 511, 513, 4095, 4097, 1_000_003])
    @pytest.mark.parametrize("parallelism", [1, 3, 8])
    @pytest.mark.parametrize("pinned", [True, False])
    def test_any_size(
        self, handles: Any, random_bytes: Any, tmp_path: Path, size: int, parallelism: int, pinned: bool
    ) -> None:
        handle = handles(block_size=65536, queue_depth=8, intra_op_parallelism=parallelism)
        data = random_bytes(size)
        if pinned:
            data = handle.new_cpu_locked_tensor(size, data).copy_(data)
        assert handle.sync_pwrite(data, str(tmp_path / "file")) == 1
        assert (tmp_path / "file").read_bytes() == data.numpy().tobytes()
        back = torch.zeros_like(data)
        assert handle.sync_pread(back, str(tmp_path / "file")) == 1
        assert torch.equal(back, data)

    def test_any_offset_and_address(self, handles: Any, random_bytes: Any, tmp_path: Path, generator: Any) -> None:
        handle = handles(block_size=8192, queue_depth=4, intra_op_parallelism=3)
        path = tmp_path / "file"
        size = 200_000
        model = bytearray(size)
        path.write_bytes(model)
        memory = handle.new_cpu_locked_tensor(size, torch.empty(0, dtype=torch.uint8)).copy_(random_bytes(size))

        def number(least: int, most: int) -> int:
            return int(torch.randint(least, most + 1, (1,), generator=generator))

        for _ in range(100):
            count = number(1, 30_000)
            at, start = number(0, size - count), number(0, size - count)
            part = memory[start : start + count]
            assert handle.sync_pwrite(part, str(path), at) == 1
            model[at : at + count] = part.numpy().tobytes()
            back = torch.zeros(count + 1, dtype=torch.uint8)[1:]
            at = number(0, size - count)
            assert handle.sync_pread(back, str(path), at) == 1
            assert back.numpy().tobytes() == model[at : at + count]
        assert path.read_bytes() == model

    def test_wrong_sizes(self, handles: Any, tmp_path: Path, complaints: Any) -> None:
        handle = handles()
        path = tmp_path / "file"
        path.write_bytes(b"x" * 5000)
        where = str(path)
        for call in (
            lambda: handle.sync_pread(torch.zeros(5001, dtype=torch.uint8), where),
            lambda: handle.sync_pread(torch.zeros(5000, dtype=torch.uint8), where, 1),
            lambda: handle.sync_pread(torch.zeros(1, dtype=torch.uint8), where, 5000),
            lambda: handle.async_pread(torch.zeros(5001, dtype=torch.uint8), where),
            lambda: handle.pread(torch.zeros(5001, dtype=torch.uint8), where, False, True),
            lambda: handle.read(torch.zeros(4999, dtype=torch.uint8), where, False),
            lambda: handle.read(torch.zeros(5001, dtype=torch.uint8), where, False),
            lambda: handle.read(torch.zeros(5000, dtype=torch.uint8), where, False, 8),
            lambda: ours.aio_read(torch.zeros(4999, dtype=torch.uint8), where, 4096, 2, False, False, False),
            lambda: handle.sync_pread(torch.zeros(10, dtype=torch.uint8), where, -10),
            lambda: handle.sync_pwrite(torch.zeros(10, dtype=torch.uint8), where, -10),
        ):
            assert call() == -1
            assert where in complaints()
        assert handle.wait() == 0
        assert path.read_bytes() == b"x" * 5000

    def test_tensors_without_elements(self, handles: Any, tmp_path: Path) -> None:
        handle = handles()
        nothing = torch.empty(0)
        assert handle.sync_pwrite(nothing, str(tmp_path / "file")) == 1
        assert (tmp_path / "file").read_bytes() == b""
        assert handle.sync_pread(nothing, str(tmp_path / "file")) == 1
        assert handle.read(nothing, str(tmp_path / "file"), True) == 0

    def test_file_shrinks_meanwhile(self, handles: Any, random_bytes: Any, tmp_path: Path, complaints: Any) -> None:
        """The file is still known from before."""
        handle = handles()
        data = random_bytes(10_000)
        where = str(tmp_path / "file")
        assert handle.sync_pwrite(data, where) == 1
        os.truncate(where, 6000)
        assert handle.sync_pread(data, where) == -1
        assert "6000" in complaints()
        os.truncate(where, 20_000)
        back = torch.ones(20_000, dtype=torch.uint8)
        assert handle.sync_pread(back, where) == 1
        assert torch.equal(back[:6000], data[:6000]) and not bool(back[6000:].any())

    @pytest.mark.parametrize(
        "block_size, queue_depth",
        [
            (1, 1),
            (1000, 3),
            (4097, 100_000),
            (1 << 20, 1 << 12),
            (1 << 30, 4),
            ((1 << 31) - 1, 128),
            (1 << 40, 1 << 20),
        ],
    )
    def test_any_settings(
        self, handles: Any, random_bytes: Any, tmp_path: Path, block_size: int, queue_depth: int
    ) -> None:
        """There, block_size * queue_depth is an int."""
        handle = handles(block_size, queue_depth)
        assert (handle.get_block_size(), handle.get_queue_depth()) == (block_size, queue_depth)
        data = random_bytes(50_000)
        assert handle.sync_pwrite(data, str(tmp_path / "file")) == 1
        back = torch.zeros_like(data)
        assert handle.sync_pread(back, str(tmp_path / "file")) == 1
        assert torch.equal(back, data)

    def test_many_workers(self, handles: Any, random_bytes: Any, tmp_path: Path) -> None:
        handle = handles(block_size=4096, intra_op_parallelism=1000)
        assert handle.get_intra_op_parallelism() == 1000 and handle.get_alignment() == 512_000
        data = random_bytes(300_007)
        assert handle.sync_pwrite(data, str(tmp_path / "file")) == 1
        assert (tmp_path / "file").read_bytes() == data.numpy().tobytes()


class TestWhatCannotBeOpened:
    def test_missing_file(self, handles: Any, tmp_path: Path, complaints: Any) -> None:
        handle = handles()
        data = torch.zeros(8)
        where = str(tmp_path / "missing")
        assert handle.sync_pread(data, where) == -1
        assert where in complaints()
        assert handle.async_pread(data, where) == -1
        assert handle.read(data, where, False) == -1
        assert handle.sync_pwrite(data, str(tmp_path / "no folder" / "file")) == -1
        assert handle.wait() == 0
        assert not os.listdir(tmp_path)

    def test_no_regular_file(self, handles: Any, tmp_path: Path, complaints: Any) -> None:
        handle = handles()
        data = torch.zeros(8)
        assert handle.sync_pwrite(data, str(tmp_path)) == -1
        assert "directory" in complaints()
        os.mkfifo(tmp_path / "pipe")
        assert handle.sync_pwrite(data, str(tmp_path / "pipe")) == -1
        assert "neither a regular file" in complaints()
        assert handle.sync_pwrite(data, "/dev/null") == -1

    def test_descriptors(self, handles: Any, tmp_path: Path, complaints: Any) -> None:
        handle = handles()
        data = torch.zeros(8)
        assert handle.async_pwrite(data, fd=-1) == -1
        assert handle.async_pwrite(data, fd=100_000) == -1
        (tmp_path / "file").write_bytes(b"x" * 100)
        with open(tmp_path / "file", "rb") as file:
            assert handle.async_pwrite(data, fd=file.fileno()) == -1
        reader, writer = os.pipe()
        assert handle.async_pwrite(data, fd=writer) == -1
        os.close(reader)
        os.close(writer)
        assert len(complaints().splitlines()) == 4
        assert (tmp_path / "file").read_bytes() == b"x" * 100

    @pytest.mark.skipif(not os.path.isdir("/dev/shm"), reason="there is no /dev/shm")
    def test_file_system_without_direct_io(self, handles: Any, random_bytes: Any) -> None:
        """There, it cannot be opened at all."""
        handle = handles()
        data = random_bytes(100_001)
        path = Path(f"/dev/shm/penstock-test-{os.getpid()}")
        try:
            assert handle.sync_pwrite(data, str(path)) == 1
            assert path.read_bytes() == data.numpy().tobytes()
            back = torch.zeros_like(data)
            assert handle.sync_pread(back, str(path)) == 1
            assert torch.equal(back, data)
        finally:
            path.unlink(missing_ok=True)


class TestValidate:
    def test_good(self, handles: Any, random_bytes: Any, tmp_path: Path) -> None:
        """There, it compares the whole file, so that a part is never right."""
        handle = handles()
        data = random_bytes(20_000)
        where = str(tmp_path / "file")
        assert handle.write(data, where, True) == 0
        assert handle.pwrite(data[:100], where, True, False, 5000) == 1
        assert handle.pread(data[:100], where, True, False, 5000) == 1
        assert handle.read(data, where, True) == 0

    def test_bad(self, handles: Any, random_bytes: Any, tmp_path: Path, complaints: Any) -> None:
        """There, it only prints that."""
        handle = handles()
        data = random_bytes(20_000)
        where = str(tmp_path / "file")
        assert handle.pwrite(data, where, True, True) == 0
        # It moves the memory and not the file, because no transfer here goes wrong by itself.
        handle._lock.acquire()
        slot = handle._pending[0]
        handle._wait_for(slot.batch, _native.FOREVER, None)
        data[12_345] ^= 1
        handle._lock.release()
        assert handle.wait() == -1
        assert where in complaints()
        data[12_345] ^= 1
        assert handle.write(data, where, True) == 0


class TestTruncationAndSync:
    """There, a write never truncates and never syncs, and there is no other call for it."""

    def test_what_lies_beyond_stays(self, handles: Any, random_bytes: Any, tmp_path: Path, complaints: Any) -> None:
        """It may be another rank's. But reading the whole file does not take it for the tensor."""
        handle = handles()
        old, new = random_bytes(30_000), random_bytes(10_001)
        where = str(tmp_path / "file")
        assert handle.write(old, where, False) == 0
        assert handle.write(new, where, True) == 0
        assert handle.sync_pwrite(new, where) == 1
        assert (tmp_path / "file").read_bytes() == (new.numpy().tobytes() + old.numpy().tobytes()[10_001:])
        assert handle.read(torch.zeros_like(new), where, False) == -1
        assert "30000" in complaints()
        assert handle.truncate(where, 10_001) == 0
        assert handle.fsync(where) == 0
        back = torch.zeros_like(new)
        assert handle.read(back, where, True) == 0
        assert torch.equal(back, new)

    def test_of_a_missing_file(self, handles: Any, tmp_path: Path, complaints: Any) -> None:
        handle = handles()
        assert handle.truncate(str(tmp_path / "missing"), 5) == -1
        assert handle.fsync(str(tmp_path / "missing")) == -1
        assert "missing" in complaints() and not os.listdir(tmp_path)

    def test_after_what_is_pending(self, handles: Any, random_bytes: Any, tmp_path: Path) -> None:
        handle = handles()
        data = random_bytes(1 << 20)
        where = str(tmp_path / "file")
        assert handle.async_pwrite(data, where) == 0
        assert handle.truncate(where, 1000) == 0
        assert handle.wait() == 1
        assert (tmp_path / "file").read_bytes() == data[:1000].numpy().tobytes()


class TestInterpreterLock:
    """There, starting a transfer holds it."""

    def test_others_run_while_one_waits(self, failing: Any, tmp_path: Path) -> None:
        handle = failing(_native.FAULT_DELAY, rate=1.0, min_delay_ns=300_000_000, max_delay_ns=300_000_001)
        path = str(tmp_path / "file")
        ticks = 0
        done = threading.Event()

        def count() -> None:
            nonlocal ticks
            while not done.is_set():
                ticks += 1
                time.sleep(0.005)

        thread = threading.Thread(target=count)
        thread.start()
        try:
            started = time.monotonic()
            assert handle.async_pwrite(torch.zeros(4096, dtype=torch.uint8), path) == 0
            assert time.monotonic() - started < 0.25
            before = ticks
            assert handle.wait() == 1
            assert time.monotonic() - started >= 0.3
            assert ticks - before >= 10
        finally:
            done.set()
            thread.join()


def test_python_without_assertions(tmp_path: Path) -> None:
    """There, python -O drops the I/O that stands in assertions of its swappers. Nothing here may."""
    code = """
import sys, torch
from penstock import deepspeed as ours
handle = ours.aio_handle()
data = torch.arange(1000, dtype=torch.int32)
if handle.sync_pwrite(data, sys.argv[1]) != 1: sys.exit("write")
back = torch.zeros_like(data)
if handle.async_pread(back, sys.argv[1]) != 0 or handle.wait() != 1: sys.exit("read")
if not torch.equal(back, data): sys.exit("bytes")
if not handle.free_cpu_locked_tensor(handle.new_cpu_locked_tensor(5, data)): sys.exit("free")
"""
    run_python(code, str(tmp_path / "file"), PYTHONOPTIMIZE="1")
