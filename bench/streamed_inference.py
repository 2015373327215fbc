#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Streamed inference beside fio's read of the same files and the static bound, in interleaved pairs.

For each batch size, pairs of fio (direct, sequential, its best setting on these files, found beforehand, as many seconds as it
takes for the bytes that the passes read) and `penstock bench infer` inside a control group whose memory limit counts the page
cache, the order alternating. Two figures: read rate of the disk-bound passes over fio's, and tokens per second over the static
bound

    batch * gen / (max(W / D, 2 a / F) of the prefill + (gen - 1) * max(W / D, 2 a / F) of a decoding pass)

with W the bytes that a pass needs, D fio's rate of the same pair, a the parameters that its rows meet (the head's only rows
whose logits are wanted, an expert's its share), F the rate of matrix products: the mean of what the run itself measured
beforehand and, from --probe-batch on, of what short runs measure before and after it, because a machine's speed changes.

    bench/streamed_inference.py build/penstock MODEL --batch-sizes 1 16 64 --memory 1500M --pairs 5 --output raw.json
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import statistics
import subprocess
import sys
from pathlib import Path

import measuring

WIDTH = {"F32": 4, "F16": 2, "BF16": 2, "U8": 1, "F8_E4M3": 1, "I32": 4}


@dataclasses.dataclass
class Model:
    """What a pass meets, in parameters, and their bytes: of every row, of the experts, of the head."""

    every_row: float
    experts: float
    head: float
    bytes: float
    expert_bytes: float
    expert_count: int
    experts_per_row: int

    @classmethod
    def read(cls, arguments: argparse.Namespace) -> Model:
        command = [arguments.binary, "inspect", str(arguments.model), "--json"]
        document = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        config = json.loads((arguments.model / "config.json").read_text())
        tensors = {t["name"]: (math.prod(t["shape"]), math.prod(t["shape"]) * WIDTH[t["dtype"]]) for t in document["tensors"]}
        embedding = next(n for n in tensors if n.endswith(("embed_tokens.weight", "word_embeddings.weight", "wte.weight")))
        head = next((n for n in tensors if n.endswith("lm_head.weight")), embedding)
        looked_up = [n for n in tensors if n.endswith(("embed_positions.weight", "wpe.weight")) or n == embedding != head]
        experts = [n for n in tensors if ".experts." in n]
        others = set(tensors) - {head, *looked_up, *experts}
        count = next((config[k] for k in ("num_local_experts", "num_experts", "n_routed_experts") if config.get(k)), 0)
        return cls(
            every_row=sum(tensors[n][0] for n in others),
            experts=sum(tensors[n][0] for n in experts),
            head=tensors[head][0],
            bytes=sum(tensors[n][1] for n in (*others, *experts, head)),
            expert_bytes=sum(tensors[n][1] for n in experts),
            expert_count=count,
            experts_per_row=config.get("num_experts_per_tok", 0) if experts else 0,
        )

    def operations(self, rows: int, logit_rows: int) -> float:
        share = self.experts_per_row / self.expert_count if self.expert_count else 0
        return 2 * ((self.every_row + self.experts * share) * rows + self.head * logit_rows)

    def share_needed(self, rows: int) -> float:
        """Of the bytes, by a pass of so many rows, all experts being as much in demand."""
        if not self.expert_count:
            return 1
        missing = (1 - self.experts_per_row / self.expert_count) ** rows
        return 1 - missing * self.expert_bytes / self.bytes


def bench_infer(arguments: argparse.Namespace, batch: int, *more: str) -> dict:
    """The document of one `bench infer` in the memory limit."""
    command = [arguments.binary, "bench", "infer", str(arguments.model), "--loops", "1", "--json"]
    command += ["--batch-size", str(batch), "--prompt-len", str(arguments.prompt_len), "--gen-len", str(arguments.gen_len)]
    command += ["--host-memory", str(measuring.size_bytes(arguments.memory) - measuring.size_bytes(arguments.margin))]
    command += ["--resident", arguments.resident, *arguments.options, *more]
    record = measuring.run_limited(command, measuring.size_bytes(arguments.memory))
    if record["exit"] != 0:
        sys.exit(f"{' '.join(command)}: {record['stderr']}")
    return json.loads(record["stdout"]) | {"group_peak_bytes": record["group_peak_bytes"], "command": command[1:]}


def run_penstock(arguments: argparse.Namespace, batch: int) -> dict:
    """A run, and the rates of products that were measured about it."""

    def probe() -> list[float]:
        if batch < arguments.probe_batch:
            return []
        return [bench_infer(arguments, batch, "--layers", "1", "--gen-len", "1")["stats"]["compute_flops"]]

    before = probe()
    document = bench_infer(arguments, batch)
    return document | {"matrix_rates": [*before, document["stats"]["compute_flops"], *probe()]}


def static_bound(run: dict, drive: float, model: Model, batch: int, prompt: int, gen: int) -> float:
    """Tokens per second that the drive and the processor allow a static batch."""
    stats, rate = run["stats"], statistics.mean(run["matrix_rates"])
    needed = stats["weight_bytes_read"] - stats["wasted_bytes"]
    prefill_share, decode_share = model.share_needed(batch * prompt), model.share_needed(batch)
    needed /= prefill_share + (gen - 1) * decode_share  # of a pass that needs everything
    if needed > stats["streamed_bytes"]:  # a prefill in several passes: the bound knows one
        needed = stats["streamed_bytes"]
    prefill = max(needed * prefill_share / drive, model.operations(batch * prompt, batch) / rate)
    decode = max(needed * decode_share / drive, model.operations(batch, batch) / rate)
    return batch * gen / (prefill + (gen - 1) * decode)


def run_pair(arguments: argparse.Namespace, choice: str, files: list[Path], batch: int, number: int) -> dict:
    order = ["fio", "penstock"] if number % 2 == 0 else ["penstock", "fio"]
    pair: dict = {"order": order}
    for who in order:
        if who == "fio":
            measuring.drop_page_cache()
            pair["fio_bytes_per_second"] = measuring.fio_read(files, choice, arguments.fio_seconds)
        else:
            pair["penstock"] = run_penstock(arguments, batch)
    stats, drive = pair["penstock"]["stats"], pair["fio_bytes_per_second"]
    bound = static_bound(pair["penstock"], drive, arguments.parameters, batch, arguments.prompt_len, arguments.gen_len)
    pair["read_ratio"] = stats["read_bytes_per_second"] / drive
    pair["tokens_per_second"] = stats["tokens_per_second"]
    pair["share_of_static_bound"] = stats["tokens_per_second"] / bound
    return pair


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("binary")
    parser.add_argument("model", type=Path)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--prompt-len", type=int, default=8)
    parser.add_argument("--gen-len", type=int, default=4)
    parser.add_argument("--memory", default="1500M", help="limit of the control group, page cache included")
    parser.add_argument("--margin", default="64M", help="how much less --host-memory is told: the kernel's own share")
    parser.add_argument("--resident", default="0")
    parser.add_argument("--probe-batch", type=int, default=32, help="from this batch on, measure products around each run")
    parser.add_argument("--fio-seconds", type=int, default=0, help="of each of fio's runs; without it what the passes' bytes take")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--output", type=Path)
    parser.add_argument("options", nargs="*", help="more options of bench infer, after --")
    arguments = parser.parse_args()
    files = sorted(arguments.model.glob("*.safetensors"))
    settings = {k: v.name if isinstance(v, Path) else v for k, v in vars(arguments).items()}
    report: dict = {"machine": measuring.machine(), "settings": settings | {"binary": "penstock"}}
    arguments.parameters = Model.read(arguments)
    report["model"] = dataclasses.asdict(arguments.parameters)
    choice, report["fio_choices"] = measuring.fio_best(files)
    seconds = arguments.parameters.bytes * arguments.gen_len / report["fio_choices"][choice]
    arguments.fio_seconds = report["fio_seconds"] = arguments.fio_seconds or max(2, round(seconds))
    report["fio_choice"] = choice
    report["fio_huge_pages"] = measuring.has_reserved_huge_pages()
    report["batches"] = {}
    for batch in arguments.batch_sizes:
        pairs = []
        for number in range(arguments.pairs):
            pairs.append(run_pair(arguments, choice, files, batch, number))
            print(f"batch {batch}, pair {number + 1}: read {pairs[-1]['read_ratio']:.3f} of fio's, "
                  f"{pairs[-1]['tokens_per_second']:.2f} tokens/s, {pairs[-1]['share_of_static_bound']:.3f} of the bound, "
                  f"limited by {pairs[-1]['penstock']['stats']['limited_by']}", file=sys.stderr)
        summary = {key: measuring.median_interval([pair[key] for pair in pairs])
                   for key in ("read_ratio", "tokens_per_second", "share_of_static_bound")}
        report["batches"][str(batch)] = {"median_and_95_percent_interval": summary, "pairs": pairs}
        print(json.dumps({"batch": batch} | summary))
    if arguments.output:
        arguments.output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
