# SPDX-License-Identifier: Apache-2.0
"""A stock DeepSpeed, unchanged, on these operators: its NVMe swappers, its file writer, its benchmark, and training
with parameters and optimizer state on a drive, which must give the same losses as in memory.

Each test runs in an interpreter of its own, on DeepSpeed's CPU accelerator."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
from pathlib import Path

import pytest
from interpreters import run_python

torch = pytest.importorskip("torch")
if importlib.util.find_spec("deepspeed") is None:
    pytest.skip("deepspeed is not installed", allow_module_level=True)

START = """
import json, os, sys
import penstock.deepspeed as ours
ours.install()
import torch, deepspeed
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # it would be compiled for a minute
from deepspeed import comm as dist
from deepspeed.ops.op_builder import AsyncIOBuilder
folder = sys.argv[1]
os.makedirs(folder, exist_ok=True)
"""


def one_process() -> dict[str, str]:
    """The environment of a world of one process."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return {
        "DS_ACCELERATOR": "cpu",
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def test_async_tensor_swapper(tmp_path: Path) -> None:
    code = (
        START
        + """
deepspeed.init_distributed("gloo")
from deepspeed.runtime.swap_tensor.async_swapper import AsyncTensorSwapper
from deepspeed.runtime.swap_tensor.utils import SwapBufferManager, SwapBufferPool, swap_in_tensors
handle = AsyncIOBuilder().load().aio_handle(1 << 20, 8, False, True, 2)
assert isinstance(handle, ours.aio_handle)
swapper = AsyncTensorSwapper(handle, 1024, None)
numel = 300_000
example = torch.zeros(1)
swapper.add_buffers([handle.new_cpu_locked_tensor(1 << 20, example) for _ in range(2)])
tensors = [torch.randn(numel - 100 * i) for i in range(7)]
paths = [os.path.join(folder, f"{i}.swp") for i in range(7)]
swapper.swap_out_tensors(tensors, paths)
for buffer in swapper.release_buffers():
    assert handle.free_cpu_locked_tensor(buffer)
for tensor, path in zip(tensors, paths):
    aligned = -(-tensor.numel() // 1024) * 1024
    back = handle.new_cpu_locked_tensor(aligned, example)
    swap_in_tensors(handle, [back], [path])
    assert handle.wait() == 1
    assert torch.equal(back[:tensor.numel()], tensor)
manager = SwapBufferManager(numel, 3, torch.float32, handle)
buffers = manager.allocate_all(numel, torch.float32)
pool = SwapBufferPool(buffers, handle)
for i in range(3):
    pool.insert_tensor(tensors[0][:1000 * (i + 1)], os.path.join(folder, f"pool{i}"), 4096 * (i + 1))
pool.swap_out(handle)
for buffer in buffers: buffer.zero_()
pool.swap_in(handle)
for i, tensor in enumerate(pool.get_compute_tensors()):
    assert torch.equal(tensor, tensors[0][:1000 * (i + 1)])
manager.free(buffers)
del manager, buffers, pool, buffer, back
import gc; gc.collect()
assert not [1 for region in ours._memory._regions.values() if region() is not None and region().bytes == numel * 4]
"""
    )
    run_python(code, str(tmp_path / "swap"), **one_process())


def test_fast_file_writer(tmp_path: Path) -> None:
    """Checkpoints through DeepSpeed's writer, which writes by descriptor. Its helper that casts to bytes would have to
    be compiled; a cast of torch's stands in for it."""
    code = (
        START
        + """
import types
from deepspeed.io import fast_file_writer as writer
class Utils:
    def load(self):
        return types.SimpleNamespace(cast_to_byte_tensor=lambda tensors: [t.view(torch.uint8) for t in tensors])
writer.UtilsBuilder = Utils
state = {f"w{i}": torch.randn(1000 * i + 7, 33) for i in range(5)}
for double in (True, False):
    for buffer_bytes in (1 << 20, 4096 * 3):
        handle = AsyncIOBuilder().load().aio_handle(1 << 20, 8, False, True, 1)
        pinned = handle.new_cpu_locked_tensor(2 * buffer_bytes, torch.zeros(1, dtype=torch.uint8))
        config = writer.FastFileWriterConfig(dnvme_handle=handle, pinned_tensor=pinned, double_buffer=double)
        path = os.path.join(folder, "state.pt")
        if os.path.exists(path): os.remove(path)
        out = writer.FastFileWriter(path, config)
        torch.save(state, out, _use_new_zipfile_serialization=False)
        out.close()
        back = torch.load(path)
        assert all(torch.equal(state[name], back[name]) for name in state)
"""
    )
    run_python(code, str(tmp_path / "ckpt"), **one_process())


def test_its_benchmark(tmp_path: Path) -> None:
    """ds_io, which checks what it read and wrote (--validate)."""
    code = (
        START
        + """
import deepspeed.nvme.ds_aio_args as arguments
from deepspeed.nvme.test_ds_aio import ds_io_main
for options in ([], ["--read", "--io_parallel", "2"]):
    sys.argv = ["ds_io", "--folder", folder, "--io_size", "4M", "--block_size", "128K", "--queue_depth", "8",
                "--loops", "2", "--validate", *options]
    ds_io_main()
"""
    )
    done = run_python(code, str(tmp_path / "bench"), **one_process())
    assert done.stdout.count("E2E") + done.stdout.count("e2e") >= 2, done.stdout
    assert "Fail" not in done.stdout + done.stderr and "penstock" not in done.stderr


TRAIN = """
import json, os, sys
folder, mode, where = sys.argv[1], sys.argv[2], sys.argv[3]
if mode == "ours":
    import penstock.deepspeed as ours
    ours.install()
import torch, deepspeed
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # it would be compiled for a minute
deepspeed.init_distributed("gloo")
torch.manual_seed(5)
hidden = 1024  # a parameter below 1 MiB would stay in memory
model = torch.nn.Sequential(*[torch.nn.Sequential(torch.nn.Linear(hidden, hidden), torch.nn.GELU()) for _ in range(3)])
config = {
    "train_micro_batch_size_per_gpu": 4,
    "optimizer": {"type": "Adam", "params": {"lr": 3e-4, "torch_adam": True}},
    "bf16": {"enabled": True},
    "zero_force_ds_cpu_optimizer": False,
    "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0, "sub_group_size": 1_100_000},
    "aio": {"block_size": 131072, "queue_depth": 4, "intra_op_parallelism": 2, "overlap_events": True},
}
zero = config["zero_optimization"]
for kind in ("optimizer", "param"):
    if where in (kind, "both"):
        zero["offload_" + kind] = {"device": "nvme", "nvme_path": folder, "pin_memory": False, "buffer_count": 12}
    elif kind == "optimizer" or where == "memory":
        zero["offload_" + kind] = {"device": "cpu", "pin_memory": False}
if where in ("param", "both"):
    zero["offload_param"].update({"buffer_size": 1_100_000, "max_in_cpu": 0})
    zero["stage3_prefetch_bucket_size"] = 0  # with prefetching DeepSpeed 0.19.8 fails here, on its own operator too
if where in ("optimizer", "both") and mode != "memory":
    zero["offload_optimizer"].update({"pipeline_read": PIPELINE, "pipeline_write": PIPELINE})
engine, *_ = deepspeed.initialize(model=model, config=config)
if where != "memory":
    from deepspeed.ops.op_builder import AsyncIOBuilder
    kind = AsyncIOBuilder().load().aio_handle
    assert (kind.__module__ == "penstock.deepspeed._handle") == (mode == "ours"), kind
losses = []
for step in range(4):
    generator = torch.Generator().manual_seed(3)
    data = torch.randn(4, hidden, generator=generator).bfloat16()
    loss = torch.nn.functional.mse_loss(engine(data).float(), data.float())
    engine.backward(loss)
    engine.step()
    losses.append(loss.item())
swapped = [os.path.join(at, name) for at, _, names in os.walk(folder) for name in names]
print("RESULT", json.dumps({"losses": losses, "files": swapped}))
"""


def train(folder: Path, mode: str, where: str, pipeline: bool = False) -> tuple[list[float], list[str]]:
    done = run_python(TRAIN.replace("PIPELINE", str(pipeline)), str(folder), mode, where, **one_process())
    line = next(line for line in done.stdout.splitlines() if line.startswith("RESULT"))
    result = json.loads(line.split(" ", 1)[1])
    return result["losses"], result["files"]


@pytest.fixture(scope="module")
def losses_in_memory(tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    losses, files = train(tmp_path_factory.mktemp("memory"), "memory", "memory")
    assert not files and losses[-1] < losses[0]
    return losses


@pytest.mark.parametrize(
    "where, pipeline", [("optimizer", False), ("optimizer", True), ("param", False), ("both", False)]
)
def test_training_on_a_drive(tmp_path: Path, losses_in_memory: list[float], where: str, pipeline: bool) -> None:
    (tmp_path / "nvme").mkdir()
    losses, files = train(tmp_path / "nvme", "ours", where, pipeline)
    assert any("param" in os.path.basename(name) for name in files) == (where in ("param", "both"))
    assert any("optimizer" in name for name in files) == (where in ("optimizer", "both"))
    assert losses == losses_in_memory


@pytest.mark.skipif(
    "PST_COMPILE_DEEPSPEED" not in os.environ, reason="set PST_COMPILE_DEEPSPEED to compile its operator"
)
def test_training_on_a_drive_with_its_own_operator(tmp_path: Path, losses_in_memory: list[float]) -> None:
    """That the test above would tell: their own operator, same losses."""
    (tmp_path / "nvme").mkdir()
    losses, files = train(tmp_path / "nvme", "theirs", "both")
    assert files and losses == losses_in_memory
