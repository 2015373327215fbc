# SPDX-License-Identifier: Apache-2.0
"""Every kind of buffer, read into and written from, and those that are refused."""

from __future__ import annotations

import array
import ctypes
import gc
import mmap
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from penstock.io import IO, UsageError

try:
    import torch
except ImportError:
    torch = None  # type: ignore[assignment]

needs_torch = pytest.mark.skipif(torch is None, reason="PyTorch is not installed")

SIZE = 24 * 1024  # a multiple of every element size below


def kinds() -> list[Any]:
    """Makers of writable buffers of SIZE bytes."""
    shared = [
        ("bytearray", lambda: bytearray(SIZE)),
        ("memoryview", lambda: memoryview(bytearray(SIZE + 5))[5:]),
        ("memoryview-2d", lambda: memoryview(bytearray(SIZE)).cast("B", (SIZE // 4, 4))),
        ("mmap", lambda: mmap.mmap(-1, SIZE)),
        ("array.array", lambda: array.array("d", bytes(SIZE))),
        ("ctypes", lambda: (ctypes.c_uint16 * (SIZE // 2))()),
        ("numpy-complex", lambda: np.zeros(SIZE // 16, "c16")),
        ("numpy-float16", lambda: np.zeros(SIZE // 2, "f2")),
        ("numpy-bool", lambda: np.zeros(SIZE, "?")),
        ("numpy-big-endian", lambda: np.zeros(SIZE // 4, ">i4")),
        ("numpy-datetime", lambda: np.zeros(SIZE // 8, "M8[ns]")),
        ("numpy-structured", lambda: np.zeros(SIZE // 12, [("Offset", "i4"), ("O", "f8")])),
        ("numpy-3d", lambda: np.zeros((2, 3, SIZE // 24), "f4")),
        ("numpy-rows", lambda: np.zeros((10, SIZE // 8), "f4")[3:5]),
        ("numpy-unaligned", lambda: np.zeros(SIZE + 3, "u1")[3:]),
        ("numpy-subclass", lambda: np.zeros(SIZE, "u1").view(np.recarray)),
    ]
    return [pytest.param(make, id=name) for name, make in shared]


def raw(buffer: Any) -> bytes:
    return buffer.tobytes() if isinstance(buffer, np.ndarray) else bytes(memoryview(buffer).cast("B"))


@pytest.mark.parametrize("make", kinds())
def test_read_and_write(io: IO, path: Path, contents: bytes, make: Any) -> None:
    buffer = make()
    with io.open(path, "r+") as file:
        assert file.read_into(buffer, 1001) == SIZE
        assert raw(buffer) == contents[1001 : 1001 + SIZE]
        assert file.write_from(buffer, 300_001) == SIZE
    after = path.read_bytes()
    assert after[300_001 : 300_001 + SIZE] == contents[1001 : 1001 + SIZE]
    assert after[:300_001] == contents[:300_001] and after[300_001 + SIZE :] == contents[300_001 + SIZE :]


@pytest.mark.parametrize(
    "source",
    [
        bytes(range(256)) * 8,
        memoryview(b"read-only"),
        np.frombuffer(b"read-only", "u1"),
        np.broadcast_to(np.uint8(7), (1,)),
    ],
    ids=["bytes", "memoryview", "numpy", "numpy-scalar"],
)
def test_read_only_buffers_can_be_written_from_only(io: IO, tmp_path: Path, source: Any) -> None:
    with io.open(tmp_path / "f", "w") as file:
        file.write_from(source)
        assert bytes(file.read()) == bytes(source)
        with pytest.raises(UsageError, match="read-only"):
            file.read_into(source)
        assert bytes(file.read()) == bytes(source)


@pytest.mark.parametrize(
    "make",
    [bytes, bytearray, lambda: memoryview(b""), lambda: np.zeros((0, 5)), lambda: array.array("i"), lambda: []],
    ids=["bytes", "bytearray", "memoryview", "numpy", "array", "no-segments"],
)
def test_empty_buffers(io: IO, path: Path, contents: bytes, make: Any) -> None:
    with io.open(path, "r+") as file:
        assert file.write_from(make(), 5) == 0
        if not isinstance(make(), bytes) and not (isinstance(make(), memoryview)):
            assert file.read_into(make(), 5) == 0
        assert file.submit_write(make(), 10**9).result() == 0
    assert path.read_bytes() == contents


@pytest.mark.parametrize(
    ("buffer", "problem", "words"),
    [
        (np.zeros((8, 8))[:, ::2], UsageError, "contiguous"),
        (np.zeros((8, 8)).T, UsageError, "contiguous"),
        (np.zeros(8)[::-1], UsageError, "contiguous"),
        (np.array([None, 1]), UsageError, "Python objects"),
        (np.zeros(3, [("a", "i4"), ("b", "O")]), UsageError, "Python objects"),
        ((ctypes.py_object * 2)(), UsageError, "Python objects"),
        (memoryview(bytearray(16))[::2], UsageError, "contiguous"),
        ("text", TypeError, "str"),
        (5, TypeError, "int"),
        (None, TypeError, "NoneType"),
        ([bytearray(4), 5], TypeError, "int"),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else value,
)
def test_refused_buffers(
    io: IO, path: Path, contents: bytes, buffer: Any, problem: type[Exception], words: str
) -> None:
    with io.open(path, "r+") as file:
        for use in (file.read_into, file.write_from, file.submit_read, file.submit_write):
            with pytest.raises(problem, match=words):
                use(buffer)
    assert path.read_bytes() == contents


def test_vectored(io: IO, path: Path, contents: bytes) -> None:
    parts = [bytearray(13), np.zeros(1000, "u2"), memoryview(bytearray(4096)), bytearray(0), np.zeros((3, 7), "f4")]
    size = sum(memoryview(p).nbytes for p in parts)
    with io.open(path, "r+") as file:
        assert file.read_into(parts, 77) == size
        assert b"".join(raw(p) for p in parts) == contents[77 : 77 + size]
        assert file.write_from([b"abc", b"", bytearray(b"defg")], 3) == 7
        assert bytes(file.read(12)) == contents[:3] + b"abcdefg" + contents[10:12]


def test_a_bytearray_in_use_cannot_be_resized(io: IO, path: Path) -> None:
    buffer = bytearray(100)
    with io.open(path) as file:
        future = file.submit_read(buffer)
        future.result()
        buffer.append(1)  # free again
        assert len(buffer) == 101


def test_nothing_is_kept_alive_after_the_end(io: IO, path: Path) -> None:
    owner = np.zeros(4096, "u1")
    with io.open(path) as file:
        future = file.submit_read(owner)
        assert future.result() == 4096
        gone = weakref.ref(owner)
        del owner
        gc.collect()
        assert gone() is None
        assert future.result() == 4096


def test_a_failed_preparation_lets_go_of_everything(io: IO, path: Path) -> None:
    first = bytearray(100)
    with io.open(path) as file, pytest.raises(TypeError):
        file.read_into([first, "text"])
    first.append(1)


@needs_torch
@pytest.mark.parametrize(
    "name",
    "float32 float64 float16 bfloat16 uint8 int8 int16 int32 int64 bool complex64 complex128 float8_e4m3fn "
    "float8_e5m2".split(),
)
def test_torch_types(io: IO, path: Path, contents: bytes, name: str) -> None:
    dtype = getattr(torch, name)
    tensor = torch.zeros(SIZE // dtype.itemsize, dtype=dtype)
    with io.open(path, "r+") as file:
        assert file.read_into(tensor, 999) == SIZE
        assert bytes(tensor.view(torch.uint8).numpy()) == contents[999 : 999 + SIZE]
        assert file.write_from(tensor, 0) == SIZE
    assert path.read_bytes()[:SIZE] == contents[999 : 999 + SIZE]


@needs_torch
def test_torch_views_and_parameters(io: IO, path: Path, contents: bytes) -> None:
    whole = torch.zeros(1000, dtype=torch.uint8)
    parameter = torch.nn.Parameter(torch.zeros(25))
    with io.open(path) as file:
        file.read_into(whole[100:200], 50)
        assert bytes(whole[100:200].numpy()) == contents[50:150]
        assert not whole[:100].any() and not whole[200:].any()
        file.read_into(parameter, 0)
        assert parameter.detach().numpy().tobytes() == contents[:100]
        assert file.read_into(torch.zeros(0)) == 0
        assert file.read_into([torch.zeros(3), torch.zeros(5, dtype=torch.int8)]) == 17


@needs_torch
def test_refused_tensors(io: IO, path: Path) -> None:
    with io.open(path) as file:
        for tensor, words in (
            (torch.zeros(8, 8).t(), "not contiguous"),
            (torch.zeros(8)[::2], "not contiguous"),
            (torch.zeros(1, 4).expand(4, 4), "not contiguous"),
            (torch.zeros(4, device="meta"), "not in host memory"),
            (torch.zeros(4).to_sparse(), "not contiguous"),
            (torch.zeros(4, dtype=torch.complex64).conj(), "pending"),
        ):
            with pytest.raises(UsageError, match=words):
                file.read_into(tensor)


@needs_torch
def test_a_tensor_s_storage_outlives_a_swap(io: IO, path: Path, contents: bytes) -> None:
    tensor = torch.zeros(4096, dtype=torch.uint8)
    alias = tensor.view(-1)
    with io.open(path) as file:
        future = file.submit_read(tensor)
        tensor.set_(torch.zeros(1, dtype=torch.uint8))
        assert future.result() == 4096
    assert bytes(alias.numpy()) == contents[:4096]


def test_neither_numpy_nor_torch_is_imported(tmp_path: Path) -> None:
    code = """
import sys, penstock.io, penstock.faults
with penstock.io.IO() as io, io.open(sys.argv[1], "w") as f:
    f.write_from(b"abc"); assert bytes(f.read()) == b"abc"
assert "numpy" not in sys.modules and "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code, tmp_path / "f"], check=True, timeout=60)
