# SPDX-License-Identifier: Apache-2.0
"""Files are opened once; one that was replaced is never served; descriptors and threads do not pile up."""

from __future__ import annotations

import gc
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from interpreters import run_python
from penstock import _native
from penstock import deepspeed as ours
from penstock.deepspeed import _files

torch = pytest.importorskip("torch")


def count_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def count_threads() -> int:
    return len(os.listdir("/proc/self/task"))


@pytest.fixture()
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A list that grows with each file that is opened."""
    made: list[Any] = []
    once = _files.Files._open_once

    def counted(self: Any, *arguments: Any) -> Any:
        made.append(arguments[0])
        return once(self, *arguments)

    monkeypatch.setattr(_files.Files, "_open_once", counted)
    return made


def test_opened_once(handles: Any, random_bytes: Any, tmp_path: Path, opened: list[Any]) -> None:
    handle = handles()
    data = random_bytes(10_000)
    path = str(tmp_path / "file")
    for i in range(10):
        assert handle.sync_pwrite(data, path, i * 100) == 1
        assert handle.sync_pread(data, path) == 1
    assert opened == [path]
    descriptor = os.open(path, os.O_WRONLY)
    for _ in range(10):
        assert handle.async_pwrite(data, fd=descriptor) == 0
    assert handle.wait() == 10
    os.close(descriptor)
    assert opened == [path, descriptor]


def test_mode_of_new_files(handles: Any, tmp_path: Path) -> None:
    assert handles().sync_pwrite(torch.zeros(8), str(tmp_path / "file")) == 1
    assert os.stat(tmp_path / "file").st_mode & 0o777 == 0o600
    (tmp_path / "public").touch(0o644)
    assert handles().sync_pwrite(torch.zeros(8), str(tmp_path / "public")) == 1
    assert os.stat(tmp_path / "public").st_mode & 0o777 == 0o644


@pytest.mark.parametrize("write_first", [True, False])
def test_replaced_files(handles: Any, random_bytes: Any, tmp_path: Path, write_first: bool) -> None:
    handle = handles()
    path, other = tmp_path / "file", tmp_path / "other"
    for i in range(4):
        data = random_bytes(10_000 + i)
        if write_first and i == 0:
            assert handle.sync_pwrite(data, str(path)) == 1
        elif i % 2 == 0:
            other.write_bytes(data.numpy().tobytes())
            os.replace(other, path)
        else:
            path.unlink()
            path.write_bytes(data.numpy().tobytes())
        back = torch.zeros_like(data)
        assert handle.sync_pread(back, str(path)) == 1
        assert torch.equal(back, data)
    os.rename(path, other)
    assert handle.sync_pread(back, str(path)) == -1
    assert handle.sync_pread(back, str(other)) == 1
    assert handle.sync_pwrite(random_bytes(100), str(path)) == 1
    assert other.read_bytes() == data.numpy().tobytes()
    assert path.stat().st_size == 100


def test_replaced_while_it_is_written(failing: Any, random_bytes: Any, tmp_path: Path) -> None:
    handle = failing(_native.FAULT_DELAY, rate=1.0, min_delay_ns=100_000_000, max_delay_ns=100_000_001)
    old, new = random_bytes(8192), random_bytes(4096)
    path = tmp_path / "file"
    assert handle.async_pwrite(old, str(path)) == 0
    os.rename(path, tmp_path / "moved")
    assert handle.async_pwrite(new, str(path)) == 0
    assert handle.wait() == 2
    assert (tmp_path / "moved").read_bytes() == old.numpy().tobytes()
    assert path.read_bytes() == new.numpy().tobytes()


def test_another_folder_under_the_same_relative_path(
    handles: Any, random_bytes: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = handles()
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        data = random_bytes(5000)
        assert handle.sync_pwrite(data, "file") == 1
        assert (tmp_path / name / "file").read_bytes() == data.numpy().tobytes()


def test_reused_descriptor_numbers(handles: Any, random_bytes: Any, tmp_path: Path) -> None:
    handle = handles()
    numbers = set()
    for name in ("a", "b"):
        data = random_bytes(5000)
        descriptor = os.open(tmp_path / name, os.O_CREAT | os.O_WRONLY)
        numbers.add(descriptor)
        assert handle.async_pwrite(data, fd=descriptor) == 0
        os.close(descriptor)
        assert handle.wait() == 1
        assert (tmp_path / name).read_bytes() == data.numpy().tobytes()


def test_space_of_deleted_files_is_freed(handles: Any, random_bytes: Any, tmp_path: Path) -> None:
    handle = handles()
    assert handle.sync_pwrite(random_bytes(5000), str(tmp_path / "file")) == 1
    (tmp_path / "file").unlink()
    until = time.monotonic() + 20
    while any(str(tmp_path) in os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")):
        assert time.monotonic() < until
        time.sleep(0.1)
    assert handle.sync_pwrite(random_bytes(5000), str(tmp_path / "file")) == 1


def test_more_files_than_are_kept_open(handles: Any, random_bytes: Any, tmp_path: Path) -> None:
    handle = handles()
    before = count_descriptors()
    data = random_bytes(1000 * 1024)
    for i in range(1000):
        assert handle.async_pwrite(data[i * 1024 : (i + 1) * 1024], str(tmp_path / str(i))) == 0
        if i % 100 == 99:
            assert handle.wait() == 100
    assert count_descriptors() <= before + 2 * (_files.MAX_IDLE + 100)
    assert handle.sync_pwrite(data, str(tmp_path / "last")) == 1
    assert count_descriptors() <= before + 2 * (_files.MAX_IDLE + 1)
    for i in range(1000):
        assert (tmp_path / str(i)).read_bytes() == data[i * 1024 : (i + 1) * 1024].numpy().tobytes()


def test_few_descriptors_allowed(tmp_path: Path) -> None:
    code = """
import os, resource, sys, torch
from penstock import deepspeed as ours
handle = ours.aio_handle()
resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))
data = torch.ones(5000, dtype=torch.uint8)
for i in range(60):
    assert handle.sync_pwrite(data, os.path.join(sys.argv[1], str(i))) == 1
"""
    run_python(code, str(tmp_path))


def test_nothing_is_left(random_bytes: Any, tmp_path: Path) -> None:
    gc.collect()
    ours.aio_handle().close()
    until = time.monotonic() + 10
    while any(thread.name == "penstock-files" for thread in threading.enumerate()):
        assert time.monotonic() < until
        time.sleep(0.05)
    descriptors, threads = count_descriptors(), count_threads()
    data = random_bytes(10_000)
    for i in range(20):
        handle = ours.aio_handle(intra_op_parallelism=2)
        for j in range(5):
            assert handle.async_pwrite(data, str(tmp_path / str(j))) == 0
        if i % 2:
            assert handle.wait() == 5
        if i % 3:
            handle.close()
            with pytest.raises(ValueError, match="closed"):
                handle.sync_pread(data, str(tmp_path / "0"))
        del handle
    gc.collect()
    until = time.monotonic() + 10
    while count_threads() > threads:
        assert time.monotonic() < until
        time.sleep(0.05)
    assert count_descriptors() == descriptors


def test_handles_at_exit(tmp_path: Path) -> None:
    """Pending transfers are finished, and nothing hangs or complains."""
    code = """
import sys, torch
from penstock import deepspeed as ours
handle = ours.aio_handle()
tensor = handle.new_cpu_locked_tensor(5_000_000, torch.zeros(1, dtype=torch.uint8)).fill_(7)
assert handle.async_pwrite(tensor, sys.argv[1]) == 0
"""
    done = run_python(code, str(tmp_path / "file"))
    assert (tmp_path / "file").read_bytes() == b"\7" * 5_000_000
    assert done.stderr == ""


def test_forked_child(tmp_path: Path) -> None:
    """A child cannot use its parent's handle, is told so, and can make its own."""
    # Small tensors: torch's own threads do not survive a fork.
    code = """
import os, sys, torch
from penstock import deepspeed as ours
handle = ours.aio_handle()
tensor = handle.new_cpu_locked_tensor(10_000, torch.zeros(1, dtype=torch.uint8)).fill_(7)
assert handle.sync_pwrite(tensor, sys.argv[1]) == 1
child = os.fork()
if child == 0:
    try:
        handle.sync_pread(tensor, sys.argv[1])
    except ValueError:
        pass
    else:
        os._exit(3)
    del handle, tensor
    other = ours.aio_handle()
    tensor = other.new_cpu_locked_tensor(10_000, torch.zeros(1, dtype=torch.uint8))
    good = other.sync_pread(tensor, sys.argv[1]) == 1 and bool((tensor == 7).all())
    other.close()
    os._exit(0 if good else 4)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert handle.sync_pread(tensor, sys.argv[1]) == 1
"""
    run_python(code, str(tmp_path / "file"))
