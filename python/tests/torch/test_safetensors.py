# SPDX-License-Identifier: Apache-2.0
"""save_file, load_file and open, against the safetensors library."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import penstock
import penstock.torch
import pytest
import safetensors
import safetensors.torch
import torch
from objects import storage_of
from penstock.errors import UsageError

DTYPES = [dtype for dtype in safetensors.torch._TYPES.values() if dtype is not None]


def random_tensors(rng: random.Random, most: int = 20) -> dict[str, torch.Tensor]:
    tensors = {}
    for i in range(rng.randrange(most)):
        dtype = rng.choice(DTYPES)
        shape = [rng.randint(0 if rng.random() < 0.1 else 1, 12) for _ in range(rng.randrange(5))]
        if rng.random() < 0.1:
            shape = [rng.randint(1, 300_000)]
        count = 1
        for n in shape:
            count *= n
        size = torch.empty(0, dtype=dtype).element_size()
        storage = storage_of(rng, count * size, dtype)
        name = rng.choice(("w", "layers.0.", "é", "日本", 'a"b', "")) + str(i)
        tensors[name] = torch.empty(0, dtype=dtype).set_(storage, 0, shape, torch.empty(shape, device="meta").stride())
    return tensors


def assert_equal(expected: dict[str, torch.Tensor], found: dict[str, torch.Tensor]) -> None:
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        other = found[name]
        assert other.dtype == tensor.dtype and other.shape == tensor.shape and other.is_contiguous(), name
        if tensor.numel():
            assert torch.equal(other.reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8)), name


def test_what_it_writes_safetensors_reads(tmp_path: Path, rng: random.Random) -> None:
    path = tmp_path / "a.safetensors"
    for round in range(30):
        tensors = random_tensors(rng)
        metadata = {"format": "pt", "é": "日本"} if round % 2 else None
        penstock.torch.save_file(tensors, path, metadata, digests=round % 3 > 0)
        assert_equal(tensors, safetensors.torch.load_file(path))
        with safetensors.safe_open(path, "pt") as file:
            found = {k: v for k, v in (file.metadata() or {}).items() if not k.startswith("penstock.")}
        assert found == (metadata or {})
        assert_equal(tensors, penstock.torch.load_file(path, verify=True))
        assert_equal(tensors, penstock.torch.load(path))


def test_what_safetensors_writes_it_reads(tmp_path: Path, rng: random.Random) -> None:
    path = tmp_path / "a.safetensors"
    for _ in range(30):
        tensors = random_tensors(rng)
        safetensors.torch.save_file(tensors, path, {"format": "pt"})
        assert_equal(tensors, penstock.torch.load_file(path))


@pytest.mark.skipif(not hasattr(torch, "float4_e2m1fn_x2"), reason="a torch without it")
def test_two_values_to_a_byte(tmp_path: Path, rng: random.Random) -> None:
    path = tmp_path / "a.safetensors"
    packed = torch.empty(0, dtype=torch.float4_e2m1fn_x2).set_(storage_of(rng, 24, torch.uint8), 0, (4, 6), (6, 1))
    penstock.torch.save_file({"a": packed}, path)
    assert json.loads(path.read_bytes()[8:].split(b"}}")[0] + b"}}")["a"]["shape"] == [4, 12]
    back = penstock.torch.load_file(path)["a"]
    assert back.shape == (4, 6) and torch.equal(back.view(torch.uint8), packed.view(torch.uint8))
    with penstock.torch.open(path) as file:
        part = file.get_slice("a")[1:3, 2:5]
    assert torch.equal(part.view(torch.uint8), packed.view(torch.uint8)[1:3, 2:5])
    safetensors.torch.save_file({"a": packed}, path)
    assert torch.equal(penstock.torch.load_file(path)["a"].view(torch.uint8), packed.view(torch.uint8))


def test_the_suffix_chooses(tmp_path: Path) -> None:
    penstock.torch.save({"a": torch.ones(3)}, tmp_path / "a.safetensors", metadata={"x": "y"})
    assert torch.equal(safetensors.torch.load_file(tmp_path / "a.safetensors")["a"], torch.ones(3))
    penstock.torch.save({"a": torch.ones(3)}, tmp_path / "plain", format="safetensors")
    assert torch.equal(safetensors.torch.load_file(tmp_path / "plain")["a"], torch.ones(3))
    assert torch.equal(penstock.torch.load(tmp_path / "plain")["a"], torch.ones(3))
    penstock.torch.save({"a": 3}, tmp_path / "b.safetensors", format="torch")
    assert penstock.torch.load(tmp_path / "b.safetensors") == {"a": 3}


def test_shards(tmp_path: Path, rng: random.Random) -> None:
    tensors = {f"t{i}": torch.randn(rng.randint(1, 50_000)) for i in range(20)}
    folder = tmp_path / "model"
    report = penstock.torch.save_file(tensors, folder, shard_bytes=400_000)
    assert report.files > 2
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(tensors)
    found: dict[str, torch.Tensor] = {}
    for name in set(index["weight_map"].values()):
        found |= safetensors.torch.load_file(folder / name)
    assert_equal(tensors, found)
    assert_equal(tensors, penstock.torch.load(folder, verify=True))
    with pytest.raises(penstock.Error, match="model"):
        penstock.torch.save_file(tensors, folder, shard_bytes=400_000)


INDICES: list[Any] = [
    ...,
    slice(None),
    3,
    -1,
    slice(2, 5),
    (slice(None), 4),
    (..., slice(1, 2)),
    (1, ..., slice(-3, None)),
    (slice(1, 4), slice(2, 3), slice(0, 5)),
    (0, 1, 2),
    (slice(4, 2),),
    (slice(1, 100), slice(0, 0)),
]


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_slices(tmp_path: Path, rng: random.Random, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    base = torch.randn(7, 8, 9)
    turned = base.permute(2, 0, 1)
    tensors = {"x": base, "y": torch.arange(10, dtype=torch.int16), "z": torch.tensor(2.5), "e": torch.empty(0, 3)}
    if suffix == "pt":
        tensors["turned"] = turned  # strides in the file
    penstock.torch.save(tensors, path)
    with penstock.torch.open(path) as file:
        assert set(file.keys()) == set(tensors) and len(file) == len(tensors) and "x" in file and "q" not in file
        for name, tensor in tensors.items():
            assert torch.equal(file.get_tensor(name), tensor) and file.get_tensor(name).dtype == tensor.dtype
        for name in ("x", "turned") if suffix == "pt" else ("x",):
            part = file.get_slice(name)
            assert part.get_shape() == list(tensors[name].shape) and part.get_dtype() == "F32"
            for index in INDICES:
                found = part[index]
                assert found.shape == tensors[name][index].shape and torch.equal(found, tensors[name][index]), index
        for _ in range(50):
            bounds = [sorted(rng.choices(range(n + 1), k=2)) for n in base.shape]
            index = tuple(slice(*pair) for pair in bounds)
            assert torch.equal(file.get_slice("x")[index], base[index]), index
        with pytest.raises(KeyError, match="nothing"):
            file.get_slice("nothing")
        with pytest.raises(UsageError, match="step 2"):
            file.get_slice("x")[::2]
        for index in ([1, 2], torch.tensor([1]), "a", None, True):
            with pytest.raises(UsageError, match="an index of"):
                file.get_slice("x")[index]
        for index in (7, -8, (0, 8), (0, 0, 0, 0), (..., ...)):
            with pytest.raises(IndexError):
                file.get_slice("x")[index]
    with pytest.raises(UsageError, match="closed"):
        file.get_tensor("x")


def test_metadata_of_an_opened_file(tmp_path: Path) -> None:
    penstock.torch.save_file({"a": torch.ones(3)}, tmp_path / "a.safetensors", {"format": "pt"})
    with penstock.torch.open(tmp_path / "a.safetensors") as file:
        assert file.metadata("format") == "pt" and file.metadata("none") is None


def test_what_safetensors_cannot_hold(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    base = torch.zeros(10)
    cases = {
        "share memory": {"a": base, "b": base},
        "'a' and 'b' share memory": {"a": base[:6], "b": base[5:]},
        "contiguous": {"a": torch.zeros(3, 4).T},
        "not dense": {"a": torch.sparse_coo_tensor([[0]], [1.0], (2,))},
        "meta": {"a": torch.zeros(3, device="meta")},
        "complex128": {"a": torch.zeros(3, dtype=torch.complex128)},
        "conjugation": {"a": torch.zeros(3, dtype=torch.cfloat).conj()},
        "is a int, not a tensor": {"a": 3},
        "name is text": {3: base},
        "not a list": [base],
        "zero character": {"a\0b": base},
    }
    for message, tensors in cases.items():
        with pytest.raises(UsageError, match=message):
            penstock.torch.save_file(tensors, path)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="metadata is text"):
        penstock.torch.save_file({}, path, {"a": 3})  # type: ignore[dict-item]
    with pytest.raises(penstock.Error, match=r"penstock\."):
        penstock.torch.save_file({"a": base}, path, {"penstock.digests": "x"})
    assert not path.exists()
    penstock.torch.save_file({"a": base[:5], "b": base[5:]}, path)  # one storage, and nothing shared
    assert_equal({"a": base[:5], "b": base[5:]}, safetensors.torch.load_file(path))
    torch.save([1], tmp_path / "a.pt")
    with pytest.raises(UsageError, match=r"a\.pt: is no safetensors file"):
        penstock.torch.load_file(tmp_path / "a.pt")
