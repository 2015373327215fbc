# SPDX-License-Identifier: Apache-2.0
"""The checkpoint engine under a stock DeepSpeed: what it saves DeepSpeed's own engine loads, and the reverse, and
training goes on with the same losses; whatever fails, `latest` names a whole checkpoint."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from interpreters import PYTHON

torch = pytest.importorskip("torch")
if importlib.util.find_spec("deepspeed") is None:
    pytest.skip("deepspeed is not installed", allow_module_level=True)

START = """
import json, os, shutil, sys, time
from pathlib import Path
folder = Path(sys.argv[1])
rank, count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
import torch
torch.set_num_threads(1)
import penstock.deepspeed as ours
ours.install()
import deepspeed
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # it would be compiled for a minute
from deepspeed import comm as dist
deepspeed.init_distributed("gloo", timeout=__import__("datetime").timedelta(seconds=60))

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = torch.nn.Linear(16, 33), torch.nn.Linear(33, 4)
        self.register_buffer("seen", torch.zeros(33))  # changes in every forward pass
        self.frozen = torch.nn.Linear(33, 33)
        self.frozen.requires_grad_(False)
    def forward(self, x):
        x = self.first(x)
        self.seen.mul_(0.9).add_(0.1)  # the same on all ranks: the first one's is saved
        return self.last(self.frozen(torch.relu(x - self.seen.to(x.dtype))))

def make(stage, kind, seed=0, **more):
    torch.manual_seed(seed)
    config = {
        "train_micro_batch_size_per_gpu": 8,
        "optimizer": {"type": "Adam", "params": {"lr": 3e-3, "torch_adam": True}},
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0},
        "steps_per_print": 10**9,
        **more,
    }
    if stage > 0:
        config["bf16"] = {"enabled": True}
    if kind != "stock":
        config["checkpoint"] = {"writer": {"type": "penstock", "decoupled": kind == "decoupled"}}
    engine, *_ = deepspeed.initialize(model=Net(), config=config)
    name = type(engine.checkpoint_engine).__name__
    assert (name == "PenstockCheckpointEngine") == (kind != "stock"), name
    return engine

def train(engine, steps):
    losses = []
    for step in steps:
        generator = torch.Generator().manual_seed(100 * step + rank)
        data = torch.randn(8, 16, generator=generator)
        if engine.bfloat16_enabled():
            data = data.bfloat16()
        loss = engine(data).float().square().mean()
        engine.backward(loss)
        engine.step()
        losses.append(loss.item())
    return losses
"""


def start(count: int, code: str, *arguments: str, **environment: str) -> list[subprocess.Popen[str]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    paths = [str(PYTHON), *filter(None, [os.environ.get("PYTHONPATH")])]
    world = {"DS_ACCELERATOR": "cpu", "WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    world |= {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", **environment}
    return [
        subprocess.Popen(
            [sys.executable, "-c", START + code, *arguments],
            env={**os.environ, **world, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]


def finish(processes: list[subprocess.Popen[str]]) -> list[tuple[int, str]]:
    ended = []
    for process in processes:
        try:
            out, errors = process.communicate(timeout=280)
        except subprocess.TimeoutExpired:
            process.kill()
            out, errors = process.communicate()
        ended.append((process.returncode, out + errors))
    return ended


def run(count: int, code: str, *arguments: str, **environment: str) -> list[str]:
    ended = finish(start(count, code, *arguments, **environment))
    for rank, (status, _) in enumerate(ended):
        assert status == 0, f"rank {rank} ended with {status}:\n" + "\n".join(text for _, text in ended)
    return [said for _, said in ended]


@pytest.mark.parametrize("count", [1, 2])
def test_losses_go_on_equal_on_both_sides(tmp_path: Path, count: int) -> None:
    code = """
from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint
for stage in (0, 1, 2, 3):
    at = str(folder / f"stage{stage}")
    engine = make(stage, "stock")
    train(engine, range(3))
    engine.save_checkpoint(at + "-stock", client_state={"note": "by stock"})
    expected = train(engine, range(3, 6))
    for kind in ("blocking", "decoupled"):
        engine = make(stage, kind)
        train(engine, range(3))
        engine.save_checkpoint(at + "-" + kind, client_state={"note": "by ours"})
        assert train(engine, range(3, 6)) == expected  # while it is written
        engine.destroy()
        latest = Path(at + "-" + kind, "latest").read_text()
        assert latest == "global_step3", latest
    pairs = ("blocking", "stock"), ("stock", "blocking"), ("decoupled", "stock"), ("blocking", "decoupled")
    for saver, loader in pairs:
        engine = make(stage, loader, seed=7)
        where, client = engine.load_checkpoint(at + "-" + saver)
        assert where is not None and client["note"] == ("by stock" if saver == "stock" else "by ours")
        found = train(engine, range(3, 6))
        assert found == expected, (stage, saver, loader, found, expected)
    dist.barrier()
    if stage > 0:  # the parameters, put together by DeepSpeed's own tool
        kinds = ("stock", "blocking", "decoupled")
        found = [get_fp32_state_dict_from_zero_checkpoint(f"{at}-{kind}") for kind in kinds]
        for other in found[1:]:
            assert list(other) == list(found[0]) and all(torch.equal(other[name], found[0][name]) for name in other)
    files = {kind: sorted(str(p.relative_to(at + "-" + kind)) for p in Path(at + "-" + kind).rglob("*") if p.is_file())
             for kind in ("stock", "blocking", "decoupled")}
    assert files["stock"] == files["blocking"] == files["decoupled"], files
"""
    run(count, code, str(tmp_path))


def test_many_saves_without_a_step_between(tmp_path: Path) -> None:
    """Also at the end of the program, with none after."""
    code = """
engine = make(2, "decoupled")
train(engine, range(1))
for tag in ("a", "b"):
    engine.save_checkpoint(folder, tag=tag)
engine.save_16bit_model(str(folder / "model"))
engine.save_checkpoint(folder, tag="c", save_latest=False)
train(engine, range(1, 2))
engine.save_checkpoint(folder, tag="d")
"""
    run(2, code, str(tmp_path))
    assert (tmp_path / "latest").read_text() == "d"
    assert torch.load(tmp_path / "model" / "pytorch_model.bin", weights_only=True)["last.bias"].shape == (4,)
    for tag in "abcd":
        assert len(list((tmp_path / tag).glob("*.pt"))) == 3


def test_objects_of_the_client(tmp_path: Path) -> None:
    """What stands in no list is refused by its name, unless the configuration trusts pickles."""
    code = """
class Mine:
    def __init__(self): self.value = 5
engine = make(1, "stock")
engine.save_checkpoint(folder, client_state={"object": Mine()})
engine = make(1, "blocking")
try:
    engine.load_checkpoint(folder)
    raise SystemExit("it was loaded")
except NotImplementedError as problem:
    assert "__main__.Mine" in str(problem) and "trust_pickles" in str(problem), problem
    assert "mp_rank_00_model_states.pt" in str(problem), problem
def make_trusting(**writer):
    torch.manual_seed(0)
    config = {"train_micro_batch_size_per_gpu": 8, "zero_optimization": {"stage": 1}, "bf16": {"enabled": True},
              "optimizer": {"type": "Adam", "params": {"torch_adam": True}}, "zero_force_ds_cpu_optimizer": False,
              "checkpoint": {"writer": {"type": "penstock", **writer}}}
    return deepspeed.initialize(model=Net(), config=config)[0]
try:
    make_trusting(trust_pickles="yes")
    raise SystemExit("a setting that cannot be was taken")
except ValueError as problem:
    assert "trust_pickles" in str(problem), problem
_, client = make_trusting(trust_pickles=True).load_checkpoint(folder)
assert client["object"].value == 5
ours.install(trust_pickles=True)
_, client = make_trusting().load_checkpoint(folder)
assert client["object"].value == 5
"""
    run(1, code, str(tmp_path))


FAILS = """
from penstock import Error, _background
engine = make(2, KIND)
train(engine, range(2))
engine.save_checkpoint(folder, tag="good")
expected = train(engine, range(2, 3))
write, begin = _background.Image.write, _background.Image.begin
def refuse(*arguments, **settings):
    raise Error("its drive is full", -28)
if rank == count - 1:
    _background.Image.write = _background.Image.begin = refuse
try:
    engine.save_checkpoint(folder, tag="bad")
    engine.step() if KIND == "blocking" else train(engine, range(3, 4))
    raise SystemExit("nothing was raised")
except OSError as problem:
    assert "its drive is full" in str(problem), problem
    print("SAID", problem)
assert (folder / "latest").read_text() == "good"
_background.Image.write, _background.Image.begin = write, begin
engine.save_checkpoint(folder, tag="later")
engine.destroy()
assert (folder / "latest").read_text() == "later"
"""


@pytest.mark.parametrize("kind", ["blocking", "decoupled"])
def test_a_rank_whose_save_fails(tmp_path: Path, kind: str) -> None:
    said = run(2, f"KIND = {kind!r}\n" + FAILS, str(tmp_path))
    assert "rank 1: " in said[0].split("SAID")[1]


def test_killed_while_it_is_written(tmp_path: Path) -> None:
    """`latest` names a whole checkpoint, and training goes on from it."""
    code = """
engine = make(1, "decoupled")
if (folder / "latest").exists():
    where, _ = engine.load_checkpoint(folder)
    assert where is not None
    print("FROM", engine.global_steps)
    train(engine, range(2))
    engine.save_checkpoint(folder)
    engine.destroy()
    sys.exit()
train(engine, range(2))
engine.save_checkpoint(folder)
train(engine, range(2, 3))
from penstock import _background
def stop(*arguments, **settings):
    os.kill(os.getpid(), 9)
_background.Begun.durable = stop
engine.save_checkpoint(folder)
time.sleep(60)
"""
    [(status, said)] = finish(start(1, code, str(tmp_path)))
    assert status == -signal.SIGKILL, said
    assert (tmp_path / "latest").read_text() == "global_step2"
    [said] = run(1, code, str(tmp_path))
    assert "FROM 2" in said
    assert (tmp_path / "latest").read_text() == "global_step4"


def test_the_setting(tmp_path: Path) -> None:
    code = """
from deepspeed.runtime.checkpoint_engine import TorchCheckpointEngine
def engine_of(**more):
    return make(1, "stock", **more).checkpoint_engine
assert type(engine_of()) is TorchCheckpointEngine
ours.uninstall()
try:
    make(1, "blocking")
    raise SystemExit("stock DeepSpeed takes our name")
except AssertionError as problem:
    assert "PENSTOCK" in str(problem), problem
assert type(engine_of()) is TorchCheckpointEngine
for kind in ("blocking", "decoupled"):
    ours.install(checkpoints=kind)
    torch.manual_seed(0)
    config = {"train_micro_batch_size_per_gpu": 8, "optimizer": {"type": "Adam", "params": {"torch_adam": True}}}
    engine, *_ = deepspeed.initialize(model=Net(), config=config)
    assert type(engine.checkpoint_engine).__name__ == "PenstockCheckpointEngine"
    assert engine.checkpoint_engine.is_decoupled() == (kind == "decoupled")
    config["checkpoint"] = {"writer": {"type": "mock", "data_parallel": "replica"}}
    engine, *_ = deepspeed.initialize(model=Net(), config=config)
    assert type(engine.checkpoint_engine).__name__ == "FastCheckpointEngine"
    ours.uninstall()
try:
    ours.install(checkpoints="sometimes")
    raise SystemExit("what cannot be is refused")
except ValueError:
    pass
"""
    run(1, code, str(tmp_path), CROSS_SIZE="1", CROSS_RANK="0")  # its fast writer wants them


def test_the_command(tmp_path: Path) -> None:
    script = tmp_path / "job.py"
    script.write_text("import penstock.deepspeed._install as i\nprint(i._checkpoints)\n")
    paths = os.pathsep.join([str(PYTHON), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-m", "penstock.deepspeed"]
    for option, status, said in (
        (["--checkpoints", "decoupled"], 0, "decoupled"),
        ([], 0, "None"),
        (["--checkpoints", "sometimes"], 2, ""),
        (["--checkpoints"], 2, ""),
    ):
        done = subprocess.run(
            [*command, *option, str(script)], env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True
        )
        assert (done.returncode, done.stdout.strip()) == (status, said), done.stderr
    assert json and PYTHON


def test_errors_that_say_nothing_and_a_latest_that_fails(tmp_path: Path) -> None:
    code = """
from penstock import _background
from penstock.deepspeed import _checkpoint_engine as ours
engine = make(2, "blocking")
train(engine, range(1))
engine.save_checkpoint(folder, tag="good")
def refuse(error, *ranks):
    def refusing(*arguments, **settings):
        raise error
    return refusing if rank in ranks else None
def attempt(module, name, refusing):
    before = getattr(module, name)
    if refusing:
        setattr(module, name, refusing)
    try:
        engine.save_checkpoint(folder, tag="bad")
        raise SystemExit(f"rank {rank}: nothing was raised")
    except (MemoryError, OSError, ours.RanksError) as problem:
        assert rank in (0, 1) and (refusing or "rank" in str(problem)), problem
    setattr(module, name, before)
    assert (folder / "latest").read_text() == "good"
attempt(_background.Image, "write", refuse(MemoryError(), 1))
attempt(ours, "write_small", refuse(OSError(28, "full"), 0))
engine.save_checkpoint(folder, tag="later")
engine.destroy()
assert (folder / "latest").read_text() == "later"
"""
    run(2, code, str(tmp_path))
