# SPDX-License-Identifier: Apache-2.0
"""Files of torch.save as the checkpoint engine loads them: everything that plain files have, and nothing executed."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections import Counter, OrderedDict
from pathlib import Path
from typing import Any

import pytest
from penstock.errors import UnsupportedError

torch = pytest.importorskip("torch")

from penstock.deepspeed import _load  # noqa: E402


def same(left: Any, right: Any) -> bool:
    if type(left) is not type(right):
        return False
    if isinstance(left, torch.Tensor):
        alike = left.dtype == right.dtype and left.stride() == right.stride() and left.__dict__ == right.__dict__
        return alike and left.requires_grad == right.requires_grad and torch.equal(left, right)
    if isinstance(left, dict):
        return list(left) == list(right) and all(same(left[key], right[key]) for key in left)
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(same, left, right))
    return bool(left == right)


def test_what_plain_files_have(tmp_path: Path) -> None:
    shared = torch.randn(6, 4)
    named = torch.nn.Parameter(torch.randn(3))
    named.ds_id = 5
    other = torch.randn(2)
    other.ds_id = "0_3"
    model = torch.nn.Linear(3, 2)
    state = {
        "model": model.state_dict(),
        "tensors": [shared, shared[1:3], shared.t(), torch.empty(0, 3), torch.tensor(2.5)],
        "of types": [
            torch.ones(2, dtype=dtype) for dtype in (torch.bfloat16, torch.bool, torch.complex64, torch.uint16)
        ],
        "conjugate": torch.randn(3, dtype=torch.complex64).conj(),
        "parameters": [torch.nn.Parameter(torch.randn(2)), torch.nn.Parameter(torch.ones(2), False), named, other],
        "values": [None, True, 1, -(2**70), 2.5, 1j, "é", b"\xff\0", bytearray(b"ab"), (1, (2, 3))],
        "sets": [{1, 2}, frozenset({"a"})],
        "more": [
            torch.Size([2, 3]),
            torch.device("cpu"),
            torch.float16,
            torch.strided,
            Counter("aab"),
            OrderedDict(a=1),
        ],
        ("a", 1): {},
    }
    path = str(tmp_path / "state.pt")
    torch.save(state, path)
    found = _load.load(path)
    assert same(found, torch.load(path, weights_only=False)) and same(found, state)
    tensors = found["tensors"]
    assert tensors[0].untyped_storage().data_ptr() == tensors[2].untyped_storage().data_ptr()
    assert found["model"]._metadata == state["model"]._metadata


class Calls:
    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (Calls(os.system, "exit 3"), r"posix\.system"),
        (Calls(eval, "1"), r"\.eval"),
        (Calls(pickle.loads, b"N."), r"pickle\.loads"),
        (Calls(torch.load, "x"), r"torch\.\w+\.load|torch\.load"),
        (Path("x"), "pathlib"),
    ],
)
def test_a_name_that_is_unknown(tmp_path: Path, value: Any, name: str) -> None:
    path = str(tmp_path / "state.pt")
    torch.save({"x": torch.ones(2), "client": value}, path)
    with pytest.raises(UnsupportedError, match=name) as raised:
        _load.load(path)
    assert path in str(raised.value) and "trust_pickles" in str(raised.value)
    if isinstance(value, Path):
        assert _load.load(path, trust_pickles=True)["client"] == value


def rewritten(path: Path, pickled: bytes) -> str:
    torch.save({"x": torch.arange(4.0)}, path)
    with zipfile.ZipFile(path) as old:
        records = {entry.filename: old.read(entry) for entry in old.infolist()}
    with zipfile.ZipFile(path, "w") as new:
        for name, data in records.items():
            new.writestr(name, pickled if name.endswith("data.pkl") else data)
    return str(path)


STORAGE = b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuK%ctQ"
TENSOR = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(%s%s\x89ccollections\nOrderedDict\n)RtR."


@pytest.mark.parametrize(
    ("pickled", "why"),
    [
        (TENSOR % (STORAGE % b"\x04", b"K\x00K\x05\x85K\x01\x85"), "outside of its storage"),
        (TENSOR % (STORAGE % b"\x04", b"K\x01K\x04\x85K\x01\x85"), "outside of its storage"),
        (TENSOR % (STORAGE % b"\x04", b"K\x00K\x02\x85K\x04\x85"), "outside of its storage"),
        (TENSOR % (STORAGE % b"\x04", b"K\x00K\x04\x85J\xff\xff\xff\xff\x85"), "cannot be"),
        (TENSOR % (STORAGE % b"\x05", b"K\x00K\x04\x85K\x01\x85"), "no record data/0 of 20 bytes"),
        (TENSOR % (b"N", b"K\x00K\x04\x85K\x01\x85"), "without a storage"),
        (b"\x80\x02}}X\x05\0\0\0classX\x01\0\0\0xsb.", "sets the state of"),
        (b"\x80\x02ccollections\nOrderedDict\n)R}X\x05\0\0\0itemsNsb.", "sets 'items' of a OrderedDict"),
        (b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n.", "names _rebuild_tensor_v2 as a value"),
        (b"\x80\x02cdeepspeed.runtime.engine\nDeepSpeedEngine\n)\x81.", r"deepspeed\.runtime\.engine\.DeepSpeedEngine"),
        (b"\x80\x02", "exhausted"),
    ],
)
def test_what_cannot_be(tmp_path: Path, pickled: bytes, why: str) -> None:
    path = rewritten(tmp_path / "state.pt", pickled)
    with pytest.raises(UnsupportedError, match=why):
        _load.load(path)


def test_no_zip_file(tmp_path: Path) -> None:
    path = str(tmp_path / "state.pt")
    torch.save({"x": 1}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(UnsupportedError, match="old format"):
        _load.load(path)
    assert _load.load(path, trust_pickles=True) == {"x": 1}
