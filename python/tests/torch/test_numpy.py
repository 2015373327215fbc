# SPDX-License-Identifier: Apache-2.0
"""penstock.numpy against safetensors.numpy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import penstock.numpy
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from penstock.errors import UnsupportedError, UsageError

TYPES = ["?", "u1", "i1", "i2", "u2", "f2", "i4", "u4", "f4", "f8", "i8", "u8", "c8"]


def test_both_directions(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    generator = np.random.default_rng(1)
    arrays = {code: (generator.random((3, 50, 7)) * 100).astype(code) for code in TYPES}
    arrays |= {"scalar": np.array(2.5), "empty": np.empty((0, 3), "i4")}
    penstock.numpy.save_file(arrays, path, {"a": "b"})
    for found in (safetensors.numpy.load_file(path), penstock.numpy.load_file(path, verify=True)):
        assert set(found) == set(arrays)
        for name, array in arrays.items():
            assert found[name].dtype == array.dtype and np.array_equal(found[name], array), name
    safetensors.numpy.save_file(arrays, path)
    found = penstock.numpy.load_file(path)
    assert all(np.array_equal(found[name], array) for name, array in arrays.items())


def test_refusals(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    for message, arrays in {
        "not contiguous": {"a": np.zeros((3, 4)).T},
        "dtype >f4": {"a": np.zeros(3, ">f4")},
        "dtype object": {"a": np.array([None])},
        "'a' is a list": {"a": [1.0]},
    }.items():
        with pytest.raises(UsageError, match=message):
            penstock.numpy.save_file(arrays, path)
    assert not path.exists()
    safetensors.torch.save_file({"a": torch.ones(3).bfloat16()}, path)
    with pytest.raises(UnsupportedError, match="BF16"):
        penstock.numpy.load_file(path)
