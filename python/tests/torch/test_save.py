# SPDX-License-Identifier: Apache-2.0
"""What penstock.torch.save writes, read by torch.load, zipfile and unzip."""

from __future__ import annotations

import io
import os
import random
import shutil
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import penstock
import penstock.torch
import pytest
import torch
from objects import DTYPES, Maker, assert_same, storage_of
from penstock.errors import FileMissingError, PickleError, UnsupportedError, UsageError

ROUNDS = 40


def stock(obj: Any, protocol: int = 2) -> zipfile.ZipFile:
    """What torch.save makes of it."""
    file = io.BytesIO()
    torch.save(obj, file, pickle_protocol=protocol)
    return zipfile.ZipFile(file)


def check_zip(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
    if shutil.which("unzip"):
        subprocess.run(["unzip", "-tqq", path], check=True)


def test_random_objects_come_back_through_torch_load(tmp_path: Path, rng: random.Random) -> None:
    for round in range(ROUNDS):
        obj = Maker(rng).anything(depth=5)
        path = tmp_path / f"{round % 3}.pt"  # over older files too
        penstock.torch.save(obj, path, digests=round % 2 == 0)
        assert_same(obj, torch.load(path, weights_only=True))
        assert_same(obj, torch.load(path, weights_only=False))
        assert_same(obj, torch.load(path, weights_only=True, mmap=True))
        check_zip(path)


def test_the_records_are_torch_save_s(tmp_path: Path, rng: random.Random) -> None:
    for protocol in (2, 3, 4, 5):
        obj = Maker(rng, weights_only=False).anything(depth=5)
        path = tmp_path / "model.tar.pt"
        penstock.torch.save(obj, path, pickle_protocol=protocol)
        expected = stock(obj, protocol)
        with zipfile.ZipFile(path) as found:
            names = {name.partition("/")[2]: name for name in found.namelist()}
            assert all(name.startswith("model.tar/") for name in names.values())  # as torch.save names the folder
            wanted = {name.partition("/")[2]: name for name in expected.namelist()}
            assert set(wanted) <= set(names) <= set(wanted) | {".penstock/digests"}
            assert found.read(names["data.pkl"]) == expected.read(wanted["data.pkl"])
            for record in set(wanted) - {".data/serialization_id", ".storage_alignment"}:
                assert found.read(names[record]) == expected.read(wanted[record]), record
            assert all(info.compress_type == zipfile.ZIP_STORED for info in found.infolist())


def test_offsets_are_those_that_torch_calculates(tmp_path: Path, rng: random.Random, monkeypatch: Any) -> None:
    """torch can compute where records lie instead of looking them up, and check itself."""
    from torch.utils.serialization import config

    obj = {str(i): torch.randn(rng.randint(0, 5000)) for i in range(30)}
    penstock.torch.save(obj, tmp_path / "a.pt")
    monkeypatch.setenv("TORCH_SERIALIZATION_DEBUG", "1")
    with config.patch("load.calculate_storage_offsets", True):
        assert_same(obj, torch.load(tmp_path / "a.pt", weights_only=True))
        assert_same(obj, torch.load(tmp_path / "a.pt", weights_only=True, mmap=True))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype(tmp_path: Path, rng: random.Random, dtype: torch.dtype) -> None:
    size = torch.empty(0, dtype=dtype).element_size()
    storage = storage_of(rng, 5000 * size, dtype)
    full = torch.empty(0, dtype=dtype).set_(storage)
    obj = [full, full[7:100], full[::2], full[:4000].reshape(40, 100).T, full[5], full[:0]]
    penstock.torch.save(obj, tmp_path / "a.pt")
    assert_same(obj, torch.load(tmp_path / "a.pt", weights_only=True))


class TiedModel(torch.nn.Module):
    """Embedding and head are one; a buffer is a view of another."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(97, 32)
        self.body = torch.nn.Sequential(torch.nn.Linear(32, 64), torch.nn.BatchNorm1d(64), torch.nn.Linear(64, 32))
        self.head = torch.nn.Linear(32, 97, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("table", torch.arange(100.0).reshape(10, 10))
        self.register_buffer("row", self.table[3])

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(self.embed(ids)))


OPTIMIZERS = {
    "SGD": {"momentum": 0.9},
    "Adam": {"amsgrad": True},
    "AdamW": {},
    "Adagrad": {},
    "RMSprop": {"centered": True},
    "NAdam": {},
    "RAdam": {},
    "Adadelta": {},
    "LBFGS": {},
}


def trained(name: str, **settings: Any) -> dict[str, Any]:
    """The state of a training run after some steps."""
    model = TiedModel()
    optimizer = getattr(torch.optim, name)(model.parameters(), lr=0.01, **settings)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=10, cycle_momentum=False)
    for _ in range(2):

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            ids = torch.randint(0, 97, (8,))
            loss = torch.nn.functional.cross_entropy(model(ids), ids)
            loss.backward()
            return loss

        optimizer.step(closure)
        scheduler.step()
    return {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scheduler": {k: v for k, v in scheduler.state_dict().items() if not callable(v) and k != "anneal_func_type"},
        "rng": torch.get_rng_state(),
        "step": 2,
        "best": float("inf"),
    }


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_training_states(tmp_path: Path, name: str) -> None:
    state = trained(name, **OPTIMIZERS[name])
    path = tmp_path / "last.pt"
    penstock.torch.save(state, path)
    loaded = torch.load(path, weights_only=True)
    assert_same(state, loaded)
    assert loaded["model"]._metadata == state["model"]._metadata
    assert loaded["model"]["head.weight"].data_ptr() == loaded["model"]["embed.weight"].data_ptr()
    TiedModel().load_state_dict(loaded["model"])
    assert_same(state, penstock.torch.load(path, verify=True))


class Subclass(torch.Tensor):
    pass


class Config:
    """A class of the caller's."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Config) and other.size == self.size


def test_whatever_torch_s_pickling_knows(tmp_path: Path) -> None:
    torch.manual_seed(1)
    quantized = torch.quantize_per_tensor(torch.randn(50), 0.1, 2, torch.qint8)
    channels = torch.quantize_per_channel(torch.randn(3, 4), torch.ones(3), torch.zeros(3), 0, torch.quint8)
    coo = torch.sparse_coo_tensor([[0, 1], [1, 0]], [1.0, 2.0], (2, 2))
    tagged = torch.nn.Parameter(torch.randn(3))
    tagged.is_first = True  # an attribute of the caller's
    subclass = torch.randn(4).as_subclass(Subclass)
    module = TiedModel()
    obj = [quantized, channels, coo, coo.to_sparse_csr(), tagged, subclass, Config(3), torch.randn(3, device="meta")]
    obj += [torch.randn(4, dtype=torch.cfloat).conj(), torch.randn(4).untyped_storage(), torch.FloatStorage(3)]
    obj += [torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]), module]
    penstock.torch.save(obj, tmp_path / "a.pt")
    back = torch.load(tmp_path / "a.pt", weights_only=False)
    assert torch.equal(back[0].int_repr(), quantized.int_repr()) and back[0].q_scale() == quantized.q_scale()
    assert torch.equal(back[1].int_repr(), channels.int_repr())
    assert torch.equal(back[2].to_dense(), coo.to_dense()) and torch.equal(back[3].to_dense(), coo.to_dense())
    assert torch.equal(back[4], tagged) and back[4].is_first is True
    assert type(back[5]) is Subclass and torch.equal(back[5], subclass)
    assert back[6] == Config(3) and back[7].is_meta and back[7].shape == (3,)
    assert back[8].is_conj() and torch.equal(back[8], obj[8])
    assert back[9].tolist() == obj[9].tolist() and back[10].tolist() == obj[10].tolist()
    assert torch.equal(back[11].values(), obj[11].values())
    assert_same(module.state_dict(), back[12].state_dict())
    with zipfile.ZipFile(tmp_path / "a.pt") as archive:
        assert archive.read("a/data.pkl") == stock(obj).read("archive/data.pkl")


def test_more_than_65535_records(tmp_path: Path) -> None:
    obj = [torch.tensor([i, -i]) for i in range(66_000)]
    path = tmp_path / "many.pt"
    penstock.torch.save(obj, path)
    with zipfile.ZipFile(path) as archive:
        assert len(archive.namelist()) > 66_000 and archive.testzip() is None
    back = torch.load(path, weights_only=True)
    assert torch.equal(torch.stack(back), torch.stack(obj))
    again = penstock.torch.load(path, verify=True)
    assert torch.equal(torch.stack(again), torch.stack(obj))


LONG = pytest.mark.skipif(not os.environ.get("PST_TEST_LONG"), reason="set PST_TEST_LONG to write 5 GiB")


@LONG
@pytest.mark.slow
def test_more_than_4_gib(tmp_path: Path) -> None:
    if shutil.disk_usage(tmp_path).free < 12 << 30:
        pytest.skip("not enough room on the drive")
    generator = torch.Generator().manual_seed(7)
    block = torch.randint(0, 2**62, (1 << 20,), generator=generator)
    large = torch.empty(4700 << 17, dtype=torch.int64)  # 4.6 GiB
    for i in range(0, large.numel(), block.numel()):
        part = large[i : i + block.numel()]
        torch.add(block[: part.numel()], i, out=part)
    obj = {"small": block[:5].clone(), "large": large, "after": torch.ones(3), "view": large[-10:]}
    path = tmp_path / "large.pt"
    penstock.torch.save(obj, path)
    back = torch.load(path, weights_only=True, mmap=True)
    assert torch.equal(back["large"], large) and torch.equal(back["after"], obj["after"])
    assert torch.equal(back["view"], obj["view"]) and torch.equal(back["small"], obj["small"])
    del back
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
    again = penstock.torch.load(path, verify=True)
    assert torch.equal(again["large"], large) and again["view"].data_ptr() == again["large"][-10:].data_ptr()


def test_the_report(tmp_path: Path) -> None:
    report = penstock.torch.save({"a": torch.zeros(1000), "b": torch.zeros(3)}, tmp_path / "a.pt")
    assert report.data_bytes == 4012 and report.tensors == 2 and report.files == 1
    assert report.file_bytes == (tmp_path / "a.pt").stat().st_size <= report.written_bytes
    assert report.seconds > 0 and report.io_engine


def test_settings_of_io(tmp_path: Path) -> None:
    obj = {"a": torch.randn(300_000)}
    for settings in ({"engine": "threads"}, {"buffered": True}, {"block_size": 65536, "queue_depth": 3}):
        penstock.torch.save(obj, tmp_path / "a.pt", io=settings, ring_bytes=16 << 20)
        assert_same(obj, penstock.torch.load(tmp_path / "a.pt", io=settings))
    with pytest.raises(UsageError, match="speed"):
        penstock.torch.save(obj, tmp_path / "a.pt", io={"speed": 3})


def test_names_of_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("plain", "größe.pt", "a.b.c", ".hidden", "with space.pth", "x.bin"):
        penstock.torch.save(torch.ones(3), name)
        assert torch.equal(torch.load(name, weights_only=True), torch.ones(3))
    assert sorted(os.listdir()) == sorted(("plain", "größe.pt", "a.b.c", ".hidden", "with space.pth", "x.bin"))


def test_what_cannot_be_saved_leaves_the_older_file(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    penstock.torch.save([1, 2], path)
    with pytest.raises(PickleError, match=r"a\.pt: cannot be pickled") as caught:
        penstock.torch.save({"f": lambda: 1}, path)
    assert caught.value.__cause__ is not None and caught.value.path == str(path)
    shared = torch.zeros(4)
    with pytest.raises(UnsupportedError, match=r"a\.pt: .*float32.*int32"):
        penstock.torch.save([shared, shared.view(torch.int32)], path)
    with pytest.raises(UsageError, match="protocol 1"):
        penstock.torch.save(1, path, pickle_protocol=1)
    with pytest.raises(UsageError, match="format 'zip'"):
        penstock.torch.save(1, path, format="zip")
    with pytest.raises(UsageError, match="metadata"):
        penstock.torch.save(1, path, metadata={"a": "b"})
    with pytest.raises(FileMissingError, match="nowhere"):
        penstock.torch.save(1, tmp_path / "nowhere" / "a.pt")
    for file in (io.BytesIO(), 3, None):
        with pytest.raises(UsageError, match="takes a path"):
            penstock.torch.save(1, file)  # type: ignore[arg-type]
    assert torch.load(path, weights_only=True) == [1, 2]
    assert os.listdir(tmp_path) == ["a.pt"]


def test_nested_too_deeply(tmp_path: Path) -> None:
    nested: list[Any] = []
    for _ in range(100_000):
        nested = [nested]
    with pytest.raises(PickleError, match="recursion"):
        penstock.torch.save(nested, tmp_path / "a.pt")


def test_memory_that_is_not_the_host_s(tmp_path: Path, rng: random.Random, monkeypatch: pytest.MonkeyPatch) -> None:
    """The way of tensors on a device, without one."""
    from penstock import _torch_load, _torch_save

    for module in (_torch_save, _torch_load):
        monkeypatch.setattr(module, "on_host", lambda device: False)
    monkeypatch.setattr(_torch_save, "synchronize", lambda devices: None)
    monkeypatch.setattr(_torch_load, "STAGING_BYTES", 100_000)
    for _ in range(10):
        obj = [Maker(rng).anything(depth=4), torch.randn(rng.randrange(300_000))]
        penstock.torch.save(obj, tmp_path / "a.pt")
        assert_same(obj, torch.load(tmp_path / "a.pt", weights_only=True))
        assert_same(obj, penstock.torch.load(tmp_path / "a.pt", verify=True))
    plain = {"a": torch.randn(300_000), "b": torch.randn(3, 4).bfloat16(), "c": torch.tensor(1), "d": torch.empty(0, 3)}
    penstock.torch.save_file(plain, tmp_path / "a.safetensors")
    back = penstock.torch.load_file(tmp_path / "a.safetensors")
    assert_same(plain, {name: back[name] for name in plain})

    def broken(flat: Any) -> Any:
        def copy(offset: int, size: int, address: int) -> None:
            raise RuntimeError("the device fell off the bus")

        return copy

    monkeypatch.setattr(_torch_save, "device_source", broken)
    with pytest.raises(penstock.Error, match="fell off the bus") as caught:
        penstock.torch.save({"a": torch.zeros(3)}, tmp_path / "a.pt")
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert_same(obj, torch.load(tmp_path / "a.pt", weights_only=True))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no device")
def test_tensors_on_a_device(tmp_path: Path) -> None:
    base = torch.randn(300_000, device="cuda")
    obj = {"base": base, "view": base[5:100:3], "half": torch.randn(7, device="cuda").bfloat16(), "host": torch.ones(3)}
    penstock.torch.save(obj, tmp_path / "a.pt")
    assert_same(obj, torch.load(tmp_path / "a.pt", weights_only=True))
    with zipfile.ZipFile(tmp_path / "a.pt") as archive:
        assert archive.read("a/data.pkl") == stock(obj).read("archive/data.pkl")
    back = penstock.torch.load(tmp_path / "a.pt", "cuda")
    assert torch.equal(back["base"], base) and back["view"].data_ptr() == back["base"][5:].data_ptr()
    assert penstock.torch.load(tmp_path / "a.pt")["base"].device.type == "cpu"
    plain = {"a": base, "b": torch.randn(3, 4, device="cuda").half()}
    penstock.torch.save_file(plain, tmp_path / "a.safetensors")
    loaded = penstock.torch.load_file(tmp_path / "a.safetensors", "cuda")
    assert all(torch.equal(loaded[name], tensor) for name, tensor in plain.items())
    with penstock.torch.open(tmp_path / "a.safetensors", "cuda") as file:
        assert torch.equal(file.get_slice("b")[1:, 2], plain["b"][1:, 2])


def test_taken_now_and_pickled_later() -> None:
    """The bytes are those of torch.save at the moment when it was taken, whatever changes afterwards."""
    from penstock._torch_save import take

    torch.manual_seed(1)
    model = TiedModel()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    sum(parameter.sum() for parameter in model.parameters()).backward()
    optimizer.step()
    shared, values = torch.randn(6, 4), [1, "two", None]
    itself: list[Any] = []
    itself.append((itself,))
    obj = {
        "model": model.state_dict(),
        "parameters": list(model.parameters()),
        "optimizer": optimizer.state_dict(),
        "views": [shared, shared.t(), shared[2:, 1], shared],
        "twice": [values, (values, 3.5), values],
        "types": [torch.ones(2, dtype=dtype) for dtype in (torch.bool, torch.uint16, torch.bfloat16, torch.cfloat)],
        "plain": (torch.float32, torch.device("cpu"), torch.Size([3]), b"bytes", 1j, ()),
        "none": torch.empty(0),
        "itself": itself,
        1: torch.tensor(2.0, requires_grad=True),
    }
    for without in ((), ("types",)):  # a type that torch reduces in its own way is pickled at once
        state = {key: value for key, value in obj.items() if key not in without}
        with stock(state) as archive:
            expected = archive.read("archive/data.pkl")
        make, storages, tensors = take(state, 2, "x")
        assert (tensors is None) == (not without)
        keep = list(values)
        values.append("later")
        for group in optimizer.param_groups:
            group["lr"] = 0.5
        state["more"] = 5
        obj[1].requires_grad_(False)
        assert bytes(make().getbuffer()) == expected
        assert len(storages) == len({storage.data_ptr() for storage in storages if storage.nbytes()}) + 1
        values[:] = keep
        obj[1].requires_grad_(True)


def test_what_cannot_be_taken_later_is_pickled_at_once() -> None:
    from penstock._torch_save import take

    class Counter:
        def __init__(self) -> None:
            self.count = 1

        def __reduce__(self) -> Any:
            return (int, (self.count,))

    deep: list[Any] = []
    for _ in range(300):
        deep = [deep]
    for other in (Counter(), {1, 2}, bytearray(b"x"), {(1, 2): 3}, deep, torch.ones(2).to_sparse()):
        make, _, tensors = take({"x": torch.ones(3), "other": other}, 2, "x")
        assert tensors is None
        before = bytes(make().getbuffer())
        if isinstance(other, Counter):
            other.count = 2
        assert bytes(make().getbuffer()) == before
    with pytest.raises(PickleError, match="cannot be pickled"):
        take({"x": torch.ones(3), "function": lambda: 0}, 2, "x")
