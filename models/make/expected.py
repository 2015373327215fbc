# SPDX-License-Identifier: Apache-2.0
"""Stores what `transformers` makes of a few prompts, greedily, for the tests to compare with.

    python expected.py ../penstock-tales ../../tests/reference/tales_expected.json

The stored bf16 weights are raised to float32 and computed in float32. A prompt whose best and second best token come
closer than MARGIN in any step is refused: rounding alone could turn it, and the comparison would prove nothing.
"""

import argparse
import json
from pathlib import Path

import torch
from transformers import AutoTokenizer, LlamaForCausalLM

PROMPTS = ["Once upon a time, in the valley of Aubrel, there lived", "The wind cried in the chimneys, and in the village of",
           "“Good morning, Zoé,” said", "One morning the river was so high that"]
NEW_TOKENS = 48
MARGIN = 2e-3  # in logits; float32 implementations differ by about 1e-5 of the largest logit, here about 30


@torch.no_grad()
def greedy(model: LlamaForCausalLM, ids: list[int], eos: int) -> tuple[list[int], float]:
    """Up to NEW_TOKENS best next tokens, the end token (if it comes) included, and the smallest lead of any."""
    made: list[int] = []
    margin = float("inf")
    while len(made) < NEW_TOKENS and eos not in made:
        best = model(torch.tensor([ids + made])).logits[0, -1].topk(2)
        made.append(int(best.indices[0]))
        margin = min(margin, float(best.values[0] - best.values[1]))
    return made, margin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--prompts", nargs="*", default=PROMPTS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = LlamaForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    entries = []
    for prompt in args.prompts:
        ids = tokenizer(prompt)["input_ids"]
        made, margin = greedy(model, ids, model.config.eos_token_id)
        print(f"margin {margin:.4f}: {prompt}{tokenizer.decode(made)}")
        if margin < MARGIN:
            raise SystemExit(f"too close to call: {prompt}")
        entries.append({"prompt": prompt, "token_ids": ids, "greedy_token_ids": made, "greedy_text": tokenizer.decode(made)})
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps({"prompts": entries}, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
