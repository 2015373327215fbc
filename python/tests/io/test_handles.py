# SPDX-License-Identifier: Apache-2.0
"""Handles and files: settings, modes, offsets, errors, closing."""

from __future__ import annotations

import errno
import gc
import logging
import os
import pickle
import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from penstock import errors
from penstock.faults import FaultEngine
from penstock.io import IO, Error, File, Latency, Read, ShortReadError, Sync, UsageError, Write, engines
from resources import Resources

# ---- handles ----


def test_settings() -> None:
    with IO("threads", block_size=8192, queue_depth=3, intra_op_parallelism=2, single_submit=True, buffered=True) as io:
        assert io.engine == io.settings.engine == "threads"
        assert io.settings.block_size == 8192
        assert io.settings.workers == 2
        assert io.settings.single_submit and io.settings.buffered and io.settings.overlap_events
    with IO(overlap_events=False) as io:
        assert not io.settings.overlap_events
        assert io.settings.block_size == 1 << 20


@pytest.mark.parametrize(
    "options",
    [
        {"engine": "steam"},
        {"block_size": 1000},
        {"block_size": -1},
        {"queue_depth": 1 << 40},
        {"workers": -3},
        {"workers": 1, "intra_op_parallelism": 2},
    ],
)
def test_wrong_settings(options: dict[str, Any], resources: Resources) -> None:
    with pytest.raises(ValueError):
        IO(**options)
    resources.assert_back()


def test_a_setting_that_is_no_number() -> None:
    with pytest.raises(TypeError, match="integer"):
        IO(block_size="1M")  # type: ignore[arg-type]


def test_engines_are_listed_and_those_that_work_work(path: Path, contents: bytes) -> None:
    listed = engines()
    assert {"threads", "null"} <= {e.name for e in listed}
    assert all(e.description for e in listed)
    for engine in listed:
        assert engine.works == (engine.why_not == "")
        if engine.works:
            with IO(engine.name) as io, io.open(path) as file:
                buffer = bytearray(len(contents))
                assert file.read_into(buffer) == len(contents)
                assert engine.name == "null" or buffer == contents
        else:
            with pytest.raises(Error):
                IO(engine.name)


def test_stats_and_latency(path: Path, contents: bytes) -> None:
    with IO(measure_latency=True, block_size=65536) as io, io.open(path) as file:
        assert io.stats().bytes_read == 0
        file.read_into(bytearray(len(contents)))
        stats = io.stats()
        assert stats.bytes_read >= len(contents) and stats.pieces >= 16 and stats.busy_ns > 0
        latency = io.latency(reset=True)
        assert latency.count >= 16 and 0 < latency.min_ns <= latency.p50_ns <= latency.max_ns
        assert io.latency() == Latency(0, 0, 0, 0, 0, 0, 0, 0)


def test_a_closed_handle_says_so(path: Path) -> None:
    io = IO()
    file = io.open(path)
    io.close()
    io.close()
    assert io.closed and file.closed
    for use in (
        lambda: io.open(path),
        io.stats,
        lambda: io.submit([Read(file, 0, bytearray(1))]),
        lambda: file.read_into(bytearray(1)),
        lambda: file.size,
        lambda: io.pool(1 << 20),
    ):
        with pytest.raises(UsageError, match="closed"):
            use()
    file.close()


def test_pickling_is_refused(io: IO, path: Path) -> None:
    with io.open(path) as file:
        for thing in (io, file, file.submit_read(bytearray(1))):
            with pytest.raises(TypeError):
                pickle.dumps(thing)


# ---- modes ----


def test_modes(io: IO, tmp_path: Path) -> None:
    name = tmp_path / "file"
    with pytest.raises(FileNotFoundError):
        io.open(name, "r+")
    with io.open(name, "x") as file:
        file.write_from(b"one two")
    with pytest.raises(FileExistsError) as caught:
        io.open(name, "x")
    assert caught.value.filename == str(name)
    with io.open(name, "c") as file:
        file.write_from(b"ONE")
    assert name.read_bytes() == b"ONE two"
    with io.open(name, "r+b") as file:
        file.write_from(b"2", 4)
    assert name.read_bytes() == b"ONE 2wo"
    with io.open(name) as file, pytest.raises(Error) as refused:
        file.write_from(b"x")
    assert refused.value.errno == errno.EBADF
    with io.open(os.fsencode(name), "w") as file:
        assert file.size == 0
    with io.open(tmp_path / "new", "c") as file:
        assert file.size == 0 and file.path == str(tmp_path / "new")
    for wrong in ("a", "", "rw", "rb+x"):
        with pytest.raises(UsageError, match="mode"):
            io.open(name, wrong)


def test_new_files_obey_the_umask(io: IO, tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        io.open(tmp_path / "f", "w").close()
    finally:
        os.umask(before)
    assert (tmp_path / "f").stat().st_mode & 0o777 == 0o640


def test_open_fd(io: IO, path: Path, contents: bytes) -> None:
    fd = os.open(path, os.O_RDWR)
    file = io.open_fd(fd, "r+")
    named = io.open_fd(fd, name="the weights")
    os.close(fd)
    assert bytes(file.read(100, 55)) == contents[55:155]
    file.write_from(b"changed", 10)
    assert bytes(named.read(7, 10)) == b"changed"
    assert file.path == str(path) and named.path == "the weights"
    reader = os.open(path, os.O_RDONLY)
    with pytest.raises(Error):
        io.open_fd(reader, "r+")
    with pytest.raises(UsageError):
        io.open_fd(reader, "w")
    os.close(reader)
    with pytest.raises(Error) as bad:
        io.open_fd(reader)
    assert bad.value.errno == errno.EBADF


def test_size_truncate_preallocate_sync(io: IO, tmp_path: Path) -> None:
    with io.open(tmp_path / "f", "w") as file:
        assert file.size == 0
        file.write_from(b"x" * 5000, 3)
        assert file.size == 5003
        file.truncate(17)
        file.sync()
        assert file.size == 17 and (tmp_path / "f").read_bytes() == bytes(3) + b"x" * 14
        file.preallocate(1 << 20)
        assert file.size in (17, 1 << 20)  # grown where the file system can
        file.truncate(1 << 16)
        assert file.size == 1 << 16
        assert file.submit_sync().result() == 0
        for wrong in (-1, 1 << 70):
            with pytest.raises(UsageError):
                file.truncate(wrong)
    assert (tmp_path / "f").stat().st_size == 1 << 16


def test_properties(io: IO, path: Path) -> None:
    with io.open(path) as file:
        assert file.alignment >= 1 and file.alignment & (file.alignment - 1) == 0
        assert isinstance(file.direct, bool) and file.mode == "r"
        assert str(path) in repr(file) and "closed" not in repr(file)
    assert ("closed" in repr(file) and "io_uring" in repr(io)) or io.engine in repr(io)
    with IO(buffered=True) as buffered, buffered.open(path) as file:
        assert not file.direct


# ---- offsets ----


@pytest.mark.parametrize("buffered", [False, True])
def test_random_offsets(tmp_path: Path, contents: bytes, rng: random.Random, buffered: bool) -> None:
    model = bytearray(contents)
    name = tmp_path / "f"
    name.write_bytes(contents)
    with IO(block_size=16384, buffered=buffered) as io, io.open(name, "r+") as file:
        for _ in range(300):
            offset = rng.randrange(len(model))
            size = min(rng.choice([1, 511, 512, 513, 4096, 30_000, 200_000]), len(model) - offset)
            if rng.random() < 0.5:
                piece = rng.randbytes(size)
                assert file.write_from(piece, offset) == size
                model[offset : offset + size] = piece
            else:
                assert file.read(size, offset) == model[offset : offset + size]
    assert name.read_bytes() == model


def test_impossible_offsets(io: IO, path: Path) -> None:
    with io.open(path, "r+") as file:
        for offset in (-1, 1 << 63, 1 << 64, 1 << 100):
            with pytest.raises(UsageError):
                file.read_into(bytearray(1), offset)
            with pytest.raises(UsageError):
                file.submit_write(b"1", offset)
        with pytest.raises((TypeError, UsageError)):
            file.read_into(bytearray(1), 1.5)  # type: ignore[arg-type]
        assert file.read(10, 1 << 40) == b""


def test_short_reads(io: IO, path: Path, contents: bytes) -> None:
    with io.open(path) as file:
        buffer = bytearray(100)
        for read in (file.read_into, lambda b, o: file.submit_read(b, o).result()):
            with pytest.raises(ShortReadError) as caught:
                read(buffer, len(contents) - 40)
            error = caught.value
            assert isinstance(error, EOFError) and isinstance(error, OSError)
            assert error.offset == len(contents) and error.filename == error.path == str(path)
            assert error.code == errors.E_SHORT
        assert file.read_into(buffer, len(contents) - 40, exact=False) == 40
        assert buffer[:40] == contents[-40:]
        assert file.submit_read(buffer, len(contents) + 5, exact=False).result() == 0
        assert file.read() == contents
        assert file.read(-1, 100) == contents[100:]
        assert file.read(10, len(contents) - 4) == contents[-4:]


# ---- errors ----


def test_missing_file_folder_and_bad_names(io: IO, tmp_path: Path, path: Path) -> None:
    with pytest.raises(FileNotFoundError) as missing:
        io.open(tmp_path / "none")
    assert missing.value.errno == errno.ENOENT and missing.value.filename == str(tmp_path / "none")
    assert isinstance(missing.value, Error) and str(tmp_path / "none") in str(missing.value)
    with pytest.raises(IsADirectoryError):
        io.open(tmp_path)
    with pytest.raises(NotADirectoryError):
        io.open(path / "below")
    with pytest.raises(UsageError):
        io.open(b"a\0b")
    with pytest.raises(TypeError):
        io.open(5)  # type: ignore[arg-type]
    with pytest.raises(OSError):
        io.open("/dev/null/x")
    odd = tmp_path / os.fsdecode(b"caf\xe9\xff")
    odd.write_bytes(b"odd")
    with io.open(odd) as file:
        assert file.path == str(odd) and file.read() == b"odd"
        with pytest.raises(EOFError) as short:
            file.read_into(bytearray(9))
        assert short.value.filename == str(odd)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_forbidden_file(io: IO, path: Path) -> None:
    path.chmod(0)
    with pytest.raises(PermissionError):
        io.open(path)


@pytest.fixture
def small_tmpfs(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("mounting a small tmpfs needs root")
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("mounting is not allowed here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def test_no_space_left(io: IO, small_tmpfs: Path) -> None:
    with io.open(small_tmpfs / "f", "w") as file:
        with pytest.raises(Error) as caught:
            file.write_from(bytes(4 << 20))
        assert caught.value.errno == errno.ENOSPC and caught.value.filename == str(small_tmpfs / "f")
        assert caught.value.offset is not None
        outcomes = io.submit([Write(file, i << 19, bytes(1 << 19)) for i in range(8)]).outcomes()
        assert any(isinstance(o, Error) and o.errno == errno.ENOSPC for o in outcomes)
        assert any(o == 1 << 19 for o in outcomes)


def test_injected_errors_reach_the_caller(path: Path) -> None:
    with FaultEngine("threads", ["error"], errors=[errno.EIO]) as engine, IO(engine) as io, io.open(path, "r+") as file:
        for use in (
            lambda: file.read_into(bytearray(4096), 8192),
            lambda: file.submit_read(bytearray(4096), 8192).result(),
            lambda: io.submit([Read(file, 8192, bytearray(4096))]).result(),
            lambda: file.write_from(bytes(4096), 8192),
        ):
            with pytest.raises(Error) as caught:
                use()
            assert caught.value.errno == errno.EIO
            assert caught.value.filename == str(path) and caught.value.offset == 8192
        assert engine.counts()["errors"] >= 4


def test_exceptions_can_be_pickled_and_read(io: IO, tmp_path: Path) -> None:
    with pytest.raises(Error) as caught:
        io.open(tmp_path / "none")
    again = pickle.loads(pickle.dumps(caught.value))
    assert type(again) is type(caught.value) and str(again) == str(caught.value)
    assert (again.errno, again.path, again.code) == (caught.value.errno, caught.value.path, caught.value.code)


@pytest.mark.parametrize(
    ("code", "kind", "number"),
    [
        (errors.E_FORMAT, ValueError, errno.EBADMSG),
        (errors.E_UNSUPPORTED, NotImplementedError, errno.ENOTSUP),
        (errors.E_BUDGET, MemoryError, errno.ENOMEM),
        (errors.E_USAGE, ValueError, errno.EINVAL),
        (errors.E_SHORT, EOFError, errno.ENODATA),
        (errors.E_CANCELLED, errors.CancelledError, errno.ECANCELED),
        (-errno.ENOSPC, Error, errno.ENOSPC),
        (-errno.EACCES, PermissionError, errno.EACCES),
    ],
)
def test_classes_of_errors(code: int, kind: type[Exception], number: int) -> None:
    error = errors.make(code, "words", "/a/b", 7)
    assert isinstance(error, kind) and isinstance(error, OSError)
    assert (error.errno, error.filename, error.offset, error.code) == (number, "/a/b", 7, code)
    assert str(error) == "/a/b: words (at byte 7)"


# ---- closing ----


def test_closing_a_file_waits(path: Path, contents: bytes) -> None:
    with FaultEngine("threads", ["delay"], delay=(0.2, 0.2)) as engine, IO(engine) as io:
        file = io.open(path)
        buffer = bytearray(4096)
        future = file.submit_read(buffer)
        file.close()
        assert future.done() and future.result() == 4096 and buffer == contents[:4096]
        with pytest.raises(UsageError, match="closed"):
            file.submit_read(buffer)
        file.close()


def test_closing_the_handle_waits(path: Path, contents: bytes) -> None:
    with FaultEngine("threads", ["delay"], delay=(0.2, 0.2)) as engine:
        io = IO(engine)
        buffer = bytearray(4096)
        future = io.open(path).submit_read(buffer)
        io.close()
        assert future.result(timeout=0) == 4096 and buffer == contents[:4096]


def test_dropped_objects_close_themselves(path: Path, resources: Resources) -> None:
    for _ in range(20):
        io = IO()
        files = [io.open(path) for _ in range(3)]
        files[0].read_into(bytearray(100))
        del files[1:]
    del io, files
    resources.assert_back()


def test_files_of_another_handle_are_refused(io: IO, path: Path) -> None:
    with IO() as other, other.open(path) as file:
        with pytest.raises(UsageError, match="no file of this"):
            io.submit([Read(file, 0, bytearray(1))])
        with pytest.raises(UsageError, match="no file of this"):
            io.submit([Sync("file")])  # type: ignore[arg-type]
    gc.collect()
    assert isinstance(file, File)


def test_the_librarys_notes_go_to_logging(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="penstock"), IO(engine="threads", workers=2):
        pass
    notes = [record for record in caplog.records if record.name == "penstock"]
    assert any(note.levelno == logging.INFO and "I/O engine threads, 2 workers" in note.getMessage() for note in notes)
