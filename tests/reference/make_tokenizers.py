# SPDX-License-Identifier: Apache-2.0
"""Trains small tokenizers of every supported family and stores what the `tokenizers` library makes of them.

    make_tokenizers.py            writes tokenizers/<name>/{tokenizer.json, expected.json} beside this script
    make_tokenizers.py --check    builds them again elsewhere and fails unless every stored file is equal

`gpt2_files` and `opt_files` have vocab.json, merges.txt and tokenizer_config.json instead of tokenizer.json.

expected.json holds, one case per line:
    encode  [{text, ids}]                 with the post-processor's special tokens (BOS and the like)
    plain   [{text, ids}]                 without them; added tokens inside the text are still recognised
    decode  [{ids, text, text_skip}]      ids of `encode` and random ids (so also broken UTF-8), with special
                                          tokens kept and dropped
"""

from __future__ import annotations

import argparse
import filecmp
import json
import os
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["RAYON_NUM_THREADS"] = "1"

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

sys.path.insert(0, str(Path(__file__).resolve().parent))
from text_samples import EDGE_STRINGS, corpus_lines, random_strings, special_strings

HERE = Path(__file__).resolve().parent / "tokenizers"
SEED = 20240131

LLAMA3_REGEX = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2_REGEX = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
TEKKEN_REGEX = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# As published: the inner brackets are a set within the set, and "(", "|" and ")" are members.
BLOOM_REGEX = r" ?[^(\s|[.,!?…。，、।۔،])]+"


@dataclass
class Family:
    """One tokenizer to build: how, and how its file is written."""

    build: Callable[[], Tokenizer]
    pair_merges: bool = True  # merges as [["a", "b"]]; else as ["a b"], the older layout
    files: bool = False  # vocab.json + merges.txt instead of tokenizer.json
    edit: Callable[[dict], None] | None = (
        None  # last changes to the JSON, for spellings the library no longer writes
    )
    config: dict = field(default_factory=dict)


def byte_level_model(vocab_size: int, pre: pre_tokenizers.PreTokenizer, normalizer=None) -> dict:
    """Trains byte-level BPE; returns its model as JSON: {"vocab": ..., "merges": [[a, b], ...]}."""
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre
    if normalizer is not None:
        tok.normalizer = normalizer
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tok.train_from_iterator(corpus_lines(), trainer)
    return json.loads(tok.to_str())["model"]


def sentence_model(merges: int) -> dict:
    """Trains BPE on words that begin with U+2581, with <unk>, <s>, </s> and 256 byte tokens before the rest."""
    tok = Tokenizer(models.BPE(unk_token="<unk>"))
    tok.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always", split=True)
    text = [line.strip() for line in corpus_lines()]
    # The trainer cuts its alphabet in no fixed order among equal counts, so the cut is made here.
    counts = Counter("▁".join(text).replace(" ", "▁").replace("\t", ""))
    alphabet = sorted(counts, key=lambda char: (-counts[char], char))[:230]
    trainer = trainers.BpeTrainer(
        vocab_size=230 + merges, initial_alphabet=alphabet, limit_alphabet=230, show_progress=False
    )
    tok.train_from_iterator(text, trainer)
    model = json.loads(tok.to_str())["model"]
    tokens = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)]
    tokens += sorted(model["vocab"], key=model["vocab"].get)
    # Runs of spaces and a merge that reaches across words, as sentencepiece files have them.
    extra = [["▁", "▁"], ["▁▁", "▁▁"], ["▁▁▁▁", "▁▁▁▁"]]
    merged = model["merges"][:40] + extra + model["merges"][40:] + [["e", "▁"], [".", "▁The"]]
    tokens += [a + b for a, b in merged if a + b not in tokens]
    merged = [m for m in merged if m[0] in tokens and m[1] in tokens]
    return {"vocab": {t: i for i, t in enumerate(dict.fromkeys(tokens))}, "merges": merged}


def bpe(model: dict, **kwargs) -> Tokenizer:
    """A tokenizer around a trained model."""
    return Tokenizer(models.BPE(vocab=model["vocab"], merges=[tuple(m) for m in model["merges"]], **kwargs))


def split_bytes(pattern: str) -> pre_tokenizers.PreTokenizer:
    """The Llama 3 and Qwen form: a pattern isolates words, then bytes become printable characters."""
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=False),
        ]
    )


def add_whole_words(model: dict, words: list[str]) -> None:
    """Vocabulary entries that no merge reaches: found only with ignore_merges."""
    for word in words:
        if word not in model["vocab"]:
            model["vocab"][word] = len(model["vocab"])


def template(tok: Tokenizer, single: str, pair: str, *tokens: str) -> processors.TemplateProcessing:
    """A template post-processor for tokens that the tokenizer already has."""
    return processors.TemplateProcessing(
        single=single, pair=pair, special_tokens=[(token, tok.token_to_id(token)) for token in tokens]
    )


def special(*tokens: str) -> list[AddedToken]:
    """Special tokens as model files declare them: exact, not normalized."""
    return [AddedToken(token, normalized=False, special=True) for token in tokens]


def llama3(ignore_merges: bool = True) -> Tokenizer:
    model = byte_level_model(820, split_bytes(LLAMA3_REGEX))
    add_whole_words(
        model,
        ["Ġpenstock", "Ġreservoir", "antidisestablishmentarianism", "123", "Ġagain", "ĊĊĊĊ", "ĠÐ²Ð¾Ð´Ð°"],
    )
    tok = bpe(model, ignore_merges=ignore_merges)
    tok.pre_tokenizer = split_bytes(LLAMA3_REGEX)
    tok.decoder = decoders.ByteLevel()
    names = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    tok.add_special_tokens(special(*names))
    begin = template(tok, f"{names[0]} $A", f"{names[0]} $A {names[0]}:1 $B:1", names[0])
    tok.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), begin])
    return tok


def qwen2() -> Tokenizer:
    tok = bpe(byte_level_model(780, split_bytes(QWEN2_REGEX), normalizers.NFC()))
    tok.normalizer = normalizers.NFC()
    tok.pre_tokenizer = split_bytes(QWEN2_REGEX)
    tok.decoder = decoders.ByteLevel()
    tok.post_processor = processors.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    tok.add_special_tokens(special("<|endoftext|>", "<|im_start|>", "<|im_end|>"))
    tok.add_tokens([AddedToken("<tool_call>", normalized=False), AddedToken("</think>", normalized=False)])
    return tok


def tekken() -> Tokenizer:
    tok = bpe(byte_level_model(700, split_bytes(TEKKEN_REGEX)), ignore_merges=True)
    tok.pre_tokenizer = split_bytes(TEKKEN_REGEX)
    tok.decoder = decoders.ByteLevel()
    tok.add_special_tokens(special("<unk>", "<s>", "</s>", "[INST]", "[/INST]"))
    tok.post_processor = template(tok, "<s> $A </s>", "<s> $A <s> $B:1", "<s>", "</s>")
    return tok


def gpt2(prefix: bool) -> Tokenizer:
    pre = pre_tokenizers.ByteLevel(add_prefix_space=prefix, trim_offsets=True, use_regex=True)
    tok = bpe(byte_level_model(720, pre), continuing_subword_prefix="", end_of_word_suffix="")
    tok.pre_tokenizer = pre
    tok.decoder = decoders.ByteLevel()
    tok.post_processor = processors.ByteLevel(trim_offsets=False)
    tok.add_special_tokens([AddedToken("<|endoftext|>", normalized=True, special=True)])
    return tok


def bloom() -> Tokenizer:
    tok = bpe(byte_level_model(760, split_bytes(BLOOM_REGEX)))
    tok.pre_tokenizer = split_bytes(BLOOM_REGEX)
    tok.decoder = decoders.ByteLevel(add_prefix_space=True, trim_offsets=True, use_regex=False)
    tok.post_processor = processors.ByteLevel(add_prefix_space=True, trim_offsets=False, use_regex=False)
    tok.add_special_tokens(special("<unk>", "<s>", "</s>", "<pad>"))
    return tok


def opt() -> Tokenizer:
    """GPT-2's, with "</s>" before every text; the special tokens are part of the vocabulary."""
    pre = pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=True)
    model = byte_level_model(700, pre)
    names = ["<s>", "<pad>", "</s>", "<unk>"]
    vocab = sorted(model["vocab"], key=model["vocab"].get)
    model["vocab"] = {token: number for number, token in enumerate(names + vocab)}
    tok = bpe(model)
    tok.pre_tokenizer = pre
    tok.decoder = decoders.ByteLevel()
    tok.add_special_tokens([AddedToken(t, normalized=True, special=True) for t in ("</s>", "<pad>")])
    tok.post_processor = template(tok, "</s> $A", "</s> $A </s>:1 $B:1", "</s>")
    return tok


def sentence(model_merges: int = 420, **kwargs) -> Tokenizer:
    """The Llama 2 model without normalizer or pre-tokenizer: BPE over the whole text with byte fallback."""
    tok = bpe(sentence_model(model_merges), unk_token="<unk>", fuse_unk=True, byte_fallback=True, **kwargs)
    tok.add_special_tokens(special("<unk>", "<s>", "</s>"))
    tok.post_processor = template(tok, "<s> $A", "<s> $A <s>:1 $B:1", "<s>")
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tok.decoder = decoders.Sequence(steps)
    return tok


def llama2() -> Tokenizer:
    tok = sentence()
    tok.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return tok


def llama2_normalized() -> Tokenizer:
    """Special tokens with normalized=true, as early conversions have them: the normalizer changes them as well."""
    tok = bpe(sentence_model(300), unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    tok.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tok.add_special_tokens([AddedToken(t, normalized=True, special=True) for t in ("<unk>", "<s>", "</s>")])
    tok.add_tokens([AddedToken("<pad> x", normalized=True)])
    tok.post_processor = template(tok, "<s> $A", "<s> $A <s>:1 $B:1", "<s>")
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tok.decoder = decoders.Sequence(steps)
    return tok


def metaspace(scheme: str, split: bool) -> Tokenizer:
    tok = sentence()
    tok.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme, split=split)
    tok.add_special_tokens(special("[INST]", "[/INST]"))
    if scheme == "never":
        tok.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        )
    if split:
        tok.decoder = decoders.Metaspace(replacement="▁", prepend_scheme=scheme, split=split)
    return tok


def unknowns() -> Tokenizer:
    """No byte fallback: neighbouring unknown characters fuse into one <unk>."""
    tok = bpe(sentence_model(200), unk_token="<unk>", fuse_unk=True)
    tok.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(" ", "▁")])
    tok.add_special_tokens(special("<unk>", "<s>", "</s>"))
    tok.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()])
    return tok


def added_tokens() -> Tokenizer:
    """Every flag of added tokens, over NFC and the Llama 3 pattern; some tokens begin or end alike."""
    tok = bpe(byte_level_model(640, split_bytes(LLAMA3_REGEX), normalizers.NFC()))
    tok.normalizer = normalizers.NFC()
    tok.pre_tokenizer = split_bytes(LLAMA3_REGEX)
    tok.decoder = decoders.ByteLevel()
    tok.add_special_tokens(
        [
            AddedToken("<|endoftext|>", normalized=False, special=True),
            AddedToken("<mask>", lstrip=True, normalized=False, special=True),
            AddedToken("<sep>", rstrip=True, normalized=False, special=True),
            AddedToken("<both>", lstrip=True, rstrip=True, normalized=False, special=True),
        ]
    )
    tok.add_tokens(
        [
            AddedToken("turbine", single_word=True, normalized=False),
            AddedToken("été", normalized=True),
            AddedToken("e\u0301cole", normalized=False),
            AddedToken("<ab", normalized=False),
            AddedToken("<abc>", normalized=False),
            AddedToken("    ", normalized=False),
            AddedToken("\n\n\n", normalized=True),
            AddedToken("水", single_word=True, normalized=True),
            AddedToken("left", lstrip=True, single_word=True, normalized=True),
            AddedToken("right", rstrip=True, normalized=True),
            AddedToken("👍", normalized=False),
        ]
    )
    tok.post_processor = template(
        tok, "$A <|endoftext|>", "$A <|endoftext|> $B:1 <|endoftext|>:1", "<|endoftext|>"
    )
    return tok


def old_metaspace(data: dict) -> None:
    """Metaspace as files of 2023 spell it: add_prefix_space beside prepend_scheme, no split."""
    data["pre_tokenizer"] = {
        "type": "Metaspace",
        "replacement": "▁",
        "add_prefix_space": True,
        "prepend_scheme": "first",
    }
    data["decoder"] = {
        "type": "Metaspace",
        "replacement": "▁",
        "add_prefix_space": True,
        "prepend_scheme": "first",
    }


def missing_keys(data: dict) -> None:
    """Model keys that older files do not have, and the default merges of a null dropout."""
    for key in ("byte_fallback", "ignore_merges", "fuse_unk", "dropout", "type"):
        data["model"].pop(key, None)
    data.pop("truncation")
    data.pop("padding")


GPT2_CONFIG = {
    "add_prefix_space": False,
    "bos_token": "<|endoftext|>",
    "eos_token": "<|endoftext|>",
    "unk_token": "<|endoftext|>",
    "model_max_length": 1024,
    "tokenizer_class": "GPT2Tokenizer",
}



def opt_token(content: str) -> dict:
    """A token as OPT's tokenizer_config.json spells it."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True}
    return {"__type": "AddedToken", "content": content, **flags}


OPT_CONFIG = {
    "errors": "replace",
    "unk_token": opt_token("</s>"),
    "bos_token": opt_token("</s>"),
    "eos_token": opt_token("</s>"),
    "pad_token": opt_token("<pad>"),
    "add_prefix_space": False,
    "add_bos_token": True,
    "tokenizer_class": "GPT2Tokenizer",
}

FAMILIES: dict[str, Family] = {
    "llama3": Family(llama3, pair_merges=False),
    "llama3_merges": Family(lambda: llama3(ignore_merges=False)),
    "qwen2": Family(qwen2),
    "tekken": Family(tekken),
    "gpt2": Family(lambda: gpt2(False), pair_merges=False, edit=missing_keys),
    "gpt2_prefix": Family(lambda: gpt2(True)),
    "gpt2_files": Family(lambda: gpt2(False), files=True, config=GPT2_CONFIG),
    "opt_files": Family(opt, files=True, config=OPT_CONFIG),
    "bloom": Family(bloom, pair_merges=False),
    "llama2": Family(llama2, pair_merges=False),
    "llama2_normalized": Family(llama2_normalized),
    "metaspace_first": Family(lambda: metaspace("first", False)),
    "metaspace_always": Family(lambda: metaspace("always", False)),
    "metaspace_never": Family(lambda: metaspace("never", False)),
    "metaspace_split": Family(lambda: metaspace("always", True)),
    "metaspace_old": Family(lambda: metaspace("first", True), pair_merges=False, edit=old_metaspace),
    "unknowns": Family(unknowns),
    "added": Family(added_tokens),
}


def dump(path: Path, data: object) -> None:
    """JSON, one line, UTF-8."""
    path.write_text(json.dumps(data, ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8")


def write_tokenizer(folder: Path, family: Family) -> Tokenizer:
    """Writes the tokenizer's files and returns it as the library reads them back."""
    tok = family.build()
    data = json.loads(tok.to_str())
    if family.files:
        end = tok.token_to_id("<|endoftext|>")
        dump(folder / "vocab.json", data["model"]["vocab"] | ({} if end is None else {"<|endoftext|>": end}))
        merges = "".join(f"{a} {b}\n" for a, b in data["model"]["merges"])
        (folder / "merges.txt").write_text("#version: 0.2\n" + merges, encoding="utf-8")
        dump(folder / "tokenizer_config.json", family.config)
        return tok
    if not family.pair_merges:
        data["model"]["merges"] = [" ".join(pair) for pair in data["model"]["merges"]]
    if family.edit is not None:
        family.edit(data)
    dump(folder / "tokenizer.json", data)
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def added_contents(tok: Tokenizer) -> list[str]:
    """Contents of all added tokens, by id."""
    added = tok.get_added_tokens_decoder()
    return [added[index].content for index in sorted(added)]


def lines(cases: list[dict]) -> str:
    """A JSON array with one case per line, so that a difference can be read."""
    return "[\n" + ",\n".join(json.dumps(c, ensure_ascii=False, separators=(",", ":")) for c in cases) + "\n]"


def write_expected(folder: Path, tok: Tokenizer, seed: int) -> int:
    """Writes expected.json; returns the number of cases."""
    rng = random.Random(seed)
    specials = added_contents(tok)
    texts = EDGE_STRINGS + special_strings(specials)[:72] + random_strings(seed, 60, specials, 9)
    encode = [{"text": t, "ids": tok.encode(t).ids} for t in texts]
    plain_texts = (
        EDGE_STRINGS[::20] + special_strings(specials)[2:40:9] + random_strings(seed + 1, 20, specials, 6)
    )
    plain = [{"text": t, "ids": tok.encode(t, add_special_tokens=False).ids} for t in plain_texts]
    sequences = [case["ids"] for case in encode if case["ids"]][::3]
    size = tok.get_vocab_size()
    sequences += [[rng.randrange(size) for _ in range(rng.randint(1, 12))] for _ in range(60)]
    # Single bytes are where UTF-8 breaks: mostly ids of the alphabet.
    sequences += [[rng.randrange(min(size, 262)) for _ in range(rng.randint(1, 10))] for _ in range(60)]
    decode = [
        {
            "ids": ids,
            "text": tok.decode(ids, skip_special_tokens=False),
            "text_skip": tok.decode(ids, skip_special_tokens=True),
        }
        for ids in sequences
    ]
    body = f'{{"encode":{lines(encode)},\n"plain":{lines(plain)},\n"decode":{lines(decode)}}}\n'
    (folder / "expected.json").write_text(body, encoding="utf-8")
    return len(encode) + len(plain) + len(decode)


def make_all(root: Path, names: list[str]) -> None:
    """Builds the named families under `root`."""
    for name in names:
        folder = root / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        tok = write_tokenizer(folder, FAMILIES[name])
        count = write_expected(folder, tok, SEED + sum(map(ord, name)))
        size = sum(f.stat().st_size for f in folder.iterdir())
        print(f"{name}: vocabulary {tok.get_vocab_size()}, {count} cases, {size} bytes")


def check(names: list[str]) -> int:
    """Rebuilds and compares; returns the number of differing files."""
    differing = 0
    with tempfile.TemporaryDirectory(prefix="penstock-tokenizers-") as temp:
        make_all(Path(temp), names)
        for name in names:
            for made in sorted((Path(temp) / name).iterdir()):
                stored = HERE / name / made.name
                if not stored.is_file() or not filecmp.cmp(made, stored, shallow=False):
                    print(f"differs: {name}/{made.name}", file=sys.stderr)
                    differing += 1
    return differing


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--check", action="store_true", help="compare with the stored files instead of writing them"
    )
    parser.add_argument("names", nargs="*", help="only these families")
    args = parser.parse_args()
    names = args.names or list(FAMILIES)
    if args.check:
        return 1 if check(names) else 0
    make_all(HERE, names)
    return 0


if __name__ == "__main__":
    sys.exit(main())
