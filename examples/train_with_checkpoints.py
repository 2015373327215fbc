#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A training loop that saves its state beside the training, and goes on where it was, whenever it was stopped.

    python examples/train_with_checkpoints.py FOLDER
    torchrun --nproc-per-node 2 examples/train_with_checkpoints.py FOLDER

Kill it at any time and start it again: the losses are those of a run that was never stopped. A tiny model, on the CPU.
"""

from __future__ import annotations

import argparse
import os

import torch
import torch.distributed as dist
from penstock.torch import Checkpointer


def batch(step: int, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Known by its number, so that a training that goes on sees what it would have seen."""
    generator = torch.Generator().manual_seed(1000 * step + rank)
    inputs = torch.randn(32, 16, generator=generator)
    return inputs, inputs.square().sum(1, keepdim=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--every", type=int, default=20)
    arguments = parser.parse_args()

    if "RANK" in os.environ:
        dist.init_process_group("gloo")
    rank = dist.get_rank() if dist.is_initialized() else 0

    torch.manual_seed(0)
    model: torch.nn.Module = torch.nn.Sequential(torch.nn.Linear(16, 256), torch.nn.GELU(), torch.nn.Linear(256, 1))
    replica = torch.nn.parallel.DistributedDataParallel(model) if dist.is_initialized() else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    # Each process writes its share of the state, which is the same in all of them.
    with Checkpointer(arguments.folder, every=arguments.every, keep_last=3) as checkpoints:
        checkpoints.guard(optimizer)  # a step waits until what is being saved has been read
        first = 0
        found = checkpoints.restore()
        if found is not None:
            first, state = found
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
            print(f"rank {rank} goes on at step {first}")

        for step in range(first + 1, arguments.steps + 1):
            inputs, targets = batch(step, rank)
            loss = torch.nn.functional.mse_loss(replica(inputs), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if checkpoints.due(step):
                checkpoints.save(step, {"model": model.state_dict(), "optimizer": optimizer.state_dict()})
                print(f"rank {rank} step {step} loss {loss.item():.6f}", flush=True)

    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
