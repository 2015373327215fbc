# SPDX-License-Identifier: Apache-2.0
"""Writes tiny quantized checkpoints in every format that is read, with the logits of the model that they stand for.

    make_quantized.py            writes cases/<case>/ beside this script
    make_quantized.py --check    builds them again elsewhere and compares, as make_models.py does

The numbers of each format are packed, and unpacked again, by this script's own code, which follows the descriptions of
the formats (src/cpu/weight.h). The logits are those that `transformers` computes in float32 for a plain
model of the unpacked numbers: what is tested is reading a format, not how well it approximates.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable

import numpy as np
import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).resolve().parent))
import make_models as mm
import tiny_models as tm

Tensors = dict[str, torch.Tensor]
Packer = Callable[[str, np.ndarray, dict, np.random.Generator], tuple[Tensors, np.ndarray]]


def split_codes(
    values: np.ndarray, levels: int, zero_max: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes, float16 scale and integer zero of groups along the last axis; code 0 to levels."""
    low, high = values.min(-1, keepdims=True), values.max(-1, keepdims=True)
    scale = np.maximum((high - low) / levels, 1e-4).astype(np.float16)
    zero = np.clip(np.round(-low / scale), 1, zero_max)
    codes = np.clip(np.round(values / scale + zero), 0, levels)
    return codes.astype(np.int64), scale, zero.astype(np.int64)


def pack_words(codes: np.ndarray, bits: int, order: list[int]) -> torch.Tensor:
    """The last axis into 32-bit words: the word's field i, from the lowest bits on, is code order[i]."""
    words = codes.reshape(*codes.shape[:-1], -1, len(order))[..., order].astype(np.uint64)
    shifts = np.arange(len(order), dtype=np.uint64) * np.uint64(bits)
    packed = (words << shifts).sum(-1).astype(np.uint32)
    return torch.from_numpy(packed.view(np.int32).copy())


def pack_penstock(
    name: str, weight: np.ndarray, options: dict, rng: np.random.Generator
) -> tuple[Tensors, np.ndarray]:
    """Rows of codes, then scales and minima."""
    bits, group, symmetric = options["bits"], options["group_size"], options["symmetric"]
    rows, columns = weight.shape
    codes = np.zeros((rows, columns), np.int64)
    plain = np.zeros((rows, columns), np.float32)
    tails = []
    for begin in range(0, columns, group):
        part = weight[:, begin : begin + group]
        low, high = part.min(1, keepdims=True), part.max(1, keepdims=True)
        if symmetric:
            half = 2 ** (bits - 1)
            scale = (np.abs(part).max(1, keepdims=True) / (half - 1)).astype(np.float16)
            minimum = -half * scale.astype(np.float32)
            tails.append(scale)
        else:
            scale = ((high - low) / (2**bits - 1)).astype(np.float16)
            minimum = low.astype(np.float16).astype(np.float32)
            tails.append(np.concatenate([scale, minimum.astype(np.float16)], 1))
        step = scale.astype(np.float32)
        code = np.clip(np.round((part - minimum) / step), 0, 2**bits - 1)
        codes[:, begin : begin + group] = code
        plain[:, begin : begin + group] = code * step + minimum
    if bits == 4:
        padded = np.pad(codes, ((0, 0), (0, columns % 2)))
        packed = (padded[:, 0::2] | padded[:, 1::2] << 4).astype(np.uint8)
    else:
        packed = codes.astype(np.uint8)
    row_bytes = np.concatenate([packed, np.concatenate(tails, 1).astype("<f2").view(np.uint8)], 1)
    return {f"{name}.weight": torch.from_numpy(row_bytes)}, plain


def pack_fp8(
    name: str, weight: np.ndarray, options: dict, rng: np.random.Generator
) -> tuple[Tensors, np.ndarray]:
    """F8_E4M3 and a scale for each block, row, or all."""
    rows, columns = weight.shape
    block_rows, block_columns = options["block"] or (rows, columns)
    block_rows, block_columns = min(block_rows, rows), min(block_columns, columns)
    scales = np.zeros((-(-rows // block_rows), -(-columns // block_columns)), np.float32)
    elements = np.zeros(weight.shape, np.float32)
    plain = np.zeros(weight.shape, np.float32)
    for i in range(scales.shape[0]):
        for k in range(scales.shape[1]):
            place = np.s_[i * block_rows : (i + 1) * block_rows, k * block_columns : (k + 1) * block_columns]
            scale = np.float32(np.abs(weight[place]).max() / 448)
            if options.get("bf16_scales"):
                scale = torch.tensor(scale).to(torch.bfloat16).float().numpy()
            # The largest may round up past 448 by the rounding of its scale.
            limited = np.clip(weight[place] / scale, -448, 448)
            elements[place] = torch.from_numpy(limited).to(torch.float8_e4m3fn).float().numpy()
            plain[place] = elements[place] * scale
            scales[i, k] = scale
    stored = torch.from_numpy(scales if options["block"] else scales.reshape(-1))
    if options.get("bf16_scales"):
        stored = stored.to(torch.bfloat16)
    return {
        f"{name}.weight": torch.from_numpy(elements).to(torch.float8_e4m3fn),
        f"{name}.{options['suffix']}": stored,
    }, plain


def pack_gptq(
    name: str, weight: np.ndarray, options: dict, rng: np.random.Generator
) -> tuple[Tensors, np.ndarray]:
    """Inputs packed along the first axis, zeros along the outputs."""
    bits, outputs, inputs = options["bits"], *weight.shape
    group = options["group_size"] if options["group_size"] > 0 else inputs
    groups = -(-inputs // group)
    index = np.arange(inputs) // group
    if options["desc_act"]:
        index = index[rng.permutation(inputs)]
    codes = np.zeros((inputs, outputs), np.int64)
    scales = np.zeros((groups, outputs), np.float16)
    zeros = np.zeros((groups, outputs), np.int64)
    for g in range(groups):
        mine = index == g
        code, scale, zero = split_codes(weight[:, mine], 2**bits - 1, 2**bits - 1)
        codes[mine], scales[g], zeros[g] = code.T, scale[:, 0], zero[:, 0]
    plain = ((codes - zeros[index]) * scales[index].astype(np.float32)).T.astype(np.float32)
    order = list(range(32 // bits))
    offset = 0 if options["checkpoint_format"] == "gptq_v2" else 1
    tensors = {
        f"{name}.qweight": pack_words(codes.T, bits, order).T.contiguous(),
        f"{name}.qzeros": pack_words(zeros - offset, bits, order),
        f"{name}.scales": torch.from_numpy(scales),
    }
    if options["with_index"]:
        tensors[f"{name}.g_idx"] = torch.from_numpy(index.astype(np.int32))
    return tensors, plain


def pack_awq(
    name: str, weight: np.ndarray, options: dict, rng: np.random.Generator
) -> tuple[Tensors, np.ndarray]:
    """Outputs packed in the order 0 2 4 6 1 3 5 7."""
    outputs, inputs = weight.shape
    group = options["group_size"] if options["group_size"] > 0 else inputs
    groups = -(-inputs // group)
    index = np.arange(inputs) // group
    codes = np.zeros((inputs, outputs), np.int64)
    scales = np.zeros((groups, outputs), np.float16)
    zeros = np.zeros((groups, outputs), np.int64)
    for g in range(groups):
        code, scale, zero = split_codes(weight[:, index == g], 15, 15)
        codes[index == g], scales[g], zeros[g] = code.T, scale[:, 0], zero[:, 0]
    plain = ((codes - zeros[index]) * scales[index].astype(np.float32)).T.astype(np.float32)
    order = [0, 2, 4, 6, 1, 3, 5, 7]
    return {
        f"{name}.qweight": pack_words(codes, 4, order),
        f"{name}.qzeros": pack_words(zeros, 4, order),
        f"{name}.scales": torch.from_numpy(scales),
    }, plain


@dataclass
class Case:
    """A base model and how its matrices are packed. all_matrices: embedding and head, too."""

    config: dict
    quantization: dict
    packer: Packer
    options: dict = field(default_factory=dict)
    all_matrices: bool = False
    keep: tuple[str, ...] = ()
    lengths: tuple[int, ...] = (1, 7, 33)


PLAIN = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}


def penstock(config: dict, bits: int, group: int, symmetric: bool, **more) -> Case:
    options = {"bits": bits, "group_size": group, "symmetric": symmetric}
    return Case(
        config,
        {"quant_method": "penstock", "version": 1, **options},
        pack_penstock,
        options,
        all_matrices=True,
        **more,
    )


def gptq(config: dict, bits: int, group: int, **more) -> Case:
    options = {"bits": bits, "group_size": group, "desc_act": False, "checkpoint_format": "gptq", "with_index": True}
    keep = more.pop("keep", ())
    options.update(more)
    quantization = {key: value for key, value in options.items() if key != "with_index"}
    return Case(config, {"quant_method": "gptq", "sym": False, **quantization}, pack_gptq, options, keep=keep)


def awq(config: dict, group: int, **more) -> Case:
    quantization = {"quant_method": "awq", "bits": 4, "group_size": group, "version": "gemm", "zero_point": True}
    return Case(config, quantization, pack_awq, {"group_size": group}, **more)


def fp8(config: dict, block: tuple[int, int], **options) -> Case:
    quantization = {
        "quant_method": "fp8",
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "weight_block_size": list(block),
    }
    return Case(config, quantization, pack_fp8, {"block": block, "suffix": "weight_scale_inv", **options})


def compressed(config: dict, strategy: str, block: tuple[int, int] | None) -> Case:
    weights = {"num_bits": 8, "type": "float", "strategy": strategy, "symmetric": True}
    groups = {"group_0": {"targets": ["Linear"], "weights": weights}}
    quantization = {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "config_groups": groups,
        "ignore": ["lm_head"],
    }
    return Case(config, quantization, pack_fp8, {"block": block, "suffix": "weight_scale"})


ODD = mm.base("llama", 54, 3, 1, 37, 97, head_dim=14, **PLAIN)
SMALL = mm.base("qwen2", 48, 4, 2, 40, 72, rms_norm_eps=1e-6, **PLAIN)
TIED = mm.base("qwen3", 48, 4, 2, 40, 71, head_dim=20, **{**PLAIN, "tie_word_embeddings": True})
MISTRAL = mm.base("mistral", 64, 4, 2, 56, 80, sliding_window=5, **PLAIN)

EXPERTS = {"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "norm_topk_prob": True}
QWEN_MOE = mm.base("qwen3_moe", 48, 4, 2, 40, 72, head_dim=16, rope_theta=1e6, **EXPERTS)
DEEPSEEK = mm.deepseek_cases()["deepseek_v3_yarn"].config

CASES: dict[str, Case] = {
    "penstock_8": penstock(ODD, 8, 16, False),
    "penstock_4_tied": penstock(TIED, 4, 32, False),
    "penstock_4_symmetric": penstock(ODD, 4, 10, True, keep=("lm_head",)),
    "penstock_8_symmetric": penstock(SMALL, 8, 64, True),
    "fp8_blocks": fp8(ODD, (16, 8)),
    "fp8_blocks_bf16": fp8(SMALL, (32, 32), bf16_scales=True),
    "fp8_channels": compressed(SMALL, "channel", (1, 1 << 20)),
    "fp8_tensor": compressed(MISTRAL, "tensor", None),
    "gptq_4": gptq(SMALL, 4, 16),
    "gptq_4_reordered": gptq(MISTRAL, 4, 8, desc_act=True, keep=("model.layers.1.mlp.down_proj",)),
    "gptq_8_whole": gptq(SMALL, 8, -1, with_index=False),
    "gptq_v2": gptq(MISTRAL, 4, 32, checkpoint_format="gptq_v2"),
    "awq": awq(SMALL, 16),
    "fp8_deepseek": fp8(DEEPSEEK, (16, 8)),
    "penstock_8_deepseek": penstock(DEEPSEEK, 8, 8, False),
    "gptq_4_experts": gptq(QWEN_MOE, 4, 8),
    "awq_whole": awq(MISTRAL, -1, keep=("model.layers.0.self_attn.q_proj",)),
}


def pack_model(case: Case, weights: Tensors, rng: np.random.Generator) -> tuple[Tensors, Tensors]:
    """The tensors as they are stored, and what they stand for."""
    packed: Tensors = {}
    plain: Tensors = {}
    for name, tensor in weights.items():
        base = name.removesuffix(".weight")
        is_outer = base in ("lm_head", "model.embed_tokens") or base.endswith("mlp.gate")
        if tensor.dim() != 2 or base in case.keep or (is_outer and not case.all_matrices):
            packed[name] = plain[name] = tensor
            continue
        made, unpacked = case.packer(base, tensor.numpy(), case.options, rng)
        packed.update(made)
        plain[name] = torch.from_numpy(np.ascontiguousarray(unpacked))
    return packed, plain


def try_case(folder: Path, case: Case, seed: int) -> bool:
    """Writes the case with one seed; false when a greedy choice is too close to call."""
    rng = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory(prefix="penstock-plain-") as temp:
        twin = Path(temp)
        tm.write_folder(twin, case.config, seed, "f32")
        weights = tm.model_tensors(tm.read_config(twin), seed, "f32", False, 1.5)
        packed, plain = pack_model(case, weights, rng)
        tm.save_weights(twin, plain, 1)
        model = tm.load_reference(twin)
        routers = tm.RouterCheck(model, seed)
        routers.noise = mm.ROUTER_NOISE["f32"]
        folder.mkdir(parents=True)
        config = {**case.config, "quantization_config": case.quantization}
        (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
        save_file(packed, folder / "model.safetensors", metadata={"format": "pt"})
        expected: dict = {"dtype": "f32", "tolerance": mm.TOLERANCE["f32"], "seed": seed, "sequences": []}
        wanted = mm.Case(case.config, lengths=case.lengths)
        for index, ids in enumerate(mm.sequences(np.random.default_rng(seed), wanted)):
            chosen, margin = tm.greedy(model, ids, mm.GREEDY_TOKENS)
            if margin < mm.SMALLEST_MARGIN or not routers.stable:
                return False
            np.save(folder / f"logits_{index}.npy", tm.logits_of(model, ids))
            expected["sequences"].append(
                {"ids": ids, "logits": f"logits_{index}.npy", "greedy": chosen, "margin": round(margin, 4)}
            )
        (folder / "expected.json").write_text(json.dumps(expected).replace('{"ids"', '\n {"ids"') + "\n")
    return True


def make_case(root: Path, name: str) -> None:
    """Writes the case with the first seed that gives clear greedy choices."""
    for attempt in range(200):
        folder = root / name
        shutil.rmtree(folder, ignore_errors=True)
        if try_case(folder, CASES[name], mm.SEED * 1000000 + sum(map(ord, name)) * 200 + attempt):
            break
    else:
        raise RuntimeError(f"{name}: no seed with clear greedy choices")
    size = sum(f.stat().st_size for f in folder.iterdir())
    print(f"{name}: {size} bytes, seed attempt {attempt}", flush=True)


def main() -> int:
    return mm.run(CASES, make_case, __doc__)


if __name__ == "__main__":
    sys.exit(main())
