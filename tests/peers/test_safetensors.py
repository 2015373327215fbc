# SPDX-License-Identifier: Apache-2.0
"""What `penstock synth` writes, read by the safetensors library and by `transformers`."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path

import numpy as np
import pytest
import tiny_models as tm
from safetensors import safe_open
from tokenizers import Tokenizer
from transformers import AutoConfig


@pytest.fixture(scope="module")
def made(penstock, seed: int, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`synth tiny` with this run's seed."""
    folder = tmp_path_factory.mktemp("synth") / "tiny"
    penstock.run("synth", "tiny", folder, "--seed", seed)
    return folder


def weight_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def digests(folder: Path) -> dict[str, str]:
    return {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in weight_files(folder)}


def test_library_reads_every_tensor(made: Path) -> None:
    names: dict[str, str] = {}
    for file in weight_files(made):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():
                tensor = tensors.get_tensor(name).float()
                assert np.isfinite(tensor.numpy()).all(), name
                assert tensor.numel() < 2 or float(tensor.std()) > 0 or "norm" in name, f"{name} is constant"
                assert names.setdefault(name, file.name) == file.name, f"{name} lies in two files"
    assert names
    index = made / "model.safetensors.index.json"
    if len(weight_files(made)) > 1:
        assert json.loads(index.read_text())["weight_map"] == names


def test_logits_and_greedy(penstock, seed: int, made: Path) -> None:
    config = AutoConfig.from_pretrained(made)
    model = tm.load_reference(made)
    rng = random.Random(seed)
    for length in (1, 9, 65):
        ids = [rng.randrange(config.vocab_size) for _ in range(length)]
        wanted = tm.logits_of(model, ids)
        for resident in ("0", "100%"):
            got = penstock.logits(made, ids, "--compute-type", "f32", "--resident", resident)
            assert tm.relative_difference(got, wanted) <= 1e-4, (length, resident)


def test_seed_decides(penstock, seed: int, made: Path, tmp_path: Path) -> None:
    penstock.run("synth", "tiny", tmp_path / "same", "--seed", seed)
    penstock.run("synth", "tiny", tmp_path / "other", "--seed", seed + 1)
    assert digests(tmp_path / "same") == digests(made)
    assert digests(tmp_path / "other") != digests(made)


def test_layers_cut(penstock, seed: int, tmp_path: Path) -> None:
    folder = tmp_path / "one"
    penstock.run("synth", "tiny", folder, "--seed", seed, "--layers", 1)
    assert AutoConfig.from_pretrained(folder).num_hidden_layers == 1
    model = tm.load_reference(folder)
    got = penstock.logits(folder, [1, 2, 3], "--compute-type", "f32")
    assert tm.relative_difference(got, tm.logits_of(model, [1, 2, 3])) <= 1e-4


def test_tokenizer_loads(penstock, made: Path) -> None:
    tok = Tokenizer.from_file(str(made / "tokenizer.json"))
    texts = ["Hello, world!", "Вода 水 😀", "a  b\n\nc", "don't 1234"]
    assert penstock.tokenize(made, texts) == [tok.encode(t).ids for t in texts]


def test_file_is_aligned(made: Path) -> None:
    """The header is padded so that the data begins at a multiple of 4096."""
    for file in weight_files(made):
        with file.open("rb") as stream:
            assert (8 + int.from_bytes(stream.read(8), "little")) % 4096 == 0, file.name
