# SPDX-License-Identifier: Apache-2.0
"""Random model shapes of every supported family, beyond the stored cases."""

from __future__ import annotations

import random
from pathlib import Path

import tiny_models as tm

CLASS_NAMES = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"}
SMALLEST_MARGIN = 2e-3  # of the best two logits in shares of the largest: below it, greedy ids may differ


def rope_keys(rng: random.Random) -> dict:
    """Rotary settings in one of the spellings that folders have."""
    theta = rng.choice([10000.0, 100000.0, 500000.0, 1e6])
    kind = rng.choice(["default", "default", "llama3", "linear"])
    scaling: dict = {}
    if kind == "llama3":
        low = rng.choice([1.0, 2.0])
        scaling = {
            "factor": rng.choice([2.0, 8.0, 32.0]),
            "low_freq_factor": low,
            "high_freq_factor": low * rng.choice([2.0, 4.0]),
            "original_max_position_embeddings": rng.choice([16, 32, 64]),
        }
    if kind == "linear":
        scaling = {"factor": rng.choice([1.5, 2.0, 4.0])}
    spelling = rng.choice(["rope_parameters", "rope_type", "type"])
    if spelling == "rope_parameters":
        return {"rope_parameters": {"rope_type": kind, "rope_theta": theta, **scaling}}
    if kind == "default":
        return {"rope_theta": theta, **rng.choice([{}, {"rope_scaling": None}])}
    return {"rope_theta": theta, "rope_scaling": {spelling: kind, **scaling}}


def family_keys(rng: random.Random, family: str, layers: int) -> dict:
    """Keys that only some families know."""
    if family == "llama":
        biases = {"attention_bias": rng.random() < 0.3, "mlp_bias": rng.random() < 0.3}
        return {**biases, "hidden_act": rng.choice(["silu", "silu", "silu", "gelu", "gelu_pytorch_tanh"])}
    if family == "mistral":
        return {"sliding_window": rng.choice([None, 3, 8, 31, 4096])}
    keys: dict = {"use_sliding_window": rng.random() < 0.5, "sliding_window": rng.choice([2, 9, 24])}
    keys["max_window_layers"] = rng.randint(0, layers)
    if rng.random() < 0.4:
        kinds = ["full_attention", "sliding_attention"] if keys["use_sliding_window"] else ["full_attention"]
        keys["layer_types"] = [rng.choice(kinds) for _ in range(layers)]
    if family == "qwen3":
        keys["attention_bias"] = rng.random() < 0.4
    return keys


def random_config(rng: random.Random) -> dict:
    """A config.json; shapes that no kernel's block size divides are likely."""
    family = rng.choice(list(CLASS_NAMES))
    kv_heads = rng.choice([1, 1, 2, 3, 4])
    heads = kv_heads * rng.choice([1, 2, 3, 4, 7])
    layers = rng.randint(1, 4)
    hidden = heads * rng.choice([2, 4, 6, 8, 10, 14])
    config = {
        "architectures": [f"{CLASS_NAMES[family]}ForCausalLM"],
        "model_type": family,
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": rng.randint(9, 200),
        "vocab_size": rng.randint(40, 400),
        "num_hidden_layers": layers,
        "hidden_act": "silu",
        "rms_norm_eps": rng.choice([1e-6, 1e-5, 1e-3]),
        "max_position_embeddings": 256,
        "bos_token_id": 1,
        "eos_token_id": rng.choice([2, [2, 3], None]),
        "tie_word_embeddings": rng.random() < 0.4,
        **rope_keys(rng),
        **family_keys(rng, family, layers),
    }
    # Qwen2 has no head_dim of its own; the others may leave it out, save where hidden / heads is odd or the
    # family's default is another number.
    if family != "qwen2" and (family == "qwen3" or rng.random() < 0.6):
        config["head_dim"] = rng.choice([4, 6, 8, 10, 16, 20, 32, 40, 64])
    return config


def random_ids(rng: random.Random, vocab: int, longest: int) -> list[int]:
    """A sequence of random length; a part repeats."""
    ids = [rng.randrange(vocab) for _ in range(rng.randint(1, longest))]
    return ids + ids[:5] if len(ids) > 20 else ids


def make_random_model(folder: Path, seed: int, dtype: str) -> dict:
    """Writes a random checkpoint; returns its config."""
    rng = random.Random(seed)
    config = random_config(rng)
    # Milder attention at 16 bits: there the program may round its activations too.
    gain = 1.5 if dtype == "f32" else 1.0
    mixed = dtype != "f32" and rng.random() < 0.2
    tm.write_folder(
        folder, config, seed, dtype, shards=rng.choice([1, 1, 2, 5]), mixed=mixed, attention_gain=gain
    )
    return config


def clear_greedy(
    model, rng: random.Random, vocab: int, longest: int, count: int
) -> tuple[list[int], list[int]]:
    """A prompt whose greedy continuation is not a close call, and that continuation."""
    for _ in range(200):
        ids = random_ids(rng, vocab, longest)
        chosen, margin = tm.greedy(model, ids, count)
        if margin >= SMALLEST_MARGIN:
            return ids, chosen
    raise RuntimeError("no prompt with clear greedy choices")
