# SPDX-License-Identifier: Apache-2.0
"""examples/train_with_checkpoints.py: stopped and started again, it ends as if it had never been stopped."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from processes import PYTHON, free_port

pytest.importorskip("torch")
EXAMPLE = PYTHON.parent / "examples" / "train_with_checkpoints.py"
pytestmark = pytest.mark.skipif(not EXAMPLE.is_file(), reason="no source checkout")


def train(folder: Path, steps: int, count: int) -> dict[str, str]:
    """The losses by rank and step."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(PYTHON), os.environ.get("PYTHONPATH", "")])}
    environment |= {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(EXAMPLE), str(folder), "--steps", str(steps), "--every", "5"]
    if count > 1:
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(count)}
    ranks = [{"RANK": str(rank)} if count > 1 else {} for rank in range(count)]
    started = [
        subprocess.Popen(command, env={**environment, **rank}, stdout=subprocess.PIPE, text=True) for rank in ranks
    ]
    said = "".join(process.communicate(timeout=120)[0] for process in started)
    assert [process.returncode for process in started] == [0] * count
    return dict(re.findall(r"^(rank \d step \d+) loss ([\d.]+)$", said, flags=re.M))


@pytest.mark.parametrize("count", [1, 2])
def test_it_goes_on_where_it_was(tmp_path: Path, count: int) -> None:
    at_once = train(tmp_path / "once", 20, count)
    assert len(at_once) == 4 * count
    first = train(tmp_path / "twice", 10, count)
    second = train(tmp_path / "twice", 20, count)
    assert {**first, **second} == at_once and len(first) == len(second) == 2 * count
    assert sorted(path.name for path in (tmp_path / "twice").glob("step-*")) == [
        "step-000010",
        "step-000015",
        "step-000020",
    ]
