# SPDX-License-Identifier: Apache-2.0
"""JSON results of `generate` and `score`, and the model in models/, against `transformers`."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import tiny_models as tm
from conftest import CASES, REPOSITORY
from test_logits import generate_ids
from tokenizers import Tokenizer

CASE = CASES / "llama_gqa2"
STATS = (
    "weight_bytes_read",
    "read_bytes_per_second",
    "bound_seconds",
    "share_of_bound",
    "limited_by",
    "peak_rss_bytes",
)
PROMPTS = ["The water", "Once upon a time", '"Who are you?" said', "It was a"]


def shipped() -> list[Path]:
    """Model folders in models/."""
    return [p.parent for p in sorted((REPOSITORY / "models").glob("*/config.json"))]


def log_probabilities(logits: np.ndarray, ids: list[int]) -> np.ndarray:
    """log p(ids[t] | ids[:t]) for t >= 1, in float64."""
    rows = logits[:-1].astype(np.float64)
    rows -= rows.max(axis=1, keepdims=True)
    rows -= np.log(np.exp(rows).sum(axis=1, keepdims=True))
    return rows[np.arange(len(ids) - 1), ids[1:]]


def test_generate_json(penstock) -> None:
    sequence = json.loads((CASE / "expected.json").read_text())["sequences"][1]
    ids = ",".join(map(str, sequence["ids"]))
    fixed = ("--ignore-eos", "--temperature", 0, "--max-new-tokens", 16, "--compute-type", "f32")
    answer = penstock.json("generate", CASE, "--token-ids", ids, "--resident", 0, *fixed)
    result = answer["results"][0]
    assert len(answer["results"]) == 1
    assert result["token_ids"] == sequence["greedy"]
    assert result["finish_reason"] == "length"
    assert {"prompt", "text"} <= result.keys()
    missing = [key for key in STATS if key not in answer["stats"]]
    assert not missing
    assert answer["stats"]["weight_bytes_read"] > 0 and answer["stats"]["peak_rss_bytes"] > 0
    assert 0 < answer["stats"]["share_of_bound"]


@pytest.mark.parametrize("name", ["llama_gqa2", "mistral_window", "qwen2_window", "qwen3"])
def test_score_json(penstock, name: str) -> None:
    folder = CASES / name
    for sequence in json.loads((folder / "expected.json").read_text())["sequences"][1:]:
        ids = sequence["ids"]
        wanted = log_probabilities(np.load(folder / sequence["logits"]), ids)
        text = ",".join(map(str, ids))
        result = penstock.json("score", folder, "--token-ids", text, "--compute-type", "f32")["results"][0]
        got = [value for value in result["logprobs"] if value is not None]
        assert result["tokens"] == len(ids)
        assert len(got) == len(ids) - 1
        assert np.allclose(got, wanted, rtol=0, atol=2e-3)
        assert math.isclose(result["mean_logprob"], wanted.mean(), abs_tol=2e-3)
        assert math.isclose(result["perplexity"], math.exp(-wanted.mean()), rel_tol=3e-3)


@pytest.mark.parametrize("folder", shipped(), ids=lambda p: p.name)
def test_shipped_model(penstock, folder: Path) -> None:
    """Greedy text from a prompt, tokenizer included; close calls of the best two logits may go either way."""
    tok = Tokenizer.from_file(str(folder / "tokenizer.json"))
    model = tm.load_reference(folder)
    fixed = (
        "--ignore-eos",
        "--temperature",
        0,
        "--max-new-tokens",
        24,
        "--compute-type",
        "f32",
        "--resident",
        0,
    )
    compared = 0
    for prompt in PROMPTS:
        ids = tok.encode(prompt).ids
        got = penstock.logits(folder, ids, "--compute-type", "f32")
        assert tm.relative_difference(got, tm.logits_of(model, ids)) <= 1e-4, prompt
        chosen, margin = tm.greedy(model, ids, 24)
        if margin < 1e-3:
            continue
        compared += 1
        assert chosen == generate_ids(model, ids, 24)
        result = penstock.json("generate", folder, "--prompt", prompt, *fixed)["results"][0]
        assert result["token_ids"] == chosen
        assert result["prompt"] == prompt
        whole = tok.decode(ids + chosen, skip_special_tokens=True)
        assert result["text"] == whole[len(tok.decode(ids, skip_special_tokens=True)) :]
    assert compared > 0, "every prompt was a close call: choose others"
