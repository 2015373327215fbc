# SPDX-License-Identifier: Apache-2.0
"""Files of both formats as they are laid out for writing, opened by torch, safetensors, zipfile and unzip."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.serialization import config

DTYPES = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "I16": "int16", "U16": "uint16", "F16": "float16", "BF16": "bfloat16",
    "I32": "int32", "U32": "uint32", "F32": "float32", "F64": "float64", "I64": "int64", "U64": "uint64",
    "C32": "complex32", "C64": "complex64", "C128": "complex128", "F4": "float4_e2m1fn_x2",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3FNUZ": "float8_e4m3fnuz", "F8_E5M2FNUZ": "float8_e5m2fnuz",
}  # fmt: skip
NOT_IN_SAFETENSORS_FOR_TORCH = ("F4", "F6_E2M3", "F6_E3M2")


@pytest.fixture(scope="module")
def writer(penstock) -> Path:
    """The program that lays files out; it is built with the tests."""
    path = Path(penstock.program).parent / "tests" / "unit" / "image_write"
    if not path.exists():
        pytest.skip("the tests' own programs are not built")
    return path


@pytest.fixture(scope="module")
def made(writer: Path, seed: int, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    subprocess.run([writer, folder], check=True, env={**os.environ, "PST_TEST_SEED": str(seed)})
    return folder


def described(path: Path) -> list[dict]:
    return json.loads(Path(f"{path}.json").read_text())


def contents(number: int, count: int) -> bytes:
    """The bytes of a tensor, as the writer makes them."""
    at = np.arange(count, dtype=np.uint64)
    mixed = ((at * np.uint64(2654435761) + np.uint64(number * 40503)) >> np.uint64(9)) ^ at
    return (mixed & np.uint64(255)).astype(np.uint8).tobytes()


def storage_bytes(tensor: torch.Tensor) -> bytes:
    return torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage()).numpy().tobytes()


def check_dict(loaded: dict, rows: list[dict]) -> None:
    assert list(loaded) == [row["name"] for row in rows]
    for row in rows:
        tensor, shape = loaded[row["name"]], list(row["shape"])
        if row["dtype"] == "F4":  # torch counts pairs
            shape[-1] //= 2
        assert tensor.dtype == getattr(torch, DTYPES[row["dtype"]])
        assert list(tensor.shape) == shape and tensor.is_contiguous() and not tensor.requires_grad
        if row["bytes"]:
            assert storage_bytes(tensor) == contents(row["same_as"], row["bytes"])
            assert tensor.data_ptr() == loaded[rows[row["same_as"]]["name"]].data_ptr()


def unzip_says(path: Path) -> None:
    if shutil.which("unzip"):
        done = subprocess.run(["unzip", "-tqq", path], capture_output=True, text=True)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.filterwarnings("ignore:ComplexHalf")
@pytest.mark.parametrize("computed", [False, True])
def test_torch_loads(made: Path, computed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where torch computes the storages' places instead of reading them."""
    # Not by monkeypatch, which takes the setting away afterwards.
    monkeypatch.setenv("TORCH_SERIALIZATION_DEBUG", "1")
    with config.patch("load.calculate_storage_offsets", computed):
        for path in sorted(made.glob("*.pt")):
            rows = described(path)
            for arguments in ({"weights_only": True}, {"weights_only": True, "mmap": True}, {"weights_only": False}):
                check_dict(torch.load(path, **arguments), rows)
            with FakeTensorMode():
                fake = torch.load(path)
            for row in rows:
                if row["bytes"]:
                    assert fake[row["name"]].untyped_storage()._checkpoint_offset == row["offset"]


def test_zip_tools(made: Path) -> None:
    for path in sorted(made.glob("*.pt")):
        unzip_says(path)
        with zipfile.ZipFile(path) as archive:
            assert archive.testzip() is None


def test_safetensors_loads(made: Path) -> None:
    for path in sorted(made.glob("*.safetensors")):
        rows = described(path)
        with safe_open(path, framework="pt") as tensors:
            assert sorted(tensors.keys()) == sorted(row["name"] for row in rows)
            for number, row in enumerate(rows):
                if row["dtype"] in NOT_IN_SAFETENSORS_FOR_TORCH:
                    continue
                tensor = tensors.get_tensor(row["name"])
                assert tensor.dtype == getattr(torch, DTYPES[row["dtype"]]) and list(tensor.shape) == row["shape"]
                if row["bytes"]:
                    flat = tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
                    assert flat == contents(number, row["bytes"])


def test_past_4_gib(writer: Path, tmp_path: Path) -> None:
    path = tmp_path / "far.pt"
    subprocess.run([writer, "--far", path], check=True)
    if path.stat().st_blocks * 512 > 1 << 30:
        pytest.skip("this file system makes no holes")
    unzip_says(path)
    loaded = torch.load(path, weights_only=True, mmap=True)
    assert [t.numel() for t in loaded.values()] == [20, 4400000000, 12, 4294967296, 0, 7]
    assert not loaded["t1"][-5:].any() and not loaded["t5"].any()
    with FakeTensorMode():
        fake = torch.load(path)
    reader = torch._C.PyTorchFileReader(str(path))
    for number, tensor in enumerate(fake.values()):
        if tensor.numel():
            assert tensor.untyped_storage()._checkpoint_offset == reader.get_record_offset(f"data/{number}")
