#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The time of a disk-bound pass with 8- and 4-bit weights over that with the weights as they are, in interleaved rounds.

    bench/quantized_pass.py build/penstock MODEL --memory 1500M --rounds 5 --offload-dir /data --output raw.json
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import measuring


def run(a: argparse.Namespace, bits: int) -> dict:
    """Statistics of one `bench infer`, everything streamed, in the memory limit."""
    command = [a.binary, "bench", "infer", str(a.model), "--loops", "1", "--json", "--resident", "0"]
    command += ["--batch-size", str(a.batch_size), "--prompt-len", str(a.prompt_len), "--gen-len", str(a.gen_len)]
    command += ["--host-memory", str(measuring.size_bytes(a.memory) * 15 // 16)]
    if bits < 16:
        command += ["--quant-bits", str(bits), "--offload-dir", str(a.offload_dir)]
    record = measuring.run_limited(command, measuring.size_bytes(a.memory))
    if record["exit"] != 0:
        sys.exit(f"{' '.join(command)}: {record['stderr']}")
    return json.loads(record["stdout"])["stats"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("binary")
    parser.add_argument("model", type=Path)
    parser.add_argument("--memory", default="1500M", help="limit of the control group, page cache included")
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--prompt-len", type=int, default=8)
    parser.add_argument("--gen-len", type=int, default=5)
    parser.add_argument("--bits", type=int, nargs="+", default=[8, 4])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--offload-dir", type=Path, required=True, help="where the quantized copies are made, or lie")
    parser.add_argument("--output", type=Path)
    a = parser.parse_args()
    settings = {k: v.name if isinstance(v, Path) else v for k, v in vars(a).items()} | {"binary": "penstock"}
    report: dict = {"machine": measuring.machine(), "settings": settings, "rounds": []}
    for bits in a.bits:
        run(a, bits)  # makes the copy
    for number in range(a.rounds):
        order = [16, *a.bits] if number % 2 == 0 else [*reversed(a.bits), 16]
        report["rounds"].append({str(bits): run(a, bits) for bits in order})
        print({bits: round(stats["decode_seconds"], 3) for bits, stats in report["rounds"][-1].items()}, file=sys.stderr)
    report["decode_time_over_16_bits"] = {
        str(bits): measuring.median_interval([r[str(bits)]["decode_seconds"] / r["16"]["decode_seconds"] for r in report["rounds"]])
        for bits in a.bits
    }
    print(json.dumps(report["decode_time_over_16_bits"]))
    if a.output:
        a.output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
