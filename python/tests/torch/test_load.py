# SPDX-License-Identifier: Apache-2.0
"""What penstock.torch.load makes of files of torch.save, its own and hostile ones."""

from __future__ import annotations

import collections
import io
import os
import random
import struct
import zipfile
from pathlib import Path
from typing import Any

import penstock
import penstock.torch
import pytest
import torch
from objects import DTYPES, Maker, assert_same, content, storage_of
from penstock.errors import FileMissingError, FormatError, UnsupportedError, UsageError

ROUNDS = 40


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_random_objects_of_torch_save(tmp_path: Path, rng: random.Random, protocol: int) -> None:
    path = tmp_path / "a.pt"
    for _ in range(ROUNDS):
        obj = Maker(rng, weights_only=False).anything(depth=5)
        torch.save(obj, path, pickle_protocol=protocol)
        assert_same(obj, penstock.torch.load(path))


def test_random_objects_of_its_own(tmp_path: Path, rng: random.Random) -> None:
    path = tmp_path / "a.pt"
    for round in range(ROUNDS):
        obj = Maker(rng, weights_only=False).anything(depth=5)
        penstock.torch.save(obj, path, digests=round % 4 != 0)
        assert_same(obj, penstock.torch.load(path, verify=round % 2 == 0))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype(tmp_path: Path, rng: random.Random, dtype: torch.dtype) -> None:
    size = torch.empty(0, dtype=dtype).element_size()
    full = torch.empty(0, dtype=dtype).set_(storage_of(rng, 5000 * size, dtype))
    obj = [full, full[7:100], full[::2], full[:4000].reshape(40, 100).T, full[5], full[:0], full[9:9].reshape(2, 0, 3)]
    torch.save(obj, tmp_path / "a.pt")
    if str(dtype) == "torch.float4_e2m1fn_x2":  # two to a byte: only rows that lie in one piece are known
        with pytest.raises(UnsupportedError, match="float4_e2m1fn_x2"):
            penstock.torch.load(tmp_path / "a.pt")
        obj = [full, full[7:100], full[:4000].reshape(40, 100), full[:4000].reshape(40, 100)[:, 5:7]]
        torch.save(obj, tmp_path / "a.pt")
    assert_same(obj, penstock.torch.load(tmp_path / "a.pt"))
    with penstock.torch.open(tmp_path / "a.pt") as file:
        for i, tensor in enumerate(obj):
            found = file.get_tensor(str(i))
            assert found.shape == tensor.shape and found.dtype == dtype and found.is_contiguous()
            if tensor.numel():
                assert content(tensor.clone(memory_format=torch.contiguous_format).untyped_storage()) == content(
                    found.untyped_storage()
                )


def test_conjugate_and_negative_views(tmp_path: Path) -> None:
    base = torch.randn(5, dtype=torch.cfloat)
    obj = [base, base.conj(), torch.randn(5, dtype=torch.cfloat).conj().imag]
    torch.save(obj, tmp_path / "a.pt")
    back = penstock.torch.load(tmp_path / "a.pt")
    assert_same(obj, back)
    assert back[1].is_conj() and back[2].is_neg() and torch.equal(back[2], obj[2])


def test_ties_and_views_share_memory(tmp_path: Path) -> None:
    base = torch.arange(100.0)
    obj = {"base": base, "tied": base, "view": base[10:20], "turned": base.reshape(10, 10).T}
    torch.save(obj, tmp_path / "a.pt")
    back = penstock.torch.load(tmp_path / "a.pt")
    assert back["base"] is back["tied"]
    back["base"][11] = -1
    assert back["view"][1] == -1 and back["turned"][1, 1] == -1


def test_meta_reads_no_data(tmp_path: Path) -> None:
    penstock.torch.save({"a": torch.zeros(1000, 1000), "b": 3}, tmp_path / "a.pt")
    back = penstock.torch.load(tmp_path / "a.pt", map_location="meta")
    assert back["a"].is_meta and back["a"].shape == (1000, 1000) and back["b"] == 3
    expected = torch.load(tmp_path / "a.pt", map_location="meta", weights_only=True)
    assert back["a"].stride() == expected["a"].stride()


@pytest.mark.parametrize("where", [None, "cpu", b"cpu", torch.device("cpu")])
def test_places_on_the_host(tmp_path: Path, where: Any) -> None:
    torch.save(torch.ones(3), tmp_path / "a.pt")
    assert torch.equal(penstock.torch.load(tmp_path / "a.pt", where), torch.ones(3))


def test_arguments_that_cannot_be(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    torch.save(torch.ones(3), path)
    for where in ({"cpu": "cpu"}, lambda storage, _: storage, 3):
        with pytest.raises(UsageError, match=r"map_location is a device.*torch\.load"):
            penstock.torch.load(path, where)
    with pytest.raises(UsageError, match="map_location 'gpu'"):
        penstock.torch.load(path, "gpu")
    with pytest.raises(UsageError, match="never executes a pickle"):
        penstock.torch.load(path, weights_only=False)
    with pytest.raises(UsageError, match="mmap=True"):
        penstock.torch.load(path, mmap=True)
    for file in (io.BytesIO(path.read_bytes()), path.open("rb"), 3):
        with pytest.raises(UsageError, match="takes a path"):
            penstock.torch.load(file)  # type: ignore[arg-type]
    with pytest.raises(FileMissingError, match=r"nothing\.pt"):
        penstock.torch.load(tmp_path / "nothing.pt")


class Hostile:
    """Runs a command where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.system, (f"touch '{self.mark}'",)


class Unknown:
    pass


def test_foreign_objects_are_refused_by_name_and_not_executed(tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    cases = {
        r"(posix|os)[. ]system": {"a": torch.ones(2), "b": Hostile(mark)},
        r"test_load[. ]Unknown": [Unknown()],
        r"Linear": torch.nn.Linear(2, 2),
        r"functools[. ]partial": [__import__("functools").partial(int, "3")],
        r"builtins[. ]print|__builtin__[. ]print": [print],
        r"defaultdict": collections.defaultdict(list),
        r"_rebuild_qtensor|QInt8": [torch.quantize_per_tensor(torch.randn(5), 0.1, 2, torch.qint8)],
        r"sparse": [torch.sparse_coo_tensor([[0]], [1.0], (2,))],
    }
    for name, obj in cases.items():
        for protocol in (2, 4):
            torch.save(obj, tmp_path / "a.pt", pickle_protocol=protocol)
            with pytest.raises(penstock.Error, match=name) as caught:
                penstock.torch.load(tmp_path / "a.pt")
            assert "torch.load" in str(caught.value) and str(tmp_path / "a.pt") in str(caught.value), name
    assert not mark.exists()
    torch.load(tmp_path / "a.pt", weights_only=False)


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    torch.save({"a": torch.ones(3)}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(penstock.Error, match=r"a\.pt"):
        penstock.torch.load(path)
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(path))
    with pytest.raises(penstock.Error, match=r"a\.pt.*(TorchScript|constants\.pkl)"):
        penstock.torch.load(path)
    for junk in (b"", b"PK", b"PK\3\4" + bytes(100), b"garbage" * 99):
        path.write_bytes(junk)
        with pytest.raises(penstock.Error, match=r"a\.pt"):
            penstock.torch.load(path)


def test_truncated_files(tmp_path: Path, rng: random.Random) -> None:
    path = tmp_path / "a.pt"
    penstock.torch.save({"a": torch.randn(20_000), "b": [torch.randn(10)]}, path)
    whole = path.read_bytes()
    for _ in range(30):
        path.write_bytes(whole[: rng.randrange(len(whole))])
        with pytest.raises(penstock.Error, match=r"a\.pt"):
            penstock.torch.load(path)


def test_a_flipped_byte_of_a_tensor_is_found(tmp_path: Path, rng: random.Random) -> None:
    path = tmp_path / "a.pt"
    obj = {"first": torch.randn(20_000), "second": torch.randn(30_000)}
    penstock.torch.save(obj, path)
    assert_same(obj, penstock.torch.load(path, verify=True))
    whole = path.read_bytes()
    for tensor in obj.values():
        data = struct.pack(f"<{tensor.numel()}f", *tensor.tolist())
        place = whole.index(data) + rng.randrange(len(data))
        changed = bytearray(whole)
        changed[place] ^= 1 << rng.randrange(8)
        path.write_bytes(changed)
        with pytest.raises(FormatError, match=r"a\.pt.*digest"):
            penstock.torch.load(path, verify=True)
        penstock.torch.load(path)  # not asked for


def rewrite(path: Path, change: dict[str, bytes]) -> None:
    """Replaces records of a .pt file."""
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in records.items():
            archive.writestr(name, change.get(name.partition("/")[2], content))


def test_hostile_trees(tmp_path: Path) -> None:
    """Things that are well-formed pickles, and would hang, crash or mislead who builds them."""
    path = tmp_path / "a.pt"

    def load(pickled: bytes) -> Any:
        torch.save(torch.ones(2), path)
        rewrite(path, {"data.pkl": b"\x80\x02" + pickled + b"."})
        return penstock.torch.load(path)

    doubled = b")" + b"".join(b"q%c0h%ch%c\x86" % (i, i, i) for i in range(60))
    assert load(b"K\x07") == 7
    with pytest.raises(penstock.Error, match=r"a\.pt"):  # a list that holds itself
        load(b"]q\x00h\x00a")
    with pytest.raises(penstock.Error, match=r"a\.pt"):  # a list as a key
        load(b"}]K\x01s")
    with pytest.raises(penstock.Error, match=r"a\.pt"):  # a key whose hash takes for ever
        load(b"}" + doubled + b"K\x01s")
    with pytest.raises(penstock.Error, match=r"a\.pt"):  # a key whose hash recurses too deeply
        load(b"})" + b"\x85" * 100_000 + b"K\x01s")
    try:
        deep = load(b"]" * 100_000 + b"a" * 99_999)
    except penstock.Error as problem:
        assert "a.pt" in str(problem)
    else:
        depth = 0
        while deep:
            (deep,) = deep
            depth += 1
        assert depth == 99_999


def test_attributes(tmp_path: Path) -> None:
    """What state dicts and parameters have hung on them; never over what a class defines."""
    path = tmp_path / "a.pt"
    state = torch.nn.Linear(2, 3).state_dict()
    state.note = "kept"
    torch.save(state, path)
    back = penstock.torch.load(path)
    assert_same(state, back)
    assert back._metadata == state._metadata and back.note == "kept"
    state.keys = 3  # hides the method
    torch.save(state, path)
    with pytest.raises(penstock.Error, match="keys"):
        penstock.torch.load(path)


def test_a_shallow_error_of_the_library_is_raised_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(penstock.Error) as caught:
        penstock.torch.load(tmp_path)  # an empty folder
    assert caught.value.path is not None
