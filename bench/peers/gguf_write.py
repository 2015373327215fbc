# SPDX-License-Identifier: Apache-2.0
"""A GGUF of a Llama-like Hugging Face folder (llama, mistral, qwen2, qwen3), weights as they are and no vocabulary.

llama.cpp rotates neighbours where transformers rotates halves, so rows of q and k of Llama and Mistral are interleaved; the
other families are rotated as here. One tensor is in memory at a time.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path

import common

ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
NAMES = {
    "input_layernorm.weight": "attn_norm.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
OUTSIDE = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight",
           "lm_head.weight": "output.weight"}


def gguf_name(name: str) -> str:
    if name in OUTSIDE:
        return OUTSIDE[name]
    _, _, layer, rest = name.split(".", 3)
    for old, new in NAMES.items():
        if rest.startswith(old):
            return f"blk.{layer}.{new}{rest[len(old):]}"
    raise SystemExit(f"no name in GGUF for {name}")


def tensors(folder: Path):
    """Name, dtype, shape and a function that reads the bytes."""
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            length = struct.unpack("<Q", file.read(8))[0]
            header = json.loads(file.read(length))
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            begin, end = entry["data_offsets"]

            def read(path=path, begin=begin, end=end, length=length):
                with path.open("rb") as file:
                    file.seek(8 + length + begin)
                    return file.read(end - begin)

            yield name, entry["dtype"], entry["shape"], read


def write(folder: Path, out: Path) -> None:
    """The GGUF file; needs the packages gguf and numpy."""
    try:
        import gguf
        import numpy as np
    except ImportError as error:
        common.missing(f"llama.cpp reads GGUF, and to write that the packages gguf and numpy are needed: {error}")
    config = json.loads((folder / "config.json").read_text())
    family = config["model_type"]
    if family not in ARCHITECTURES:
        common.missing(f"no GGUF of the family {family} can be written here; give one with --gguf")
    heads, kv_heads = config["num_attention_heads"], config.get("num_key_value_heads", config["num_attention_heads"])
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    writer = gguf.GGUFWriter(out, ARCHITECTURES[family], use_temp_file=False)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(float(config.get("rope_theta", 10000.0)))
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("no_vocab")
    kinds = {"BF16": gguf.GGMLQuantizationType.BF16, "F16": gguf.GGMLQuantizationType.F16,
             "F32": gguf.GGMLQuantizationType.F32}
    found = list(tensors(folder))

    def as_stored(name, dtype, shape, read):
        """Vectors in f32, as llama.cpp wants them; the rows of q and k in its order."""
        if len(shape) == 1:
            data = read()
            if dtype == "BF16":
                wide = np.frombuffer(data, np.uint16).astype(np.uint32) << 16
                values = wide.view(np.float32)
            else:
                values = np.frombuffer(data, {"F16": np.float16, "F32": np.float32}[dtype]).astype(np.float32)
            return interleave(name, values.reshape(shape)), gguf.GGMLQuantizationType.F32
        raw = np.frombuffer(read(), {"BF16": np.uint16, "F16": np.float16, "F32": np.float32}[dtype]).reshape(shape)
        return interleave(name, raw), kinds[dtype]

    def interleave(name, values):
        count = heads if ".q_proj." in name else kv_heads if ".k_proj." in name else 0
        if count == 0 or ARCHITECTURES[family] != "llama":
            return values
        split = values.reshape(count, 2, head_dim // 2, *values.shape[1:])
        return np.ascontiguousarray(split.swapaxes(1, 2).reshape(values.shape))

    for name, dtype, shape, _ in found:
        kind = gguf.GGMLQuantizationType.F32 if len(shape) == 1 else kinds[dtype]
        size = 4 if kind == gguf.GGMLQuantizationType.F32 else 2
        count = 1
        for n in shape:
            count *= n
        # Of bytes for BF16, whose shape the writer reckons back; of elements for the others.
        if kind == gguf.GGMLQuantizationType.BF16:
            writer.add_tensor_info(gguf_name(name), [*shape[:-1], shape[-1] * 2], np.dtype(np.uint8), count * size, kind)
        else:
            writer.add_tensor_info(gguf_name(name), shape, np.dtype(np.float32 if size == 4 else np.float16), count * size,
                                   kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, dtype, shape, read in found:
        writer.write_tensor_data(as_stored(name, dtype, shape, read)[0])
    writer.close()
