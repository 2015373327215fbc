# SPDX-License-Identifier: Apache-2.0
"""Ids and text against the `tokenizers` library, 10,000 fresh strings per tokenizer, in many scripts."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import text_samples
from conftest import REPOSITORY, TOKENIZERS
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

STRINGS = 10000
SHOWN = 5


def folders() -> list[Path]:
    """The stored tokenizers and those of the models in the repository."""
    shipped = sorted((REPOSITORY / "models").glob("*/tokenizer.json"))
    return sorted(p for p in TOKENIZERS.iterdir() if p.is_dir()) + [p.parent for p in shipped]


def load(folder: Path) -> Tokenizer:
    """The library's tokenizer; from vocab.json and merges.txt in GPT-2's way where there is no tokenizer.json."""
    if (folder / "tokenizer.json").exists():
        return Tokenizer.from_file(str(folder / "tokenizer.json"))
    tok = Tokenizer(models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt")))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=config.get("add_prefix_space", False))
    tok.decoder = decoders.ByteLevel()
    tok.post_processor = processors.ByteLevel(trim_offsets=False)
    named = [config.get(name) for name in ("eos_token", "pad_token")]
    texts = [token["content"] if isinstance(token, dict) else token for token in named if token]
    tok.add_special_tokens([AddedToken(text, special=True, normalized=True) for text in texts])
    if config.get("add_bos_token"):  # OPT, whose text begins with what it ends with
        ids = [(texts[0], tok.token_to_id(texts[0]))]
        tok.post_processor = processors.TemplateProcessing(single=f"{texts[0]} $A", special_tokens=ids)
    return tok


def added(tok: Tokenizer) -> list[str]:
    """Contents of the added tokens."""
    return [token.content for _, token in sorted(tok.get_added_tokens_decoder().items())]


def compare(what: str, inputs: list, got: list, wanted: list) -> None:
    """Fails with the first few differences."""
    wrong = [i for i in range(len(inputs)) if got[i] != wanted[i]]
    shown = "\n".join(f"{inputs[i]!r}\n  got    {got[i]!r}\n  wanted {wanted[i]!r}" for i in wrong[:SHOWN])
    assert not wrong, f"{what}: {len(wrong)} of {len(inputs)} differ\n{shown}"


def sample(tok: Tokenizer, seed: int) -> list[str]:
    """Edge cases, added tokens in context, random mixtures; 10,000 in all."""
    special = added(tok)
    texts = text_samples.EDGE_STRINGS + text_samples.special_strings(special)
    return texts + text_samples.random_strings(seed, STRINGS - len(texts), special, 14)


@pytest.mark.parametrize("folder", folders(), ids=lambda p: p.name)
def test_encode(penstock, seed: int, folder: Path) -> None:
    tok = load(folder)
    texts = sample(tok, seed)
    assert len(texts) == STRINGS
    compare("ids", texts, penstock.tokenize(folder, texts), [tok.encode(t).ids for t in texts])
    plain = texts[: STRINGS // 5]
    wanted = [tok.encode(t, add_special_tokens=False).ids for t in plain]
    compare("ids without special tokens", plain, penstock.tokenize(folder, plain, "--no-special"), wanted)


@pytest.mark.parametrize("folder", folders(), ids=lambda p: p.name)
def test_decode(penstock, seed: int, folder: Path) -> None:
    tok = load(folder)
    rng = random.Random(seed)
    sequences = [ids for ids in (tok.encode(t).ids for t in sample(tok, seed + 1)[::5]) if ids]
    # Ids that exist: some vocabularies have holes.
    known = sorted(tok.get_vocab(with_added_tokens=True).values())
    for _ in range(STRINGS // 5):
        pool = known if rng.random() < 0.5 else known[:262]
        sequences.append([rng.choice(pool) for _ in range(rng.randint(1, 20))])
    for options, skip in (((), False), (("--skip-special",), True)):
        wanted = [tok.decode(ids, skip_special_tokens=skip) for ids in sequences]
        compare(f"text, skip={skip}", sequences, penstock.decode(folder, sequences, *options), wanted)


@pytest.mark.parametrize("folder", folders(), ids=lambda p: p.name)
def test_long_and_null(penstock, seed: int, folder: Path) -> None:
    """A text of 100,000 characters without a line break, one word of 20,000, and U+0000 inside a text."""
    tok = load(folder)
    words = text_samples.corpus_words()
    rng = random.Random(seed)
    long_text = " ".join(rng.choice(words) for _ in range(20000))[:100000]
    texts = [
        long_text,
        "x" * 20000,
        "".join(rng.choice("abc水é") for _ in range(20000)),
        "a\x00b",
        "\x00",
        " \x00\x00 ",
    ]
    compare("ids", texts, penstock.tokenize(folder, texts), [tok.encode(t).ids for t in texts])
