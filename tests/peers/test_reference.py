# SPDX-License-Identifier: Apache-2.0
"""The stored expected values are what their scripts make today, and they can tell a wrong model from a right one."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny_models as tm
from conftest import CASES


@pytest.mark.parametrize("script", ["make_chat.py", "make_models.py", "make_quantized.py", "make_tokenizers.py", "make_torch_files.py"])
def test_stored_values_are_current(script: str) -> None:
    command = [sys.executable, CASES.parent / script, "--check"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def default_rope(config: dict) -> None:
    """Scaling left out."""
    config.pop("rope_scaling", None)
    if "rope_parameters" in config:
        config["rope_parameters"] = {
            "rope_type": "default",
            "rope_theta": config["rope_parameters"]["rope_theta"],
        }


def changed(**keys: object) -> Callable[[dict], None]:
    """Sets config keys."""
    return lambda config: config.update(keys)


MISTAKES: list[tuple[str, Callable[[dict], None]]] = [
    ("llama3_rope_new", default_rope),
    ("llama3_rope_old", default_rope),
    ("llama3_rope_type", default_rope),
    ("llama3_rope_10k", default_rope),
    ("llama_linear_new", default_rope),
    ("llama_linear_old", default_rope),
    ("llama_linear_1m", default_rope),
    ("llama_gelu", changed(hidden_act="gelu_pytorch_tanh")),
    ("llama_gelu_tanh", changed(hidden_act="silu")),
    ("llama_odd", changed(rms_norm_eps=1e-5)),
    ("mistral_window", changed(sliding_window=4)),
    ("mistral_window", changed(sliding_window=6)),
    ("mistral_window_bf16", changed(sliding_window=17)),
    ("qwen2", changed(use_sliding_window=True)),
    ("qwen2_window", changed(max_window_layers=2)),
    ("qwen2_layer_types", changed(layer_types=["full_attention"] * 3)),
    ("qwen3", changed(rms_norm_eps=1e-6)),
    ("qwen3_window", changed(max_window_layers=0)),
    ("qwen3_bf16", changed(rope_theta=10000.0)),
    ("llama_tied_bf16", changed(rope_theta=10000.0)),
]


@pytest.mark.parametrize("number", range(len(MISTAKES)), ids=lambda i: f"{i}-{MISTAKES[i][0]}")
def test_a_mistake_shows(tmp_path: Path, number: int) -> None:
    """A reader that took one key wrongly would miss the tolerance, by a factor of 2 at the least."""
    name, mistake = MISTAKES[number]
    folder = tmp_path / name
    shutil.copytree(CASES / name, folder)
    config = json.loads((folder / "config.json").read_text())
    mistake(config)
    (folder / "config.json").write_text(json.dumps(config))
    model = tm.load_reference(folder)
    expected = json.loads((folder / "expected.json").read_text())
    moved = 0.0
    for sequence in expected["sequences"]:
        wanted = np.load(folder / sequence["logits"])
        moved = max(moved, tm.relative_difference(tm.logits_of(model, sequence["ids"]), wanted))
    assert moved > 2 * expected["tolerance"]
