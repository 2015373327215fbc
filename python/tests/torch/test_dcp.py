# SPDX-License-Identifier: Apache-2.0
"""Storage for torch.distributed.checkpoint: sharded states, other numbers of processes, stock readers and writers."""

from __future__ import annotations

import json
import pickle
import warnings
from pathlib import Path
from typing import Any

import pytest
from penstock.errors import FileIsThereError, FormatError, UsageError
from processes import KILLED, START, finish, run_ranks, start_ranks

torch = pytest.importorskip("torch")

import torch.distributed.checkpoint as dcp  # noqa: E402
from penstock.dcp import PenstockReader, PenstockWriter  # noqa: E402
from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter  # noqa: E402
from torch.distributed.checkpoint.api import CheckpointException  # noqa: E402
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save  # noqa: E402

FORMATS = ["safetensors", "pt"]

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def state(seed: int) -> dict[str, Any]:
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(33, 7), torch.nn.Linear(7, 5, bias=False))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1 * seed)
    model(torch.randn(4, 33)).sum().backward()
    optimizer.step()
    shared = torch.randn(40)
    return {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "half": torch.randn(9, 3).to(torch.bfloat16),
        "column": torch.randn(6, 8)[:, 3],
        "turned": torch.randn(6, 8).t(),
        "one": torch.tensor(3.0 + seed),
        "none": torch.empty(0, 4),
        "tied": shared,
        "tied too": shared,
        "view": shared[5:10],
        "integers": torch.arange(5) + seed,
        "bool": torch.tensor([True, False]),
        "step": 100 * seed,
        "name": f"run {seed}",
        "list": [1, torch.ones(3) * seed, "x"],
    }


def same(left: Any, right: Any) -> bool:
    if isinstance(left, torch.Tensor):
        return left.dtype == right.dtype and torch.equal(left, right)
    if isinstance(left, dict):
        return list(left) == list(right) and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list):
        return len(left) == len(right) and all(same(*pair) for pair in zip(left, right, strict=True))
    return bool(left == right)


def load(reader: Any) -> dict[str, Any]:
    into = state(9)
    dcp.load(into, storage_reader=reader)
    return into


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("asynchronous", [False, True])
def test_save_and_load(tmp_path: Path, format: str, asynchronous: bool) -> None:
    writer = PenstockWriter(tmp_path / "a" / "b", format=format)
    if asynchronous and not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        if asynchronous:
            dcp.async_save(state(1), storage_writer=writer).result()
        else:
            dcp.save(state(1), storage_writer=writer)
        assert same(load(PenstockReader(tmp_path / "a" / "b", verify=True)), state(1))
    finally:
        if asynchronous:
            torch.distributed.destroy_process_group()


def test_the_folder_is_the_one_from_the_beginning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    writer = PenstockWriter("here")
    other = PenstockWriter("unused")
    other.reset("there")
    monkeypatch.chdir("elsewhere")
    dcp.save(state(1), storage_writer=writer)
    assert same(load(PenstockReader(tmp_path / "here")), state(1))
    assert other.path == str(tmp_path / "there") and not list((tmp_path / "elsewhere").iterdir())


def test_other_kinds_of_memory(tmp_path: Path) -> None:
    """What is loaded into need not be of the stored type, nor contiguous."""
    dcp.save({"x": torch.randn(50, 20).double(), "y": torch.arange(12.0)}, storage_writer=PenstockWriter(tmp_path))
    into = {"x": torch.zeros(20, 50).t(), "y": torch.zeros(12, dtype=torch.int64)}
    dcp.load(into, storage_reader=PenstockReader(tmp_path))
    stock = {"x": torch.zeros(20, 50).t(), "y": torch.zeros(12, dtype=torch.int64)}
    dcp.save({"x": torch.zeros(1)}, storage_writer=FileSystemWriter(tmp_path / "other"))
    assert torch.equal(into["y"], torch.arange(12)) and into["x"].abs().sum() > 0 and not stock["x"].any()


def test_stock_reads_the_pt_format(tmp_path: Path) -> None:
    dcp.save(state(2), storage_writer=PenstockWriter(tmp_path / "ours", format="pt"))
    assert same(load(FileSystemReader(tmp_path / "ours")), state(2))
    dcp_to_torch_save(tmp_path / "ours", tmp_path / "all.pt")
    whole = torch.load(tmp_path / "all.pt", weights_only=False)
    assert same(whole["model"], dict(state(2)["model"])) and whole["step"] == 200


def test_what_stock_wrote_is_read(tmp_path: Path) -> None:
    dcp.save(state(3), storage_writer=FileSystemWriter(tmp_path))
    assert same(load(PenstockReader(tmp_path)), state(3))
    dcp.save(state(4), storage_writer=FileSystemWriter(tmp_path / "many", single_file_per_rank=False))
    assert same(load(PenstockReader(tmp_path / "many")), state(4))
    # One over the other.
    dcp.save(state(1), storage_writer=PenstockWriter(tmp_path))
    assert same(load(PenstockReader(tmp_path)), state(1))
    assert not list(tmp_path.glob("__0_0.distcp"))


def test_stock_reads_the_tensors_of_safetensors(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors")
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

    weights = {"a": torch.randn(30, 7), "b": torch.arange(5)}
    dcp.save(weights, storage_writer=PenstockWriter(tmp_path))
    into = {"a": torch.zeros(30, 7), "b": torch.zeros(5, dtype=torch.int64)}
    dcp.load(into, storage_reader=HuggingFaceStorageReader(str(tmp_path)))
    assert same(into, weights)
    [path] = tmp_path.glob("*.safetensors")
    with safetensors.safe_open(path, framework="pt") as file:
        assert same({name: file.get_tensor(name) for name in sorted(file.keys())}, weights)


@pytest.mark.parametrize("format", FORMATS)
def test_over_an_older_one(tmp_path: Path, format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    dcp.save(state(1), storage_writer=PenstockWriter(tmp_path, format=format))
    with pytest.raises(CheckpointException) as raised:
        dcp.save(state(2), storage_writer=PenstockWriter(tmp_path, format=format, overwrite=False))
    assert "overwrite=False" in str(raised.value) or isinstance(raised.value, FileIsThereError)

    # Failing at the last moment: the older one is there, whole.
    def refuse(*_: Any) -> None:
        raise OSError("no metadata today")

    with monkeypatch.context() as patch:
        patch.setattr("penstock.dcp.write_small", refuse)
        with pytest.raises(CheckpointException, match="no metadata today"):
            dcp.save(state(2), storage_writer=PenstockWriter(tmp_path, format=format))
    assert same(load(PenstockReader(tmp_path)), state(1))

    writer = PenstockWriter(tmp_path, format=format)
    for seed in (3, 2):
        dcp.save(state(seed), storage_writer=writer)
        assert same(load(PenstockReader(tmp_path)), state(seed))
    left = [
        "__0_0-0123456789ab.safetensors.tmp-AbCdEf_-0123",
        "__1_7-0123456789ab.distcp",
        ".metadata.0123456789ab.tmp",
    ]
    for name in left:  # by a save that was killed
        (tmp_path / name).write_bytes(b"x")
    dcp.save(state(5), storage_writer=writer)
    assert same(load(PenstockReader(tmp_path)), state(5))
    named = {where.relative_path for where in FileSystemReader(tmp_path).read_metadata().storage_data.values()}
    assert {path.name for path in tmp_path.iterdir()} == {*named, ".metadata"}


def test_a_pickle_is_not_executed(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return (print, ("executed",))

    dcp.save({"x": torch.ones(3)}, storage_writer=PenstockWriter(tmp_path))
    good = (tmp_path / ".metadata").read_bytes()
    (tmp_path / ".metadata").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(CheckpointException, match=r"builtins\.print"):
        dcp.load({"x": torch.zeros(3)}, storage_reader=PenstockReader(tmp_path))
    for bad in (b"", good[:50], b"nonsense", pickle.dumps({"a": 1})):
        (tmp_path / ".metadata").write_bytes(bad)
        with pytest.raises(FormatError):
            PenstockReader(tmp_path).read_metadata()


def test_files_elsewhere_are_refused(tmp_path: Path) -> None:
    dcp.save({"x": torch.ones(3)}, storage_writer=PenstockWriter(tmp_path))
    metadata = FileSystemReader(tmp_path).read_metadata()
    for where in metadata.storage_data.values():
        where.relative_path = "../elsewhere"
    (tmp_path / ".metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(FormatError, match="outside"):
        PenstockReader(tmp_path).read_metadata()


def test_arguments_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        PenstockWriter(tmp_path, format="zip")


SHARDED = """
import torch.distributed.checkpoint as dcp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from penstock.dcp import PenstockReader, PenstockWriter
mesh = init_device_mesh("cpu", (count,))
def whole(seed):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(*shape, generator=generator)
            for name, shape in {"rows": (37, 5), "columns": (6, 41), "all": (3, 3), "few": (1, 2)}.items()}
def state(seed):
    full = whole(seed)
    placements = {"rows": Shard(0), "columns": Shard(1), "all": Replicate(), "few": Shard(0)}
    out = {name: distribute_tensor(full[name], mesh, [placements[name]]) for name in full}
    return {"model": out, "mine": {f"rank{rank}": torch.full((4,), float(rank))}, "step": seed}
def check(found, seed):
    for name, tensor in whole(seed).items():
        assert torch.equal(found["model"][name].full_tensor(), tensor), name
    assert found["step"] == seed
"""


def test_sharded_states_and_other_numbers_of_processes(tmp_path: Path) -> None:
    save = (
        SHARDED
        + """
for format in ("safetensors", "pt"):
    at = os.path.join(folder, format)
    dcp.save(state(1), storage_writer=PenstockWriter(at, format=format))
    dcp.async_save(state(2), storage_writer=PenstockWriter(at + "-async", format=format)).result()
    into = state(5)
    dcp.load(into, storage_reader=PenstockReader(at))
    check(into, 1)
    assert torch.equal(into["mine"][f"rank{rank}"], torch.full((4,), float(rank)))
dist.destroy_process_group()
"""
    )
    run_ranks(2, save, str(tmp_path))
    load = (
        SHARDED
        + """
def check_all(reader, at, seed):
    into = state(5)
    del into["mine"]
    dcp.load(into, storage_reader=reader(os.path.join(folder, at)))
    check(into, seed)
for at, seed in (("safetensors", 1), ("safetensors-async", 2), ("pt", 1), ("pt-async", 2)):
    check_all(PenstockReader, at, seed)
check_all(dcp.FileSystemReader, "pt", 1)
dist.destroy_process_group()
"""
    )
    run_ranks(3, load, str(tmp_path))
    run_ranks(1, load, str(tmp_path))


def test_ranks_by_themselves(tmp_path: Path) -> None:
    """Without collectives each rank has metadata of its own, and leaves the others' files alone."""
    code = """
import torch.distributed.checkpoint as dcp
from penstock.dcp import PenstockReader, PenstockWriter
for seed in (1, 2):
    state = {"x": torch.full((5,), 10.0 * seed + rank), "step": seed}
    dcp.save(state, storage_writer=PenstockWriter(folder), use_collectives=False)
    dist.barrier()
    into = {"x": torch.zeros(5), "step": 0}
    dcp.load(into, storage_reader=PenstockReader(folder))
    assert bool((into["x"] == 10 * seed + rank).all()) and into["step"] == seed, into
    dist.barrier()
assert len(os.listdir(folder)) == 3 * count, os.listdir(folder)
"""
    run_ranks(2, code, str(tmp_path))


def test_fsdp(tmp_path: Path) -> None:
    """A model under FSDP2 and its optimizer, saved by two processes, go on in one."""
    code = """
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from penstock.dcp import PenstockReader, PenstockWriter
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(16, 33), torch.nn.ReLU(), torch.nn.Linear(33, 4))
mesh = init_device_mesh("cpu", (count,))
for layer in (model[0], model[2]):
    fully_shard(layer, mesh=mesh)
fully_shard(model, mesh=mesh)
optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
def train(steps):
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        loss = model(torch.randn(8, 16, generator=generator)).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return loss.item()
if count == 2:
    train(range(5))
    weights, states = get_state_dict(model, optimizer)
    dcp.save({"model": weights, "optimizer": states}, storage_writer=PenstockWriter(folder))
    after = train(range(5, 8))
else:
    train(range(50, 52))
    weights, states = get_state_dict(model, optimizer)
    both = {"model": weights, "optimizer": states}
    dcp.load(both, storage_reader=PenstockReader(folder))
    set_state_dict(model, optimizer, model_state_dict=both["model"], optim_state_dict=both["optimizer"])
    after = train(range(5, 8))
print("LOSS", after)
dist.destroy_process_group()
"""
    losses = []
    for count in (2, 1):
        said = run_ranks(count, code, str(tmp_path))[0]
        losses.append(float(said.split("LOSS")[1].split()[0]))
    # Sums over ranks are of another order.
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_a_rank_killed_while_saving(tmp_path: Path) -> None:
    """The other gets an error, and the older checkpoint stays."""
    code = (
        SHARDED
        + """
dcp.save(state(1), storage_writer=PenstockWriter(folder))
from penstock import _background
if rank == 1:
    def stop(*arguments, **settings):
        os.kill(os.getpid(), 9)
    _background.Image.write = stop
try:
    dcp.save(state(2), storage_writer=PenstockWriter(folder))
except BaseException as problem:
    print("SAID", type(problem).__name__, flush=True)
os._exit(0)
"""
    )
    first, second = finish(start_ranks(2, START + code, str(tmp_path)))
    assert second[0] == KILLED, second[1]
    assert first[0] == 0 and "SAID" in first[1], first[1]
    code = (
        SHARDED
        + """
into = state(5)
del into["mine"]
dcp.load(into, storage_reader=PenstockReader(folder))
check(into, 1)
"""
    )
    run_ranks(1, code, str(tmp_path))


def test_the_metadata_of_a_file_says_which_part_it_is(tmp_path: Path) -> None:
    run_ranks(2, SHARDED + "dcp.save(state(1), storage_writer=PenstockWriter(folder))", str(tmp_path))
    offsets = {}
    for path in sorted(tmp_path.glob("*.safetensors")):
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        info = json.loads(header["__metadata__"]["DCP_SHARDING_INFO"])
        offsets[path.name[:4]] = info["model.rows"]["saved_offsets"]
    assert offsets == {"__0_": [0, 0], "__1_": [19, 0]}
    assert warnings
