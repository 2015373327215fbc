# SPDX-License-Identifier: Apache-2.0
"""Writes tiny random checkpoints as Hugging Face folders and computes what `transformers` makes of them.

A folder's config.json is given by the caller word for word, so that old and new spellings can be written; the
model is then loaded from the folder as any user would. Weights come from NumPy's generator, matrices with a
deviation of about gain / sqrt(inputs), so that attention is peaked and logits are not flat; norm weights and
biases are random too, so that leaving one out shows. Logits are computed in float32 on the weights as stored.
"""

from __future__ import annotations

import json
import os
import types
import warnings
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import numpy as np
import torch
import transformers
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

torch.set_num_threads(1)
transformers.utils.logging.disable_progress_bar()
warnings.filterwarnings("ignore", module="transformers")

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
TORCH_NAMES = {"f32": "float32", "bf16": "bfloat16", "f16": "float16"}


def random_tensor(
    rng: np.random.Generator, name: str, shape: tuple[int, ...], attention_gain: float
) -> np.ndarray:
    """Float32 values for the tensor `name`; the deviation depends on its role."""
    values = rng.standard_normal(shape, dtype=np.float32)
    module = name.split(".")[-2]
    if name.endswith("norm.weight") or module.startswith("ln_"):
        return 0.3 * values + (0.0 if name.endswith(".bias") else 1.0)
    if name.endswith(".bias"):
        return 0.3 * values
    gains = dict.fromkeys(["q_proj", "k_proj", "query_key_value", "c_attn"], attention_gain)
    gains |= dict.fromkeys(["embed_tokens", "lm_head", "word_embeddings", "wte", "wpe", "embed_positions"], 2.2)
    inputs = shape[0] if module.startswith("c_") else shape[-1]  # GPT-2's matrices have a row per input
    return values * np.float32(gains.get(module, 1.0) / np.sqrt(inputs))


def read_config(folder: Path) -> transformers.PretrainedConfig:
    """The folder's config as transformers understands it."""
    return AutoConfig.from_pretrained(folder)


def published_names(config: transformers.PretrainedConfig, names: dict[str, tuple]) -> dict[str, tuple]:
    """The names and shapes that folders have: transformers holds a layer's experts as one tensor, folders each
    expert's matrices on their own, and Mixtral's under other names."""
    is_mixtral = config.model_type == "mixtral"
    gate, up, down = ("w1", "w3", "w2") if is_mixtral else ("gate_proj", "up_proj", "down_proj")
    out: dict[str, tuple] = {}
    for name, shape in names.items():
        if is_mixtral:
            name = name.replace(".mlp.", ".block_sparse_moe.")
        stem, _, last = name.rpartition(".")
        for expert in range(shape[0] if stem.endswith(".experts") else 0):
            if last == "gate_up_proj":
                out[f"{stem}.{expert}.{gate}.weight"] = (shape[1] // 2, shape[2])
                out[f"{stem}.{expert}.{up}.weight"] = (shape[1] // 2, shape[2])
            else:
                out[f"{stem}.{expert}.{down}.weight"] = shape[1:]
        if not stem.endswith(".experts"):
            out[name] = shape
    return out


def model_tensors(
    config: transformers.PretrainedConfig, seed: int, dtype: str, mixed: bool, attention_gain: float
) -> dict[str, torch.Tensor]:
    """Random tensors of every name that the model has. `mixed`: one-dimensional ones stay float32."""
    with torch.device("meta"):
        names = {n: tuple(t.shape) for n, t in AutoModelForCausalLM.from_config(config).state_dict().items()}
    names = published_names(config, names)
    rng = np.random.default_rng(seed)
    out: dict[str, torch.Tensor] = {}
    for name in sorted(names):
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        tensor = torch.from_numpy(random_tensor(rng, name, names[name], attention_gain))
        keep = mixed and tensor.dim() == 1
        out[name] = tensor if keep else tensor.to(DTYPES[dtype])
    return out


def save_weights(folder: Path, tensors: dict[str, torch.Tensor], shards: int) -> None:
    """model.safetensors, or `shards` files and their index. Neighbours in name order may lie in different files."""
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return
    weight_map: dict[str, str] = {}
    for part in range(shards):
        file = f"model-{part + 1:05d}-of-{shards:05d}.safetensors"
        names = (
            sorted(tensors)[part::shards]
            if shards > 3
            else np.array_split(sorted(tensors), shards)[part].tolist()
        )
        save_file({n: tensors[n] for n in names}, folder / file, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(names, file))
    total = sum(t.numel() * t.element_size() for t in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n")


def native_config(config: dict) -> dict:
    """What `save_pretrained` of this transformers version writes for a config."""
    model_type = config["model_type"]
    made = AutoConfig.for_model(**config)
    data = json.loads(made.to_json_string(use_diff=False))
    data.pop("transformers_version", None)
    kept = {k: v for k, v in data.items() if not k.startswith("_")}
    return {**kept, "model_type": model_type}


def write_folder(
    folder: Path,
    config: dict,
    seed: int,
    dtype: str,
    shards: int = 1,
    mixed: bool = False,
    extra: str = "",
    attention_gain: float = 1.5,
) -> None:
    """Writes config.json and the weights. `extra`: "inv_freq" (a buffer that old files store), "lm_head" (a stored
    copy of the tied embedding), "bare" (names without the decoder's prefix, GPT-2 with its masks) or "mtp" (a layer
    more than the model has, as DeepSeek-V3's folders store it)."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    parsed = read_config(folder)
    tensors = model_tensors(parsed, seed, dtype, mixed, attention_gain)
    if extra == "lm_head":
        embedding = next(name for name in tensors if name.endswith("embed_tokens.weight"))
        tensors["lm_head.weight"] = tensors[embedding].clone()
    if extra == "inv_freq":
        half = parsed.hidden_size // parsed.num_attention_heads // 2
        for layer in range(parsed.num_hidden_layers):
            tensors[f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"] = torch.full((half,), 7.0)
    if extra == "bare":
        tensors = {name.removeprefix("transformer.").removeprefix("model."): t for name, t in tensors.items()}
    if parsed.model_type == "gpt2" and extra == "bare":
        length = parsed.n_positions
        for layer in range(parsed.n_layer):
            tensors[f"h.{layer}.attn.bias"] = torch.ones(1, 1, length, length).tril().bool()
    if extra == "mtp":
        layer = parsed.num_hidden_layers
        tensors[f"model.layers.{layer}.eh_proj.weight"] = torch.full((3, 5), 7.0)
        tensors[f"model.layers.{layer}.self_attn.o_proj.weight"] = torch.full((2, 2), 7.0)
    save_weights(folder, tensors, shards)


def load_reference(folder: Path) -> torch.nn.Module:
    """The model in float32 with plain attention; fails if a weight is missing."""
    model, info = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=torch.float32,
        attn_implementation="eager",
        experts_implementation="eager",
        output_loading_info=True,
    )
    missing = set(info["missing_keys"]) - {"lm_head.weight"}
    if missing or info["mismatched_keys"]:
        raise RuntimeError(f"{folder}: missing {missing}, mismatched {info['mismatched_keys']}")
    rotate_part(model)
    return model.eval()


def rotate_part(model: torch.nn.Module) -> None:
    """Makes a Llama-like model of transformers, which rotates whole heads, rotate their first elements only."""
    config = model.config
    share = (getattr(config, "rope_parameters", None) or {}).get("partial_rotary_factor", 1.0)
    if share == 1.0 or config.model_type not in ("llama", "mistral", "qwen2", "qwen3"):
        return
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    rotary = int(head_dim * share)
    powers = torch.arange(0, rotary, 2, dtype=torch.float32) / rotary
    model.model.rotary_emb.inv_freq = 1.0 / config.rope_parameters["rope_theta"] ** powers

    def rotate(q, k, cos, sin, unsqueeze_dim=1):
        cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)

        def turn(x):
            first, second, rest = x[..., : rotary // 2], x[..., rotary // 2 : rotary], x[..., rotary:]
            turned = torch.cat((-second, first), dim=-1)
            return torch.cat((x[..., :rotary] * cos + turned * sin, rest), dim=-1)

        return turn(q), turn(k)

    for layer in model.model.layers:
        forward = layer.self_attn.forward.__func__
        names = {**forward.__globals__, "apply_rotary_pos_emb": rotate}
        own = types.FunctionType(forward.__code__, names, closure=forward.__closure__)
        own.__kwdefaults__, own.__defaults__ = forward.__kwdefaults__, forward.__defaults__
        layer.self_attn.forward = types.MethodType(own, layer.self_attn)


@torch.no_grad()
def logits_of(model: torch.nn.Module, ids: list[int]) -> np.ndarray:
    """Logits, (tokens, vocabulary), float32."""
    return model(torch.tensor([ids]), use_cache=False).logits[0].to(torch.float32).numpy()


class RouterCheck:
    """Watches a model's routers: whether each would choose the same experts had its input some noise, as shares of the
    input's own size. Rounding that changes a choice changes the logits by any amount, so that such ids compare nothing."""

    TRIALS = 4

    def __init__(self, model: torch.nn.Module, seed: int) -> None:
        self.noise = 0.0
        self.stable = True
        self.generator = torch.Generator().manual_seed(seed)
        for name, module in model.named_modules():
            if name.endswith("mlp.gate"):
                module.register_forward_hook(self.look)

    def look(self, module: torch.nn.Module, args: tuple, output: tuple) -> None:
        """A forward hook of a router; calls the router's own forward again."""
        hidden, chosen = args[0], output[2].sort(-1).values
        size = hidden.pow(2).mean(-1, keepdim=True).sqrt() * self.noise
        for _ in range(self.TRIALS if self.noise else 0):
            noise = torch.randn(hidden.shape, generator=self.generator)
            again = module.forward(hidden + noise * size)[2].sort(-1).values
            self.stable = self.stable and torch.equal(again, chosen)


@torch.no_grad()
def greedy(
    model: torch.nn.Module, ids: list[int], count: int, cached: bool = False
) -> tuple[list[int], float]:
    """`count` greedy ids, each from a whole pass without a cache, and the smallest margin between the best two
    logits in shares of the largest: where it is near zero, equal ids cannot be expected. `cached`: with a cache, where
    that makes a difference, as frequencies then change under way."""
    sequence, margin, cache = list(ids), float("inf"), None
    for _ in range(count):
        if cached:
            out = model(torch.tensor([sequence if cache is None else sequence[-1:]]), past_key_values=cache)
            last, cache = out.logits[0, -1].to(torch.float32).numpy(), out.past_key_values
        else:
            last = logits_of(model, sequence)[-1]
        best, second = np.sort(last)[-1:-3:-1]
        margin = min(margin, float((best - second) / np.abs(last).max()))
        sequence.append(int(last.argmax()))
    return sequence[len(ids) :], margin


def relative_difference(got: np.ndarray, wanted: np.ndarray) -> float:
    """Largest absolute difference over the largest absolute wanted value; infinite where a value is not finite."""
    if got.shape != wanted.shape or not np.isfinite(got).all():
        return float("inf")
    return float(np.abs(got.astype(np.float64) - wanted).max() / np.abs(wanted).max())
