# SPDX-License-Identifier: Apache-2.0
"""Logits and greedy ids against `transformers` on random models, fresh at each run; the same bits wherever the
weights lie, whichever engine reads them, with one thread or two."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
import random_models
import tiny_models as tm
import torch
from conftest import CASES
from transformers.pytorch_utils import Conv1D

MODELS = 24
GREEDY_TOKENS = 16
F32_TOLERANCE = 1e-4  # for float32 sums in another order; weights of 16 bits are exact in float32
BF16_TOLERANCE = 2e-2  # where activations may be rounded to bf16 as well
DTYPES = ["f32", "bf16", "f16"]


def placements(rng: random.Random, engines: list[str], count: int) -> list[tuple]:
    """Option lists that must not change a bit; the first streams everything."""
    out = [("--resident", "0", "--io-engine", engines[0], "--threads", 1)]
    for _ in range(count - 1):
        resident = rng.choice(["0", "50%", "100%"])
        out.append(
            ("--resident", resident, "--io-engine", rng.choice(engines), "--threads", rng.choice([1, 2]))
        )
    return out


def rounded_inputs_error(model: torch.nn.Module, ids: list[int], wanted: np.ndarray) -> float:
    """How far the logits move when every matrix product's input is rounded to bf16: what a model makes of it."""
    hooks = []
    for module in model.modules():
        if isinstance(module, (torch.nn.Linear, Conv1D)):
            hooks.append(module.register_forward_pre_hook(lambda _, args: (args[0].bfloat16().float(),)))
    moved = tm.relative_difference(tm.logits_of(model, ids), wanted)
    for hook in hooks:
        hook.remove()
    return moved


def generate_ids(model: torch.nn.Module, ids: list[int], count: int) -> list[int]:
    """What `generate` of transformers continues with, its cache and windows included."""
    sequence = torch.tensor([ids])
    settings = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0, "max_new_tokens": count}
    out = model.generate(sequence, attention_mask=torch.ones_like(sequence), **settings)
    return out[0].tolist()[len(ids) :]


@pytest.mark.parametrize("number", range(MODELS))
def test_random_model(penstock, engines, seed: int, tmp_path: Path, number: int) -> None:
    model_seed = seed * 1000 + number
    rng = random.Random(model_seed)
    dtype = DTYPES[number % 3]
    folder = tmp_path / "model"
    config = random_models.make_random_model(folder, model_seed, dtype)
    print(f"seed {model_seed}, {dtype}: {json.dumps(config)}")
    model = tm.load_reference(folder)
    ids, chosen = random_models.clear_greedy(model, rng, config["vocab_size"], 60, GREEDY_TOKENS)
    assert generate_ids(model, ids, GREEDY_TOKENS) == chosen
    wanted = tm.logits_of(model, ids)

    first = None
    for options in placements(rng, engines, 3):
        got = penstock.logits(folder, ids, "--compute-type", "f32", *options)
        assert tm.relative_difference(got, wanted) <= F32_TOLERANCE, options
        first = got if first is None else first
        assert np.array_equal(got, first), f"{options}: other bits"
    for options in placements(rng, engines, 2):
        assert penstock.greedy(folder, ids, GREEDY_TOKENS, "--compute-type", "f32", *options) == chosen, (
            options
        )

    if dtype != "f32" and random_models.survives_rounding(model, ids):
        allowed = max(BF16_TOLERANCE, 2 * rounded_inputs_error(model, ids, wanted))
        for options in placements(rng, engines, 2):
            assert tm.relative_difference(penstock.logits(folder, ids, *options), wanted) <= allowed, options


@pytest.mark.parametrize("name", sorted(p.name for p in CASES.iterdir()))
def test_stored_case(penstock, engines, seed: int, name: str) -> None:
    """The stored cases through the program: all placements, the automatic compute type, bf16."""
    folder = CASES / name
    expected = json.loads((folder / "expected.json").read_text())
    rng = random.Random(seed)
    for sequence in expected["sequences"]:
        wanted = np.load(folder / sequence["logits"])
        options = placements(rng, engines, 2)[1]
        exact = penstock.logits(folder, sequence["ids"], "--compute-type", "f32", *options)
        assert tm.relative_difference(exact, wanted) <= F32_TOLERANCE
        automatic = penstock.logits(folder, sequence["ids"], *options)
        assert tm.relative_difference(automatic, wanted) <= expected["tolerance"]
        if expected["dtype"] == "bf16":
            rounded = penstock.logits(folder, sequence["ids"], "--compute-type", "bf16", *options)
            assert tm.relative_difference(rounded, wanted) <= expected["tolerance"]
        got = penstock.greedy(
            folder, sequence["ids"], len(sequence["greedy"]), "--compute-type", "f32", *options
        )
        assert got == sequence["greedy"]


def test_long_sequence(penstock, seed: int, tmp_path: Path) -> None:
    """A prompt of several hundred tokens, so that prefill is cut, in windows shorter and longer than a cut."""
    for number, window in enumerate((None, 33, 300)):
        rng = random.Random(seed + number)
        config = {
            "model_type": "mistral",
            "architectures": ["MistralForCausalLM"],
            "hidden_size": 48,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "intermediate_size": 100,
            "vocab_size": 97,
            "num_hidden_layers": 2,
            "rms_norm_eps": 1e-5,
            "max_position_embeddings": 2048,
            "sliding_window": window,
            "rope_theta": 10000.0,
        }
        folder = tmp_path / str(number)
        tm.write_folder(folder, config, seed + number, "f32")
        ids = [rng.randrange(97) for _ in range(700)]
        wanted = tm.logits_of(tm.load_reference(folder), ids)
        whole = penstock.logits(folder, ids, "--resident", "100%", "--threads", 2)
        assert tm.relative_difference(whole, wanted) <= F32_TOLERANCE, window
        streamed = penstock.logits(folder, ids, "--resident", "0", "--threads", 1)
        assert np.array_equal(whole, streamed), window
