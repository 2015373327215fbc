# SPDX-License-Identifier: Apache-2.0
"""Log-probabilities in answers of batch jobs against `transformers`: of prompts and of what was generated, the chosen
tokens and the likeliest ones; the same bytes whatever the batch size and wherever the weights lie."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
import random_models
import tiny_models as tm
import torch
from conftest import REPOSITORY

MODELS = 8
TALES = REPOSITORY / "models" / "penstock-tales"
TOLERANCE = 2e-4  # of logits of float32, summed in another order
PLACES = [("--resident", "0"), ("--resident", "100%"), ("--batch-size", "1"), ("--threads", "1")]


def deal_lines(rng: random.Random, vocab: int, count: int) -> list[dict]:
    """Requests by token ids, some of which only score their prompts."""
    lines = []
    for _ in range(count):
        line: dict = {"prompt_token_ids": [rng.randrange(vocab) for _ in range(rng.randint(1, 40))]}
        line |= {"max_tokens": rng.choice([0, 1, 7]), "echo": True, "logprobs": rng.choice([0, 1, 5, 20])}
        line |= {"temperature": rng.choice([0, 0.7, 1.5]), "top_k": rng.choice([0, 3]), "ignore_eos": True}
        lines.append({**line, "top_p": rng.choice([1, 0.6]), "seed": rng.randrange(1000)})
    return lines


def run_job(penstock, folder: Path, lines: list[dict], temp: Path, *options: object) -> list[dict]:
    """The answers, which are the same bytes in another session."""
    given = temp / "in.jsonl"
    given.write_text("".join(json.dumps(line) + "\n" for line in lines))
    written = set()
    for number, place in enumerate([(), *PLACES]):
        out = temp / f"{number}.jsonl"
        penstock.run("generate", folder, "-i", given, "-o", out, "--compute-type", "f32", *place, *options)
        written.add(out.read_bytes())
    assert len(written) == 1
    return [json.loads(line) for line in written.pop().split(b"\n") if line]


def reference(model: torch.nn.Module, ids: list[int]) -> np.ndarray:
    """log p of every token of the vocabulary after each of ids, from float32 logits in float64."""
    logits = torch.from_numpy(tm.logits_of(model, ids)).double()
    return torch.log_softmax(logits, -1).numpy()


def check_answer(model: torch.nn.Module, spell, line: dict, answer: dict) -> None:
    """One choice: values, and that no other token is likelier than the likeliest that are told."""
    told, prompt = answer["logprobs"], line["prompt_token_ids"]
    ids = prompt + answer["token_ids"]
    assert len(answer["token_ids"]) == line["max_tokens"]
    assert told["tokens"] == [spell(i) for i in ids]
    assert told["token_logprobs"][0] is None and told["top_logprobs"][0] is None
    if len(ids) == 1:
        return
    wanted = reference(model, ids)
    for place in range(1, len(ids)):
        row, value = wanted[place - 1], told["token_logprobs"][place]
        assert value == pytest.approx(row[ids[place]], abs=TOLERANCE * (1 + abs(row[ids[place]])))
        top = told["top_logprobs"][place]
        assert top[spell(ids[place])] == value
        likeliest = np.sort(row)[::-1][: line["logprobs"]]
        assert len(top) in (len(likeliest), len(likeliest) + 1)
        got = sorted(top.values(), reverse=True)[: len(likeliest)]
        assert got == pytest.approx(likeliest, abs=TOLERANCE * (1 + np.abs(likeliest).max(initial=0)))


def token_names(folder: Path):
    """How a model without a tokenizer, and one whose tokens are all different texts, names tokens."""
    if not (folder / "tokenizer.json").exists():
        return lambda i: f"token_id:{i}"
    from tokenizers import Tokenizer
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    alphabet = {c: b for b, c in bytes_to_unicode().items()}

    def spell(token: int) -> str:
        name = tokenizer.id_to_token(token)
        raw = bytes(alphabet[c] for c in name) if all(c in alphabet for c in name) else name.encode()
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{b:02x}" for b in raw)

    return spell


@pytest.mark.parametrize("number", range(MODELS))
def test_random_model(penstock, seed: int, tmp_path: Path, number: int) -> None:
    """`echo` needs a tokenizer, which these models have not: the prompt's are told by `score` there."""
    model_seed = seed * 1000 + number
    rng = random.Random(model_seed)
    folder = tmp_path / "model"
    config = random_models.make_random_model(folder, model_seed, "f32")
    print(f"seed {model_seed}: {json.dumps(config)}")
    model = tm.load_reference(folder)
    lines = deal_lines(rng, config["vocab_size"], 6)
    for line in lines:
        line["echo"] = False
        line["max_tokens"] = rng.randint(1, 9)
    for line, answer in zip(lines, run_job(penstock, folder, lines, tmp_path), strict=True):
        told, prompt = answer["logprobs"], line["prompt_token_ids"]
        told["tokens"] = [f"token_id:{i}" for i in prompt] + told["tokens"]
        rows = reference(model, prompt)
        values = [rows[i, prompt[i + 1]] for i in range(len(prompt) - 1)]
        told["token_logprobs"] = [None, *values, *told["token_logprobs"]]
        likeliest = [np.argsort(-row)[: line["logprobs"]] for row in rows[:-1]]
        tops = [
            {f"token_id:{i}": row[i] for i in (*best, nxt)}
            for row, best, nxt in zip(rows[:-1], likeliest, prompt[1:], strict=True)
        ]
        told["top_logprobs"] = [None, *tops, *told["top_logprobs"]]
        assert told["text_offset"] is None
        check_answer(model, token_names(folder), line, answer)


def test_tales(penstock, seed: int, tmp_path: Path) -> None:
    """A model with a tokenizer: prompts are told, too, and requests that make nothing score them."""
    rng = random.Random(seed)
    lines = deal_lines(rng, 4096, 24)
    model, spell = tm.load_reference(TALES), token_names(TALES)
    for line, answer in zip(lines, run_job(penstock, TALES, lines, tmp_path), strict=True):
        check_answer(model, spell, line, answer)
