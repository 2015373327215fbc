# SPDX-License-Identifier: Apache-2.0
"""Writes tiny checkpoints of every supported variation with the logits that `transformers` computes for them.

    make_models.py            writes cases/<case>/ beside this script
    make_models.py --check    builds them again elsewhere and compares: weights and configs byte for byte, ids
                              exactly, logits within 1e-5 of the largest

A case folder is a plain Hugging Face folder (config.json, *.safetensors) and
    expected.json     {"dtype", "tolerance", "sequences": [{"ids": [...], "logits": "logits_0.npy", "greedy": [16 ids],
                      "margin"}]}; `tolerance` bounds max |a - b| / max |b|, `margin` is the smallest distance of
                      the best two logits along the greedy ids (same unit)
    logits_<i>.npy    float32, tokens x vocabulary, of the float32 model on the weights as stored
"""

from __future__ import annotations

import argparse
import filecmp
import json
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))
import tiny_models as tm

HERE = Path(__file__).resolve().parent / "cases"
SEED = 7
GREEDY_TOKENS = 16
SMALLEST_MARGIN = 2e-3  # well above the tolerance of float32, so that greedy ids must be equal
# Noise in shares of a router's input that may not change its choice: at 16 bits activations are rounded, too.
ROUTER_NOISE = {"f32": 1e-5, "bf16": 1e-2, "f16": 1e-2}
TOLERANCE = {"f32": 1e-4, "bf16": 2e-2, "f16": 2e-2}


@dataclass
class Case:
    """One checkpoint: its config word for word, or (`native`) as save_pretrained spells it."""

    config: dict
    dtype: str = "f32"
    native: bool = False
    shards: int = 1
    mixed: bool = False
    extra: str = ""
    lengths: tuple[int, ...] = (1, 7, 33)
    cached: bool = False  # greedy ids with a cache, whose keys have another base than a whole pass would give


def base(
    family: str, hidden: int, heads: int, kv_heads: int, inner: int, vocab: int, layers: int = 2, **more
) -> dict:
    """The keys that every config has; the rest as given."""
    class_names = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"}
    class_names |= {"mixtral": "Mixtral", "qwen3_moe": "Qwen3Moe"}
    class_names |= {"deepseek_v2": "DeepseekV2", "deepseek_v3": "DeepseekV3"}
    return {
        "architectures": [f"{class_names[family]}ForCausalLM"],
        "model_type": family,
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": inner,
        "vocab_size": vocab,
        "num_hidden_layers": layers,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 128,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": False,
        **more,
    }


def without(config: dict, *keys: str) -> dict:
    """The config without some keys, where a reader has to know the default."""
    return {key: value for key, value in config.items() if key not in keys}


# Original length 32: wavelengths below 8 stay, above 32 are stretched, between them blended.
LLAMA3_SCALING = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


def llama_cases() -> dict[str, Case]:
    plain = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}
    odd = base("llama", 51, 3, 1, 37, 97, head_dim=14, rms_norm_eps=3e-3, rope_theta=10000.0)
    oldest = base("llama", 48, 4, 4, 36, 53, layers=3, rms_norm_eps=1e-6, torch_dtype="float32")
    theta = {"rope_theta": 500000.0}
    wide = base("llama", 40, 4, 2, 52, 61, head_dim=24)
    small = base("llama", 48, 4, 2, 44, 71)
    linear = {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}
    cases = {
        "llama_mha": Case(base("llama", 48, 4, 4, 52, 131, **plain), native=True),
        "llama_oldest": Case(without(oldest, "num_key_value_heads", "tie_word_embeddings"), extra="inv_freq"),
        "llama_gqa2": Case(base("llama", 72, 6, 3, 20, 53, **plain), lengths=(2, 70)),
        "llama_gqa4_head12": Case(base("llama", 48, 8, 2, 37, 71, head_dim=12, **plain)),
        "llama_mqa_head20": Case(
            base("llama", 80, 5, 1, 25, 67, layers=1, head_dim=20, tie_word_embeddings=True, **plain)
        ),
        "llama_tied_bf16": Case(
            {**small, "tie_word_embeddings": True, "torch_dtype": "bfloat16", **theta}, "bf16"
        ),
        "llama_tied_stored": Case({**small, "tie_word_embeddings": True, **plain}, extra="lm_head"),
        "llama_biases": Case({**small, "attention_bias": True, "mlp_bias": True, **plain}, native=True),
        "llama3_rope_new": Case(
            {**wide, "rope_parameters": {"rope_type": "llama3", **theta, **LLAMA3_SCALING}}, lengths=(7, 70)
        ),
        "llama3_rope_old": Case(
            {**wide, **theta, "rope_scaling": {"rope_type": "llama3", **LLAMA3_SCALING}}, lengths=(7, 70)
        ),
        "llama3_rope_type": Case(
            {**wide, **theta, "rope_scaling": {"type": "llama3", **LLAMA3_SCALING}}, "bf16", shards=3
        ),
        "llama3_rope_10k": Case(
            {**small, "rope_theta": 10000.0, "rope_scaling": {"rope_type": "llama3", **LLAMA3_SCALING}}
        ),
        "llama_linear_new": Case({**small, "rope_parameters": linear}, native=True, lengths=(7, 70)),
        "llama_linear_old": Case(
            {**small, "rope_scaling": {"type": "linear", "factor": 4.0}}, lengths=(7, 70)
        ),
        "llama_linear_1m": Case(
            {**small, "rope_theta": 1e6, "rope_scaling": {"rope_type": "linear", "factor": 2.5}}, "f16"
        ),
        "llama_gelu": Case({**small, "hidden_act": "gelu", **plain}),
        "llama_gelu_tanh": Case({**small, "hidden_act": "gelu_pytorch_tanh", **plain}),
        "llama_bf16_sharded": Case({**wide, **plain, "dtype": "bfloat16"}, "bf16", native=True, shards=5),
        "llama_f16": Case(
            {**small, "torch_dtype": "float16", "rope_theta": 10000.0, "rope_scaling": None}, "f16"
        ),
        "llama_mixed": Case({**small, "torch_dtype": "bfloat16", **plain}, "bf16", mixed=True, shards=2),
        "llama_odd": Case({**odd, "rope_scaling": {"rope_type": "default"}}, lengths=(1, 3, 33)),
    }
    return cases


def mistral_cases() -> dict[str, Case]:
    theta = {"rope_theta": 1e6}
    plain = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}
    defaults = base("mistral", 96, 16, 8, 50, 103, layers=1, torch_dtype="bfloat16", **theta)
    return {
        "mistral_window": Case(
            base("mistral", 48, 4, 2, 52, 71, sliding_window=5, **plain), native=True, lengths=(1, 7, 70)
        ),
        "mistral_null_head20": Case(
            base("mistral", 48, 4, 2, 40, 71, sliding_window=None, head_dim=20, **theta)
        ),
        "mistral_defaults": Case(
            without(defaults, "num_key_value_heads", "sliding_window", "tie_word_embeddings"), "bf16"
        ),
        "mistral_window_bf16": Case(
            base("mistral", 80, 5, 1, 50, 71, sliding_window=16, **theta), "bf16", shards=2, lengths=(7, 70)
        ),
    }


def qwen_cases() -> dict[str, Case]:
    theta = {"rope_theta": 1e6}
    plain = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}
    window = {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1}
    ignored = {"use_sliding_window": False, "sliding_window": 4, "max_window_layers": 0}
    types = {"layer_types": ["full_attention", "sliding_attention", "full_attention"]}
    no_dim = base("qwen3", 24, 2, 1, 20, 53, rms_norm_eps=1e-6, **theta)
    return {
        "qwen2": Case(base("qwen2", 56, 7, 1, 26, 61, rms_norm_eps=1e-6, **ignored, **theta)),
        "qwen2_window": Case(base("qwen2", 48, 4, 2, 40, 71, 3, **window, **theta), lengths=(7, 70)),
        "qwen2_layer_types": Case(
            base("qwen2", 48, 6, 2, 36, 71, 3, **window, **types, **plain), native=True, lengths=(7, 70)
        ),
        "qwen2_tied_bf16": Case(
            base("qwen2", 80, 10, 5, 42, 131, **theta, **{"tie_word_embeddings": True}), "bf16"
        ),
        "qwen2_f16_sharded": Case(base("qwen2", 64, 4, 4, 60, 71, **theta), "f16", shards=4),
        "qwen3": Case(base("qwen3", 48, 4, 2, 40, 71, head_dim=20, rms_norm_eps=2e-3, **plain), native=True),
        "qwen3_biases": Case(
            base(
                "qwen3",
                52,
                4,
                2,
                26,
                67,
                head_dim=16,
                attention_bias=True,
                rope_scaling=None,
                **theta,
                **{"tie_word_embeddings": True},
            )
        ),
        "qwen3_bf16": Case(
            base("qwen3", 48, 8, 2, 41, 131, head_dim=24, **theta), "bf16", shards=2, lengths=(7, 70)
        ),
        "qwen3_no_head_dim": Case(no_dim),
        "qwen3_window": Case(
            base("qwen3", 48, 4, 1, 40, 71, 3, head_dim=12, **window, **theta), lengths=(7, 70)
        ),
        "qwen3_f16": Case(base("qwen3", 48, 3, 3, 50, 131, head_dim=16, **plain), "f16"),
    }


def mixtral_cases() -> dict[str, Case]:
    theta = {"rope_theta": 1e6}
    defaults = base("mixtral", 96, 16, 8, 11, 53, layers=1, rope_scaling=None)
    return {
        "mixtral": Case(
            base("mixtral", 48, 4, 2, 37, 71, num_local_experts=5, num_experts_per_tok=2, **theta), native=True
        ),
        "mixtral_top3_window": Case(
            base("mixtral", 40, 4, 1, 21, 67, 3, num_local_experts=7, num_experts_per_tok=3, sliding_window=6, **theta),
            lengths=(7, 70),
            shards=3,
        ),
        "mixtral_defaults_bf16": Case(without(defaults, "num_key_value_heads", "tie_word_embeddings"), "bf16"),
        "mixtral_top1_tied": Case(
            base("mixtral", 56, 7, 1, 19, 61, num_local_experts=3, num_experts_per_tok=1, head_dim=10, **theta)
            | {"tie_word_embeddings": True}
        ),
    }


def qwen_moe_cases() -> dict[str, Case]:
    theta = {"rope_theta": 1e6}
    shape = {"num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 13, "head_dim": 16}
    plain = {"norm_topk_prob": False, "decoder_sparse_step": 2, "mlp_only_layers": [3], "attention_bias": True}
    return {
        "qwen3_moe": Case(
            base("qwen3_moe", 48, 4, 2, 40, 71, norm_topk_prob=True, **shape, **theta), native=True, shards=2
        ),
        "qwen3_moe_mixed_layers": Case(base("qwen3_moe", 52, 4, 1, 26, 67, 5, **shape, **plain, **theta)),
        "qwen3_moe_window": Case(
            base("qwen3_moe", 48, 6, 3, 20, 61, use_sliding_window=True, sliding_window=5, **theta, **shape)
            | {"num_experts": 17, "num_experts_per_tok": 1, "mlp_only_layers": [0]},
            lengths=(7, 70),
        ),
        "qwen3_moe_bf16": Case(
            base("qwen3_moe", 64, 4, 4, 20, 131, norm_topk_prob=True, **shape, **theta)
            | {"tie_word_embeddings": True},
            "bf16",
        ),
    }


def rope_cases() -> dict[str, Case]:
    theta = {"rope_theta": 10000.0}
    wide = base("llama", 40, 4, 2, 52, 61, head_dim=24)
    yarn = {"factor": 4.0, "original_max_position_embeddings": 32}
    deep = {"mscale": 0.707, "mscale_all_dim": 1.3, "beta_fast": 16, "beta_slow": 2, "truncate": False}
    short, long = [1.0, 1.1, 1.3, 1.7, 2.1, 3.0, 3.5, 4.0], [1.5, 2.5, 4.0, 7.0, 12.0, 20.0, 30.0, 40.0]
    factors = {"short_factor": short, "long_factor": long}
    return {
        "llama_yarn": Case(
            {**wide, "rope_parameters": {"rope_type": "yarn", **theta, **yarn}}, native=True, lengths=(7, 70)
        ),
        "llama_yarn_scales": Case(
            {**wide, **theta, "rope_scaling": {"type": "yarn", **yarn, **deep}}, lengths=(7, 70)
        ),
        "qwen2_yarn_bf16": Case(
            base("qwen2", 60, 6, 2, 26, 61, rope_theta=1e6, rope_scaling={"type": "yarn", "attention_factor": 1.2} | yarn),
            "bf16",
        ),
        "qwen3_yarn_null": Case(
            base("qwen3", 52, 4, 2, 40, 71, head_dim=14, rope_scaling={"rope_type": "yarn", **yarn, "factor": None}, **theta)
        ),
        "llama_dynamic": Case(
            {**wide, "max_position_embeddings": 24}
            | {"rope_parameters": {"rope_type": "dynamic", "factor": 4.0, **theta}},
            lengths=(7, 40),
            cached=True,
        ),
        "llama_longrope": Case(
            {**wide, "head_dim": 16, "max_position_embeddings": 256, **theta}
            | {"rope_scaling": {"type": "longrope", **factors, "original_max_position_embeddings": 64}},
            lengths=(7, 33, 70),
        ),
        "mistral_longrope_crossing": Case(
            base("mistral", 48, 4, 2, 40, 71, head_dim=16, sliding_window=None, original_max_position_embeddings=24)
            | {"rope_parameters": {"rope_type": "longrope", "factor": 3.0, **theta, **factors}},
            "f16",
            lengths=(7, 15, 30),
            cached=True,
        ),
        "llama_partial": Case({**wide, "rope_parameters": {"rope_type": "default", **theta, "partial_rotary_factor": 0.5}}),
        "qwen3_partial": Case(
            base("qwen3", 44, 2, 1, 20, 53, head_dim=22, partial_rotary_factor=0.37, **theta), "bf16", shards=2
        ),
    }


def dense_base(family: str, vocab: int, **more) -> dict:
    """The keys of families whose configs share few with Llama's."""
    class_names = {"opt": "OPTForCausalLM", "bloom": "BloomForCausalLM", "gpt2": "GPT2LMHeadModel"}
    ids = {"bos_token_id": 1, "eos_token_id": 2}
    return {"architectures": [class_names[family]], "model_type": family, "vocab_size": vocab, **ids, **more}


def opt_cases() -> dict[str, Case]:
    def opt(vocab: int, hidden: int, heads: int, inner: int, layers: int = 2, **more) -> dict:
        shape = {"hidden_size": hidden, "num_attention_heads": heads, "ffn_dim": inner, "num_hidden_layers": layers}
        return dense_base("opt", vocab, max_position_embeddings=128, **shape, **more)

    last = {"do_layer_norm_before": False}
    return {
        "opt": Case(opt(131, 48, 4, 52), native=True, lengths=(1, 7, 100)),
        "opt_350m": Case(opt(97, 48, 4, 37, word_embed_proj_dim=20, torch_dtype="float16", **last), "f16"),
        "opt_350m_f32": Case(opt(53, 40, 5, 37, 3, word_embed_proj_dim=52, **last), shards=2),
        "opt_projected_bf16": Case(opt(71, 36, 6, 29, word_embed_proj_dim=10), "bf16", shards=3, extra="bare"),
        "opt_odd_gelu": Case(
            opt(61, 51, 3, 35, 3, activation_function="gelu", _remove_final_layer_norm=True, tie_word_embeddings=False)
        ),
        "opt_bare_norms": Case(
            opt(59, 44, 4, 45, activation_function="gelu", enable_bias=False, layer_norm_elementwise_affine=False)
        ),
        "opt_no_bias": Case(opt(53, 42, 7, 31, enable_bias=False, **last), extra="lm_head"),
    }


def bloom_cases() -> dict[str, Case]:
    old = {"n_embed": 54, "n_layer": 2, "num_attention_heads": 6, "seq_length": 128, "attention_softmax_in_fp32": True}
    normed = {"apply_residual_connection_post_layernorm": True, "layer_norm_epsilon": 3e-3}
    return {
        "bloom": Case(dense_base("bloom", 131, hidden_size=36, n_layer=2, n_head=6), native=True, lengths=(1, 7, 100)),
        "bloom_old_bf16": Case(dense_base("bloom", 97, **old), "bf16", shards=3, extra="bare"),
        "bloom_residual_normed": Case(dense_base("bloom", 53, hidden_size=35, n_layer=2, n_head=5, **normed)),
        "bloom_f16": Case(dense_base("bloom", 61, hidden_size=52, n_layer=1, n_head=13), "f16", mixed=True),
        "bloom_untied": Case(
            dense_base("bloom", 71, hidden_size=48, n_layer=1, n_head=8, tie_word_embeddings=False), shards=2
        ),
    }


def gpt2_cases() -> dict[str, Case]:
    def gpt2(vocab: int, hidden: int, heads: int, layers: int = 2, **more) -> dict:
        return dense_base("gpt2", vocab, n_embd=hidden, n_head=heads, n_layer=layers, n_positions=128, **more)

    return {
        "gpt2": Case(gpt2(101, 36, 4), native=True, lengths=(1, 7, 100)),
        "gpt2_bare": Case(gpt2(53, 33, 3, 2, n_ctx=128, layer_norm_epsilon=1e-5), extra="bare"),
        "gpt2_scales_bf16": Case(
            gpt2(71, 42, 6, 3, n_inner=35, scale_attn_by_inverse_layer_idx=True, reorder_and_upcast_attn=True),
            "bf16",
            shards=3,
        ),
        "gpt2_unscaled": Case(
            gpt2(61, 40, 5, scale_attn_weights=False, activation_function="relu", tie_word_embeddings=False)
        ),
        "gpt2_f16": Case(gpt2(97, 42, 7, n_inner=None, activation_function="gelu"), "f16", shards=2),
    }


# As in DeepSeek-V3's folders, from a context of 16.
DEEPSEEK_YARN = {
    "type": "yarn",
    "factor": 8,
    "beta_fast": 32,
    "beta_slow": 1,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "original_max_position_embeddings": 16,
}


def deepseek_cases() -> dict[str, Case]:
    latent = {"kv_lora_rank": 24, "qk_nope_head_dim": 12, "qk_rope_head_dim": 8, "v_head_dim": 10}
    experts = {"n_routed_experts": 12, "num_experts_per_tok": 3, "moe_intermediate_size": 11}
    groups = {"n_group": 4, "topk_group": 2}
    names = {"scoring_func": "sigmoid", "topk_method": "noaux_tc", "moe_layer_freq": 1, "ep_size": 1}
    greedy = {"q_lora_rank": None, "topk_method": "greedy", "norm_topk_prob": False, "n_shared_experts": 2}
    limited = {"topk_method": "group_limited_greedy", "routed_scaling_factor": 1.7, "n_shared_experts": 1}

    def v3(hidden: int, heads: int, layers: int, **more) -> dict:
        shape = {"q_lora_rank": 20, "first_k_dense_replace": 1, "n_shared_experts": 1, **latent, **experts, **groups}
        return base("deepseek_v3", hidden, heads, heads, 34, 71, layers, rope_theta=10000.0, **{**shape, **more})

    def v2(hidden: int, heads: int, layers: int, **more) -> dict:
        return base("deepseek_v2", hidden, heads, heads, 30, 67, layers, **{**latent, **experts, **more})

    yarn = {"rope_scaling": DEEPSEEK_YARN}
    sharp = {"rope_scaling": {**DEEPSEEK_YARN, "mscale": 0.707, "mscale_all_dim": 0.5, "factor": 3.5}}
    return {
        "deepseek_v3": Case(v3(48, 4, 3), native=True),
        "deepseek_v3_yarn": Case(v3(52, 3, 2, **yarn, **names), extra="mtp", lengths=(7, 70)),
        "deepseek_v3_plain_query": Case(
            v3(40, 5, 2, q_lora_rank=None, first_k_dense_replace=0, norm_topk_prob=False, rope_interleave=False)
        ),
        "deepseek_v3_odd": Case(
            v3(
                44,
                2,
                2,
                n_routed_experts=9,
                n_group=3,
                topk_group=1,
                num_experts_per_tok=1,
                n_shared_experts=3,
                kv_lora_rank=13,
                qk_nope_head_dim=7,
                qk_rope_head_dim=6,
                v_head_dim=9,
                q_lora_rank=5,
                attention_bias=True,
                tie_word_embeddings=True,
                rms_norm_eps=3e-3,
                **sharp,
            ),
            shards=3,
        ),
        "deepseek_v3_bf16": Case(
            v3(64, 4, 2, n_routed_experts=8, n_group=2, topk_group=1, num_experts_per_tok=2, **yarn),
            "bf16",
            lengths=(1, 7, 21),
        ),
        "deepseek_v2": Case(v2(48, 4, 2, q_lora_rank=18, **groups, **limited, **yarn), lengths=(7, 70)),
        "deepseek_v2_greedy": Case(v2(48, 3, 3, first_k_dense_replace=2, **greedy), native=True),
    }


CASES: dict[str, Case] = {
    **rope_cases(),
    **opt_cases(),
    **bloom_cases(),
    **gpt2_cases(),
    **llama_cases(),
    **mistral_cases(),
    **qwen_cases(),
    **mixtral_cases(),
    **qwen_moe_cases(),
    **deepseek_cases(),
}


def sequences(rng: np.random.Generator, case: Case) -> list[list[int]]:
    """Random ids of the case's lengths; a few repeat, so that positions matter."""
    out = []
    for length in case.lengths:
        ids = rng.integers(3, case.config["vocab_size"], length)
        if length > 8:
            ids[5:8] = ids[1:4]
        out.append([int(i) for i in ids])
    return out


def try_case(folder: Path, case: Case, seed: int) -> bool:
    """Writes the case with one seed; false when a greedy choice is too close to call."""
    config = tm.native_config(case.config) if case.native else case.config
    tm.write_folder(folder, config, seed, case.dtype, case.shards, case.mixed, case.extra)
    model = tm.load_reference(folder)
    routers = tm.RouterCheck(model, seed)
    expected: dict = {"dtype": case.dtype, "tolerance": TOLERANCE[case.dtype], "seed": seed, "sequences": []}
    for index, ids in enumerate(sequences(np.random.default_rng(seed), case)):
        routers.noise = ROUTER_NOISE[case.dtype]
        logits = tm.logits_of(model, ids)
        routers.noise = ROUTER_NOISE["f32"]
        chosen, margin = tm.greedy(model, ids, GREEDY_TOKENS, case.cached)
        if margin < SMALLEST_MARGIN or not routers.stable:
            return False
        np.save(folder / f"logits_{index}.npy", logits)
        entry = {"ids": ids, "logits": f"logits_{index}.npy", "greedy": chosen, "margin": round(margin, 4)}
        expected["sequences"].append(entry)
    text = json.dumps(expected).replace('{"ids"', '\n {"ids"')
    (folder / "expected.json").write_text(text + "\n")
    return True


def make_case(root: Path, name: str) -> None:
    """Writes the case with the first seed that gives clear greedy choices."""
    case = CASES[name]
    for attempt in range(400):
        folder = root / name
        shutil.rmtree(folder, ignore_errors=True)
        if try_case(folder, case, SEED * 1000000 + sum(map(ord, name)) * 100 + attempt):
            break
    else:
        raise RuntimeError(f"{name}: no seed with clear greedy choices")
    size = sum(f.stat().st_size for f in folder.iterdir())
    print(f"{name}: {case.dtype}, {size} bytes, seed attempt {attempt}", flush=True)


def differences(made: Path, stored: Path) -> list[str]:
    """Files of a case that differ beyond what another processor's arithmetic explains."""
    if sorted(f.name for f in made.iterdir()) != (
        sorted(f.name for f in stored.iterdir()) if stored.is_dir() else []
    ):
        return ["the list of files"]
    out = []
    for file in sorted(made.iterdir()):
        other = stored / file.name
        if file.suffix == ".npy":
            equal = tm.relative_difference(np.load(file), np.load(other)) <= 1e-5
        elif file.name == "expected.json":
            ours, theirs = json.loads(file.read_text()), json.loads(other.read_text())
            for sequence in ours["sequences"] + theirs["sequences"]:
                sequence["margin"] = 0
            equal = ours == theirs
        else:
            equal = filecmp.cmp(file, other, shallow=False)
        if not equal:
            out.append(file.name)
    return out


def run(cases: dict, make: Callable[[Path, str], None], description: str) -> int:
    """The command line of this script and of those like it."""
    parser = argparse.ArgumentParser(description=description.split("\n")[0])
    parser.add_argument(
        "--check", action="store_true", help="compare with the stored cases instead of writing them"
    )
    parser.add_argument("names", nargs="*", help="only these cases")
    args = parser.parse_args()
    names = args.names or list(cases)
    if not args.check:
        for name in names:
            make(HERE, name)
        return 0
    failed = 0
    with tempfile.TemporaryDirectory(prefix="penstock-models-") as temp:
        for name in names:
            make(Path(temp), name)
            for what in differences(Path(temp) / name, HERE / name):
                print(f"differs: {name}/{what}", file=sys.stderr)
                failed += 1
    return 1 if failed else 0


def main() -> int:
    return run(CASES, make_case, __doc__)


if __name__ == "__main__":
    sys.exit(main())
