# SPDX-License-Identifier: Apache-2.0
"""Processes of their own for tests, alone or as ranks of torch.distributed (gloo, on this machine)."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

PYTHON = Path(__file__).resolve().parents[2]

# What every rank begins with: `rank`, `count`, `folder`.
START = """
import datetime, os, sys, threading, time
import torch, torch.distributed as dist
torch.set_num_threads(1)
folder = sys.argv[1]
rank, count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=180))
"""
# ... and ends with. The interpreter is not taken down: a thread of gloo may still hold the last message's tensor, and dropping
# it in an interpreter that is being taken down ends the process ("terminate called without an active exception").
END = """
threads = [thread for thread in threading.enumerate() if not thread.daemon and thread is not threading.main_thread()]
for thread in threads:
    thread.join()
if dist.is_initialized():
    dist.destroy_process_group()
sys.stdout.flush()
sys.stderr.flush()
os._exit(0)
"""


def start(code: str, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    paths = [str(PYTHON), *filter(None, [os.environ.get("PYTHONPATH")])]
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start_ranks(count: int, code: str, *arguments: str, **environment: str) -> list[subprocess.Popen[str]]:
    """Ranks of one world. Code: START and more; one that comes to its end leaves with status 0."""
    world = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(count), **environment}
    return [start(code + END, *arguments, RANK=str(rank), LOCAL_RANK=str(rank), **world) for rank in range(count)]


def finish(processes: list[subprocess.Popen[str]], seconds: float = 300) -> list[tuple[int, str]]:
    """Each one's status and all that it said. What hangs is killed, and its status is that of a signal."""
    until = time.monotonic() + seconds
    ended = []
    for process in processes:
        try:
            out, errors = process.communicate(timeout=max(1.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            out, errors = process.communicate()
        ended.append((process.returncode, out + errors))
    return ended


def run_ranks(count: int, code: str, *arguments: str, **environment: str) -> list[str]:
    """Runs ranks that must all end well; what each said."""
    ended = finish(start_ranks(count, START + code, *arguments, **environment))
    for rank, (status, _) in enumerate(ended):
        assert status == 0, f"rank {rank} ended with {status}:\n" + "\n".join(text for _, text in ended)
    return [said for _, said in ended]


def run(code: str, *arguments: str, expect: int = 0, **environment: str) -> str:
    [(status, said)] = finish([start(code, *arguments, **environment)])
    assert status == expect, f"ended with {status}:\n{said}"
    return said


KILLED = -signal.SIGKILL
