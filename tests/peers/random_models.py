# SPDX-License-Identifier: Apache-2.0
"""Random model shapes of every supported family, beyond the stored cases."""

from __future__ import annotations

import random
from pathlib import Path

import tiny_models as tm

CLASS_NAMES = {
    "llama": "Llama",
    "mistral": "Mistral",
    "qwen2": "Qwen2",
    "qwen3": "Qwen3",
    "mixtral": "Mixtral",
    "qwen3_moe": "Qwen3Moe",
    "deepseek_v2": "DeepseekV2",
    "deepseek_v3": "DeepseekV3",
}
SMALLEST_MARGIN = 2e-3  # of the best two logits in shares of the largest: below it, greedy ids may differ


def rope_keys(rng: random.Random, head_dim: int) -> dict:
    """Rotary settings in one of the spellings that folders have."""
    theta = rng.choice([10000.0, 100000.0, 500000.0, 1e6])
    kind = rng.choice(["default", "default", "llama3", "linear", "yarn", "dynamic", "longrope"])
    if head_dim == 2 and kind == "dynamic":  # its formula divides by head_dim - 2
        kind = "default"
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
    if kind == "yarn":
        scaling = {"factor": rng.choice([2.0, 4.0, 40.0]), "original_max_position_embeddings": rng.choice([16, 64])}
        scaling |= rng.choice([{}, {"beta_fast": 8, "beta_slow": 0.5}, {"attention_factor": 0.8}, {"truncate": False}])
        scaling |= rng.choice([{}, {"mscale": 1.0}, {"mscale": 0.7, "mscale_all_dim": 1.4}])
    if kind == "dynamic":  # no test here reaches the context, from which on it differs
        scaling = {"factor": rng.choice([2.0, 4.0])}
    if kind == "longrope":  # all sequences on one side: crossing, a whole pass is not what a cache gives
        lists = {f"{k}_factor": [rng.uniform(1, 30) for _ in range(head_dim // 2)] for k in ("short", "long")}
        scaling = {"attention_factor": 1.1, "original_max_position_embeddings": rng.choice([1, 128]), **lists}
    spelling = rng.choice(["rope_parameters", "rope_type", "type"])
    if spelling == "rope_parameters":
        return {"rope_parameters": {"rope_type": kind, "rope_theta": theta, **scaling}}
    if kind == "default":
        return {"rope_theta": theta, **rng.choice([{}, {"rope_scaling": None}])}
    return {"rope_theta": theta, "rope_scaling": {spelling: kind, **scaling}}


def expert_keys(rng: random.Random, family: str, layers: int) -> dict:
    """Experts in any number, all of them for a token at times."""
    groups = rng.choice([1, 2, 3, 4])
    experts = groups * rng.choice([2, 3, 4, 7])
    top_groups = rng.randint(1, groups)
    keys: dict = {"num_experts_per_tok": rng.randint(1, min(5, experts))}
    if family == "mixtral":
        return {**keys, "num_local_experts": experts, "sliding_window": rng.choice([None, 5, 24])}
    keys["moe_intermediate_size"] = rng.randint(3, 60)
    if family == "qwen3_moe":
        some = [layer for layer in range(layers) if rng.random() < 0.3]
        sparse = {"decoder_sparse_step": rng.choice([1, 1, 2]), "mlp_only_layers": some}
        window = {"use_sliding_window": rng.random() < 0.3, "sliding_window": rng.choice([3, 20])}
        norm = {"norm_topk_prob": rng.random() < 0.5, "attention_bias": rng.random() < 0.3}
        return {**keys, "num_experts": experts, **sparse, **window, **norm}
    keys["num_experts_per_tok"] = rng.randint(1, min(5, top_groups * experts // groups))
    keys |= {"n_routed_experts": experts, "n_shared_experts": rng.choice([1, 2, 3])}
    keys |= {"first_k_dense_replace": rng.randint(0, layers), "routed_scaling_factor": rng.choice([1.0, 2.5])}
    keys |= {"n_group": groups, "topk_group": top_groups, "attention_bias": rng.random() < 0.3}
    keys |= {"q_lora_rank": rng.choice([None, 9, 32]), "kv_lora_rank": rng.choice([8, 17, 64])}
    keys |= {"qk_nope_head_dim": rng.choice([5, 16, 32]), "qk_rope_head_dim": rng.choice([2, 8, 16])}
    keys["v_head_dim"] = rng.choice([6, 16, 33])
    if family == "deepseek_v2":  # transformers rotates complex numbers there, which must lie at even places
        keys |= {"qk_nope_head_dim": keys["qk_nope_head_dim"] & ~1, "kv_lora_rank": keys["kv_lora_rank"] & ~1}
        return {**keys, "topk_method": rng.choice(["greedy", "group_limited_greedy"])}
    return {**keys, "norm_topk_prob": rng.random() < 0.7, "rope_interleave": rng.random() < 0.8}


def family_keys(rng: random.Random, family: str, layers: int) -> dict:
    """Keys that only some families know."""
    if family == "llama":
        biases = {"attention_bias": rng.random() < 0.3, "mlp_bias": rng.random() < 0.3}
        return {**biases, "hidden_act": rng.choice(["silu", "silu", "silu", "gelu", "gelu_pytorch_tanh"])}
    if family in ("mixtral", "qwen3_moe", "deepseek_v2", "deepseek_v3"):
        return expert_keys(rng, family, layers)
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


def dense_config(rng: random.Random) -> dict:
    """OPT, BLOOM or GPT-2, whose configs share few keys with Llama's."""
    family = rng.choice(["opt", "bloom", "gpt2"])
    heads, layers, context = rng.choice([1, 2, 3, 5, 6, 8, 11]), rng.randint(1, 3), 256
    hidden, inner = heads * rng.randint(2, 17), rng.randint(9, 150)
    config = {"model_type": family, "vocab_size": rng.randint(40, 300), "bos_token_id": 1, "eos_token_id": 2}
    if family == "opt":
        config |= {"hidden_size": hidden, "ffn_dim": inner, "num_hidden_layers": layers, "num_attention_heads": heads}
        config |= {"max_position_embeddings": context, "activation_function": rng.choice(["relu", "gelu"])}
        config |= {"do_layer_norm_before": rng.random() < 0.6, "enable_bias": rng.random() < 0.8}
        config["layer_norm_elementwise_affine"] = rng.random() < 0.8
        config["word_embed_proj_dim"] = rng.choice([hidden, hidden, rng.randint(4, 90)])
        config["_remove_final_layer_norm"] = rng.random() < 0.2
    if family == "bloom":
        config |= {rng.choice(["hidden_size", "n_embed"]): hidden, "seq_length": context}
        config |= {rng.choice(["n_layer", "num_hidden_layers"]): layers}
        config |= {rng.choice(["n_head", "num_attention_heads"]): heads}
        config["apply_residual_connection_post_layernorm"] = rng.random() < 0.3
    if family == "gpt2":
        config |= {"n_embd": hidden, "n_layer": layers, "n_head": heads, "n_positions": context}
        config |= {"n_inner": rng.choice([None, inner]), "scale_attn_weights": rng.random() < 0.8}
        config |= {"scale_attn_by_inverse_layer_idx": rng.random() < 0.3}
        config["activation_function"] = rng.choice(["gelu_new", "gelu_new", "gelu", "relu"])
    return {**config, "tie_word_embeddings": rng.random() < 0.7}


def random_config(rng: random.Random) -> dict:
    """A config.json; shapes that no kernel's block size divides are likely."""
    if rng.random() < 0.4:
        return dense_config(rng)
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
        **family_keys(rng, family, layers),
    }
    # Qwen2 has no head_dim of its own; the others may leave it out, save where hidden / heads is odd or the
    # family's default is another number.
    if family.startswith("deepseek"):
        config["num_key_value_heads"] = heads
    elif family != "qwen2" and (family == "qwen3" or rng.random() < 0.6):
        config["head_dim"] = rng.choice([4, 6, 8, 10, 16, 20, 32, 40, 64])
    head_dim = config.get("qk_rope_head_dim", config.get("head_dim", hidden // heads))
    config |= rope_keys(rng, head_dim)
    # transformers 5.23 scales Mixtral's rotations before it fills in the default of head_dim.
    if family == "mixtral" and config.get("rope_scaling", config.get("rope_parameters")):
        config["head_dim"] = head_dim
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
        folder,
        config,
        seed,
        dtype,
        shards=rng.choice([1, 1, 2, 5]),
        mixed=mixed,
        extra=rng.choice(["", "bare"]),
        attention_gain=gain,
    )
    return config


def clear_greedy(
    model, rng: random.Random, vocab: int, longest: int, count: int
) -> tuple[list[int], list[int]]:
    """A prompt whose greedy continuation is not a close call, nor any token's experts, and that continuation."""
    routers = tm.RouterCheck(model, rng.randrange(2**31))
    routers.noise = 1e-5
    for _ in range(200):
        ids = random_ids(rng, vocab, longest)
        routers.stable = True
        chosen, margin = tm.greedy(model, ids, count)
        if margin >= SMALLEST_MARGIN and routers.stable:
            routers.noise = 0.0
            return ids, chosen
    raise RuntimeError("no prompt with clear greedy choices")


def survives_rounding(model, ids: list[int]) -> bool:
    """Whether no token would choose other experts had activations been rounded to bf16."""
    routers = tm.RouterCheck(model, 0)
    routers.noise = 1e-2
    tm.logits_of(model, ids)
    routers.noise = 0.0
    return routers.stable
