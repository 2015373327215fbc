#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Streamed inference beside fio's read of the same files and the static bound, in interleaved pairs.

For each batch size, pairs of fio (direct, sequential, its best setting on these files, found beforehand) and
`penstock bench infer` inside a control group whose memory limit counts the page cache, the order alternating.
Two figures: read rate of the disk-bound passes over fio's, and tokens per second over the static bound

    batch * gen / (max(W / D, 2 a prompt batch / F) + (gen - 1) * max(W / D, 2 a batch / F))

with W the bytes that a pass streams, D fio's rate of the same pair, a the parameters that a row meets, F the rate of
matrix products that the run itself measured beforehand.

    bench/streamed_inference.py build/penstock MODEL --batch-sizes 1 16 64 --memory 1500M --pairs 5 --output raw.json
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from pathlib import Path

import measuring


def run_penstock(arguments: argparse.Namespace, batch: int) -> dict:
    """The document of one `bench infer` in the memory limit."""
    command = [arguments.binary, "bench", "infer", str(arguments.model), "--loops", "1", "--json"]
    command += ["--batch-size", str(batch), "--prompt-len", str(arguments.prompt_len), "--gen-len", str(arguments.gen_len)]
    command += ["--host-memory", str(measuring.size_bytes(arguments.memory) - measuring.size_bytes(arguments.margin))]
    command += ["--resident", arguments.resident, *arguments.options]
    record = measuring.run_limited(command, measuring.size_bytes(arguments.memory))
    if record["exit"] != 0:
        sys.exit(f"{' '.join(command)}: {record['stderr']}")
    return json.loads(record["stdout"]) | {"group_peak_bytes": record["group_peak_bytes"], "command": command[1:]}


def count_parameters(arguments: argparse.Namespace) -> int:
    """Of all tensors of the checkpoint but an embedding that is not the head, too: its rows are looked up."""
    command = [arguments.binary, "inspect", str(arguments.model), "--json"]
    document = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    names = {tensor["name"]: math.prod(tensor["shape"]) for tensor in document["tensors"]}
    looked_up = ("embed_tokens.weight",) if "lm_head.weight" in names else ()
    return sum(elements for name, elements in names.items() if not name.endswith(looked_up))


def static_bound(stats: dict, drive: float, parameters: float, batch: int, prompt: int, gen: int) -> float:
    """Tokens per second that the drive and the processor allow a static batch."""
    read = stats["streamed_bytes"] / drive
    rate = stats["compute_flops"]
    prefill = max(read, 2 * parameters * prompt * batch / rate)
    decode = max(read, 2 * parameters * batch / rate)
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
    stats = pair["penstock"]["stats"]
    bound = static_bound(stats, pair["fio_bytes_per_second"], arguments.active_parameters, batch, arguments.prompt_len, arguments.gen_len)
    pair["read_ratio"] = stats["read_bytes_per_second"] / pair["fio_bytes_per_second"]
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
    parser.add_argument("--active-parameters", type=float, default=0, help="that a row meets; default: all of the model's")
    parser.add_argument("--fio-seconds", type=int, default=8)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--output", type=Path)
    parser.add_argument("options", nargs="*", help="more options of bench infer, after --")
    arguments = parser.parse_args()
    files = sorted(arguments.model.glob("*.safetensors"))
    settings = {k: v.name if isinstance(v, Path) else v for k, v in vars(arguments).items()}
    report: dict = {"machine": measuring.machine(), "settings": settings | {"binary": "penstock"}}
    arguments.active_parameters = arguments.active_parameters or count_parameters(arguments)
    report["active_parameters"] = arguments.active_parameters
    choice, report["fio_choices"] = measuring.fio_best(files)
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
