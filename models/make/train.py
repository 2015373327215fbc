# SPDX-License-Identifier: Apache-2.0
"""Trains penstock-tales: a small Llama on tales that are made while it learns (corpus.py).

    python tokenizer.py WORK                                # once
    python train.py WORK --steps 2000 --export ../penstock-tales      # README.md has the whole recipe

Learning rate: a linear warm-up, a plateau, and a linear fall to zero over the last 40 % of the steps, so that a run
whose length was misjudged can be taken up again with other --steps. The state is saved regularly in WORK/state.pt;
a run that finds it there goes on from it. One thread unless told otherwise.
"""

import argparse
import json
import math
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

import words
from corpus import make_drill, make_tale

TRAIN_SEED, HELD_OUT_SEED = 1, 2
CONTEXT = 384


def make_config(tokenizer: Tokenizer) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=-(-tokenizer.get_vocab_size() // 64) * 64, hidden_size=256, intermediate_size=688, num_hidden_layers=8,
        num_attention_heads=8, num_key_value_heads=2, head_dim=32, max_position_embeddings=512, rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0}, tie_word_embeddings=True,
        bos_token_id=tokenizer.token_to_id("<|begin_of_text|>"), eos_token_id=tokenizer.token_to_id("<|end_of_text|>"))


def returning_tokens(tokenizer: Tokenizer, vocab_size: int) -> torch.Tensor:
    """True for each id that begins with a capital letter, as names do, or begins a thing, (vocab_size,)."""
    flags = torch.zeros(vocab_size, dtype=torch.bool)
    for i in range(tokenizer.get_vocab_size()):
        text = tokenizer.decode([i]).strip()
        flags[i] = len(text) > 1 and text[0].isupper()
    for thing in words.things():
        flags[tokenizer.encode(" " + thing, add_special_tokens=False).ids[0]] = True
    return flags


def batches(tokenizer: Tokenizer, seed: int, first: int, rows: int, wide: range, drills: range) -> Iterator[tuple[torch.Tensor, int]]:
    """Packed rows of CONTEXT + 1 ids, (rows, CONTEXT + 1), and the index of the next unused text.

    Two of three texts whose index lies in `drills` are drills, all others tales; those in `wide` have the wide cast.
    """
    eos = tokenizer.token_to_id("<|end_of_text|>")
    ids: list[int] = []
    need = rows * (CONTEXT + 1)
    while True:
        while len(ids) < need:
            texts = [(make_drill if i in drills and i % 3 else make_tale)(seed, i, i in wide) for i in range(first, first + rows)]
            for encoding in tokenizer.encode_batch(texts):
                ids += [*encoding.ids, eos]
            first += rows
        yield torch.tensor(ids[:need]).view(rows, CONTEXT + 1), first
        ids = ids[need:]


def learning_rate(step: int, steps: int, peak: float) -> float:
    return peak * min(1.0, (step + 1) / 100, (steps - step) / (0.4 * steps))


@torch.no_grad()
def held_out_loss(model: LlamaForCausalLM, tokenizer: Tokenizer, tales: int, batch: int = 16) -> tuple[float, int]:
    """Mean negative log-likelihood per token, in nats, of whole held-out tales, each on its own; and the tokens counted."""
    eos = tokenizer.token_to_id("<|end_of_text|>")
    total, count = 0.0, 0
    for start in range(0, tales, batch):
        rows = [tokenizer.encode(make_tale(HELD_OUT_SEED, i)).ids + [eos] for i in range(start, min(start + batch, tales))]
        width = max(map(len, rows))
        ids = torch.tensor([r + [eos] * (width - len(r)) for r in rows])
        targets = torch.tensor([r[1:] + [-100] * (width - len(r)) for r in rows])
        logits = model(ids[:, :-1]).logits.float()
        total += torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum").item()
        count += sum(len(r) - 1 for r in rows)
    return total / count, count


def export(model: LlamaForCausalLM, work: Path, folder: Path) -> None:
    """Writes the Hugging Face folder beside its place and moves it there by renaming; a README.md there is kept."""
    fresh, old = folder.with_name(folder.name + ".new"), folder.with_name(folder.name + ".old")
    for leftover in (fresh, old):
        shutil.rmtree(leftover, ignore_errors=True)
    copy = LlamaForCausalLM(model.config)
    copy.load_state_dict(model.state_dict())
    copy.generation_config = GenerationConfig(
        bos_token_id=model.config.bos_token_id, eos_token_id=model.config.eos_token_id, do_sample=True, temperature=0.7, top_p=0.95)
    copy.to(torch.bfloat16).save_pretrained(fresh, max_shard_size="5MB")
    for name in fresh.iterdir():  # safetensors are written readable by their owner alone
        name.chmod(0o644)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(work / name, fresh / name)
    if (folder / "README.md").exists():
        shutil.copy(folder / "README.md", fresh / "README.md")
    if folder.exists():
        folder.rename(old)
    fresh.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, help="folder with tokenizer.json; state and log are written there")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--stop", type=int, help="stop at this step, to be taken up again later")
    parser.add_argument("--rows", type=int, default=8, help="rows of 384 tokens per step")
    parser.add_argument("--peak", type=float, default=2e-3, help="highest learning rate")
    parser.add_argument("--wide", type=int, nargs=2, default=[0, 0], metavar=("FROM", "TO"),
                        help="the wide cast of names in the texts of these indices")
    parser.add_argument("--drills", type=int, nargs=2, default=[0, 0], metavar=("FROM", "TO"),
                        help="practice texts for names among the texts of these indices")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--compile", action="store_true", help="needs a C++ compiler; about a fifth faster")
    parser.add_argument("--save-every", type=int, default=200)
    parser.add_argument("--export", type=Path, help="the Hugging Face folder to write at the end")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    os.nice(10)
    torch.manual_seed(1)
    tokenizer = Tokenizer.from_file(str(args.work / "tokenizer.json"))
    model = LlamaForCausalLM(make_config(tokenizer))
    # Muon for the matrices inside the layers, AdamW for embedding and norms.
    matrices = [p for n, p in model.named_parameters() if p.dim() == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.dim() == 1 or "embed" in n]
    optimizers = [torch.optim.Muon(matrices, lr=args.peak, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
                  torch.optim.AdamW(others, lr=args.peak, betas=(0.9, 0.95), weight_decay=0.0, fused=True)]
    returning = returning_tokens(tokenizer, model.config.vocab_size)
    state_path, step, tale = args.work / "state.pt", 0, 0
    if state_path.exists():
        state = torch.load(state_path, weights_only=True)
        model.load_state_dict(state["model"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        step, tale = state["step"], state["tale"]
    print(f"{sum(p.numel() for p in model.parameters())} parameters, from step {step}", flush=True)

    def loss_of(ids: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            hidden = model.model(ids[:, :-1], use_cache=False).last_hidden_state
            logits = model.lm_head(hidden)
        each = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="none")
        # A name or thing that comes again counts five times as much: what the tale is about is the hardest to keep to.
        again = (ids[:, 1:, None] == ids[:, None, :]).tril().any(-1)  # (rows, CONTEXT): the target occurred before
        weight = 1.0 + 4.0 * (returning[ids[:, 1:]] & again).flatten().float()
        return (each * weight).sum() / weight.sum()

    forward = torch.compile(loss_of) if args.compile else loss_of
    data = batches(tokenizer, TRAIN_SEED, tale, args.rows, range(*args.wide), range(*args.drills))
    begin, mean = time.monotonic(), math.nan
    with open(args.work / "log.jsonl", "a", encoding="utf-8") as log:
        stop = args.steps if args.stop is None else min(args.stop, args.steps)
        while step < stop:
            ids, tale = next(data)
            for group in (g for o in optimizers for g in o.param_groups):
                group["lr"] = learning_rate(step, args.steps, args.peak)
            loss = forward(ids)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            step += 1
            mean = loss.item() if math.isnan(mean) else 0.95 * mean + 0.05 * loss.item()
            if step % 25 == 0:
                log.write(json.dumps({"step": step, "loss": round(mean, 4), "seconds": round(time.monotonic() - begin, 1)}) + "\n")
                log.flush()
            if step % args.save_every == 0 or step == stop:
                state = {"model": model.state_dict(), "optimizers": [o.state_dict() for o in optimizers], "step": step, "tale": tale}
                torch.save(state, state_path.with_suffix(".tmp"))
                state_path.with_suffix(".tmp").rename(state_path)
    if args.export and step == args.steps:
        export(model, args.work, args.export)
        exported = LlamaForCausalLM.from_pretrained(args.export, dtype=torch.float32)
        loss, count = held_out_loss(exported, tokenizer, 400)
        print(f"held out: {loss:.4f} nats per token, perplexity {math.exp(loss):.3f}, {count} tokens of 400 tales", flush=True)


if __name__ == "__main__":
    main()
