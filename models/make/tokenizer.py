# SPDX-License-Identifier: Apache-2.0
"""Trains the byte-level BPE tokenizer of penstock-tales, in the layout of Llama 3's tokenizer.json.

The training text is tales. Any byte has a token, so text that no tale contains falls into smaller pieces, and
nothing is ever unknown.
"""

import argparse
import json
from pathlib import Path
from typing import Iterator

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from corpus import make_tale

BOS, EOS = "<|begin_of_text|>", "<|end_of_text|>"
# The pattern that Llama 3 splits text with before merging; a merge never crosses one of its pieces.
SPLIT = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
         r"|\s*[\r\n]+|\s+(?!\S)|\s+")


def texts(seed: int, tales: int) -> Iterator[str]:
    for index in range(tales):
        yield make_tale(seed, index, wide=True)


def train(seed: int, tales: int, vocab_size: int) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(SPLIT), behavior="isolated", invert=False),
        pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel(add_prefix_space=True, trim_offsets=True, use_regex=True)
    trainer = trainers.BpeTrainer(vocab_size=vocab_size - 2, min_frequency=2, show_progress=False,
                                  initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()))
    tokenizer.train_from_iterator(texts(seed, tales), trainer)
    # Special tokens come after the merged ones, as in Llama 3.
    tokenizer.add_special_tokens([AddedToken(BOS, special=True, normalized=False), AddedToken(EOS, special=True, normalized=False)])
    bos = tokenizer.token_to_id(BOS)
    tokenizer.post_processor = processors.Sequence([
        processors.ByteLevel(trim_offsets=False),
        processors.TemplateProcessing(single=f"{BOS} $A", pair=f"{BOS} $A {BOS}:1 $B:1", special_tokens=[(BOS, bos)])])
    return tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--tales", type=int, default=20000)
    parser.add_argument("--vocab-size", type=int, default=4096, help="an upper bound: merges may run out before")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    tokenizer = train(args.seed, args.tales, args.vocab_size)
    tokenizer.save(str(args.folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": BOS, "eos_token": EOS, "clean_up_tokenization_spaces": False,
              "model_max_length": 512, "model_input_names": ["input_ids", "attention_mask"],
              "added_tokens_decoder": {str(tokenizer.token_to_id(t)): {
                  "content": t, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
                  for t in (BOS, EOS)}}
    (args.folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    print(f"{tokenizer.get_vocab_size()} tokens")


if __name__ == "__main__":
    main()
