# SPDX-License-Identifier: Apache-2.0
"""Sets attention layers of a half-trained model to copy names, or things, as a start for the rest of the training.

    python copy_heads.py WORK names      # changes WORK/state.pt, between two runs of train.py

A model this small, on so little text, does not find out by itself within an hour that a tale keeps its names and
things: it writes a fresh one each time. So the layers of LAYERS get the weights that least squares says copying
needs, fitted on activations of held-out tales; training goes on from there and keeps what helps. Per layer:

    value, output   from the normed stream at a name to the (centred) embedding of that name, rank 64, shared out
                    evenly over the two key/value groups by singular value
    key, query      one dimension of each head: "this is a name", "a name that was there before comes next". It is the
                    dimension that the rotary embedding turns slowest, so distance hardly matters. The others are kept
                    at a third of their size, for the training to use.
"""

import argparse
import os
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM

import words
from corpus import make_tale
from train import HELD_OUT_SEED, make_config

# For each kind: the layers, and the length of what they write, relative to the residual stream there. The layers are
# those that the half-trained model could best do without (7 apart, from which the output is nearest).
LAYERS = {"names": {5: 0.5, 7: 1.0}, "things": {6: 0.7}}
SHARPNESS = 5.0
RIDGE = 30.0
FIRST_TALE, TALES = 1000, 60  # beyond those that train.py measures the held-out loss on


def first_ids(tokenizer: Tokenizer, vocab_size: int, nouns: list[str]) -> torch.Tensor:
    """True for each id that one of the nouns begins with, (vocab_size,)."""
    flags = torch.zeros(vocab_size, dtype=torch.bool)
    for noun in nouns:
        for text in (noun, " " + noun):
            flags[tokenizer.encode(text, add_special_tokens=False).ids[0]] = True
    return flags


@torch.no_grad()
def activations(model: LlamaForCausalLM, layer: int, tales: list[torch.Tensor]) -> tuple[torch.Tensor, float]:
    """The normed stream into the attention of a layer, (tokens of all tales, hidden), and the stream's mean length."""
    normed, lengths = [], []

    def keep(_module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        normed.append(output[0])
        lengths.append(inputs[0][0].norm(dim=-1).mean().item())

    hook = model.model.layers[layer].input_layernorm.register_forward_hook(keep)
    for ids in tales:
        model(ids[None])
    hook.remove()
    return torch.cat(normed), sum(lengths) / len(lengths)


def ridge(x: torch.Tensor, y: torch.Tensor, weight: torch.Tensor | None = None) -> torch.Tensor:
    """The w, (inputs, outputs), for which x w comes closest to y, (rows, outputs)."""
    xw = x if weight is None else x * weight[:, None]
    return torch.linalg.solve(xw.T @ x + RIDGE * torch.eye(x.shape[1]), xw.T @ y)


def detector(x: torch.Tensor, flag: torch.Tensor) -> torch.Tensor:
    """The direction, (hidden,), along which x is near 1 where the flag is set and near -1 elsewhere."""
    weight = torch.where(flag, 1 / flag.float().mean(), torch.tensor(1.0))
    return ridge(x, torch.where(flag, 1.0, -1.0)[:, None], weight)[:, 0]


@torch.no_grad()
def install(model: LlamaForCausalLM, layer: int, strength: float, names: torch.Tensor, tales: list[torch.Tensor]) -> None:
    x, length = activations(model, layer, tales)
    ids = torch.cat(tales)
    is_name = names[ids]
    returns = torch.cat([torch.cat([names[t[1:]] & (t[1:, None] == t[None, :]).tril().any(-1), torch.tensor([False])])
                         for t in tales])  # the next id is a name that this tale has had before
    embedding = model.model.embed_tokens.weight
    target = embedding[ids[is_name]] - embedding[names].mean(0)
    target = target / target.norm(dim=-1, keepdim=True) * strength * length
    u, s, vt = torch.linalg.svd(ridge(x[is_name], target).T)
    key, query = detector(x, is_name), detector(x, returns)
    config, attention = model.config, model.model.layers[layer].self_attn
    dim, groups = config.head_dim, config.num_key_value_heads
    shared = config.num_attention_heads // groups  # query heads per key/value head
    slowest = dim // 2 - 1
    for g in range(groups):
        part = torch.arange(g, groups * dim, groups)
        attention.v_proj.weight[g * dim:(g + 1) * dim] = s[part].sqrt()[:, None] * vt[part]
        attention.k_proj.weight[g * dim:(g + 1) * dim] *= 0.3
        attention.k_proj.weight[g * dim + slowest] = SHARPNESS * key
        for h in range(shared * g, shared * (g + 1)):
            attention.o_proj.weight[:, h * dim:(h + 1) * dim] = u[:, part] * s[part].sqrt() / shared
            attention.q_proj.weight[h * dim:(h + 1) * dim] *= 0.3
            attention.q_proj.weight[h * dim + slowest] = SHARPNESS * (0.7 + 0.2 * (h % shared)) * query


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("kind", choices=LAYERS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    os.nice(10)
    tokenizer = Tokenizer.from_file(str(args.work / "tokenizer.json"))
    model = LlamaForCausalLM(make_config(tokenizer))
    state = torch.load(args.work / "state.pt", weights_only=True)
    model.load_state_dict(state["model"])
    nouns = words.small_cast() if args.kind == "names" else words.things()
    flags = first_ids(tokenizer, model.config.vocab_size, nouns)
    tales = [torch.tensor(tokenizer.encode(make_tale(HELD_OUT_SEED, FIRST_TALE + i)).ids) for i in range(TALES)]
    for layer, strength in LAYERS[args.kind].items():
        install(model, layer, strength, flags, tales)
    state["model"] = model.state_dict()
    torch.save(state, args.work / "state.tmp")
    (args.work / "state.tmp").rename(args.work / "state.pt")


if __name__ == "__main__":
    main()
