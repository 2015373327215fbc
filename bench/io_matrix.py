#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""`penstock bench io` beside fio at its best engine, over sizes, block sizes, depths, reading and writing.

For each cell, pairs of runs that take turns are added in rounds until the 95 % interval of the median ratio (bootstrap)
reaches 1.00 and its lower end stays above 0.97, or until there are --max-pairs. fio's setting is the fastest of several,
tried before the cell's first round, and kept for the later ones. The output has every pair; it is written after each
round, and a run that was ended goes on where it was.

Stopping as soon as the aim is reached favours reaching it. --min-pairs guards against that; --exactly N takes N pairs in
every cell whatever they show.

    bench/io_matrix.py build/penstock /mnt/nvme --output docs/benchmarks/raw/io-matrix.json
    bench/io_matrix.py build/penstock /mnt/nvme --output docs/benchmarks/raw/io-matrix.json --table
"""
import argparse
import itertools
import json
import os
import platform
import random
import statistics
import subprocess
import sys
from pathlib import Path

AIM, LEAST = 1.00, 0.97
RESAMPLES = 10000


def interval(ratios: list[float]) -> tuple[float, float]:
    """95 % of the medians of as many pairs, drawn with replacement. The same pairs give the same interval."""
    draw = random.Random(1)
    medians = sorted(statistics.median(draw.choices(ratios, k=len(ratios))) for _ in range(RESAMPLES))
    return medians[RESAMPLES // 40], medians[-1 - RESAMPLES // 40]


def judge(cell: dict) -> None:
    """Fills in what the cell's pairs say."""
    pairs = cell["pairs"]
    gigabytes = cell["bytes"] / 1e9
    ratios = [pair["ratio"] for pair in pairs]
    low, high = interval(ratios)
    cell["median_ratio"] = statistics.median(ratios)
    cell["ratio_95"] = [low, high]
    cell["bytes_per_second"] = statistics.median(pair["bytes_per_second"] for pair in pairs)
    cell["fio_bytes_per_second"] = statistics.median(pair["fio_bytes_per_second"] for pair in pairs)
    cell["cpu_seconds_per_gb"] = statistics.median(pair["cpu_seconds"] for pair in pairs) / gigabytes
    cell["fio_cpu_seconds_per_gb"] = statistics.median(pair["fio_cpu_seconds"] for pair in pairs) / gigabytes
    cell["reached"] = high >= AIM and low > LEAST


def run_round(arguments: argparse.Namespace, cell: dict, pairs: int) -> None:
    """Adds pairs to the cell."""
    command = [
        arguments.binary, "bench", "io", *map(str, arguments.folder), "--" + cell["op"], "--io-size", cell["io_size"],
        "--block-size", cell["block_size"], "--queue-depth", str(cell["queue_depth"]), "--against", "fio", "--pairs",
        str(pairs), "--io-profile", "none", "--json", *arguments.extra,
    ]
    if "fio_setting" in cell:
        command += ["--fio-setting", cell["fio_setting"]]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode != 0:
        sys.exit(f"{' '.join(command)}: {result.stderr}")
    document = json.loads(result.stdout)
    measured = document["results"][0]
    against = measured["against"]
    if "fio_setting" not in cell:
        cell["fio_setting"] = against["engine"]
        cell["fio_tried_bytes_per_second"] = against["tried_bytes_per_second"]
        keys = ("engine", "direct", "workers", "buffer_size", "locked_bytes", "registered_bytes")
        cell |= {key: measured[key] for key in keys} | {"bytes": measured["bytes"]}
    cell["pairs"] += against["pairs"]


def describe(cell: dict) -> str:
    """The cell's name for people."""
    return f"{cell['op']} {cell['io_size']}, {cell['block_size']} x {cell['queue_depth']}"


def measure(arguments: argparse.Namespace, report: dict) -> None:
    """Rounds over all cells that are not done, so that a slow hour of the drive does not fall on one cell alone."""
    for number in itertools.count(1):
        waiting = [cell for cell in report["cells"] if not is_done(arguments, cell)]
        if not waiting:
            return
        print(f"round {number}: {len(waiting)} cells", file=sys.stderr)
        for cell in waiting:
            most = arguments.exactly or arguments.max_pairs
            run_round(arguments, cell, min(arguments.round, most - len(cell["pairs"])))
            judge(cell)
            save(arguments, report)
            print(f"  {describe(cell)}: {cell['median_ratio']:.3f} ({cell['ratio_95'][0]:.3f} to "
                  f"{cell['ratio_95'][1]:.3f}), {len(cell['pairs'])} pairs", file=sys.stderr)


def is_done(arguments: argparse.Namespace, cell: dict) -> bool:
    """Whether the cell has pairs enough."""
    count = len(cell["pairs"])
    if arguments.exactly:
        return count >= arguments.exactly
    return count >= arguments.max_pairs or (count >= arguments.min_pairs and cell.get("reached", False))


def save(arguments: argparse.Namespace, report: dict) -> None:
    """The whole report, replaced at once."""
    temporary = arguments.output.with_suffix(".tmp")
    temporary.write_text(json.dumps(report, indent=1) + "\n")
    temporary.replace(arguments.output)


def machine() -> dict:
    """What the figures belong to."""
    with open("/proc/cpuinfo") as lines:
        cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown")
    return {"cpu": cpu, "cores": os.cpu_count(), "kernel": ".".join(platform.release().split(".")[:2]),
            "load_before": os.getloadavg()[0]}


def make_cells(arguments: argparse.Namespace) -> list[dict]:
    """One per combination, without pairs."""
    combinations = itertools.product(arguments.sizes, arguments.ops, arguments.blocks, arguments.depths)
    return [{"op": op, "io_size": size, "block_size": block, "queue_depth": depth, "pairs": []}
            for size, op, block, depth in combinations]


def load(arguments: argparse.Namespace) -> dict:
    """A report to go on with, or a new one. Cells that the old one lacks are added."""
    if not arguments.output.exists():
        fio = subprocess.run(["fio", "--version"], capture_output=True, text=True).stdout.strip()
        return {"machine": machine(), "fio": fio, "drive": arguments.drive, "extra": arguments.extra,
                "interval": "bootstrap of the median, 95 %", "cells": make_cells(arguments)}
    report = json.loads(arguments.output.read_text())
    if report["extra"] != arguments.extra:
        sys.exit(f"{arguments.output} was measured with other settings: {report['extra']}")
    known = {describe(cell) for cell in report["cells"]}
    report["cells"] += [cell for cell in make_cells(arguments) if describe(cell) not in known]
    return report


def print_table(report: dict) -> None:
    """As Markdown."""
    print("| op | size | block | depth | pairs | penstock GB/s | fio GB/s | ratio | 95 % | CPU s/GB | fio's | fio's setting |")
    print("|---|---|---|---|---|---|---|---|---|---|---|---|")
    for cell in report["cells"]:
        if not cell["pairs"]:
            continue
        print(f"| {cell['op']} | {cell['io_size']} | {cell['block_size']} | {cell['queue_depth']} | {len(cell['pairs'])} | "
              f"{cell['bytes_per_second'] / 1e9:.2f} | {cell['fio_bytes_per_second'] / 1e9:.2f} | "
              f"{cell['median_ratio']:.3f} | {cell['ratio_95'][0]:.3f} to {cell['ratio_95'][1]:.3f} | "
              f"{cell['cpu_seconds_per_gb']:.4f} | {cell['fio_cpu_seconds_per_gb']:.4f} | {cell['fio_setting']} |")
    measured = [cell for cell in report["cells"] if cell["pairs"]]
    reached = sum(cell["reached"] for cell in measured)
    cheaper = sum(cell["cpu_seconds_per_gb"] <= cell["fio_cpu_seconds_per_gb"] for cell in measured)
    print(f"\n{reached} of {len(measured)} cells reach {AIM:.2f} with the lower end above {LEAST}; "
          f"{cheaper} take no more processor time per GB than fio.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("binary")
    parser.add_argument("folder", type=Path, nargs="+")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--drive", default="", help="what the drive is, for the report")
    parser.add_argument("--sizes", nargs="+", default=["1G", "8G"])
    parser.add_argument("--blocks", nargs="+", default=["256K", "512K", "1M", "2M", "4M", "8M"])
    parser.add_argument("--depths", nargs="+", type=int, default=[8, 16, 32, 64, 128])
    parser.add_argument("--ops", nargs="+", default=["read", "write"], choices=["read", "write"])
    parser.add_argument("--round", type=int, default=6, help="pairs of one round of a cell; even, so that turns are fair")
    parser.add_argument("--min-pairs", type=int, default=6)
    parser.add_argument("--max-pairs", type=int, default=60)
    parser.add_argument("--exactly", type=int, default=0)
    parser.add_argument("--table", action="store_true", help="print what the output has; measure nothing")
    parser.add_argument("--extra", nargs=argparse.REMAINDER, default=[], help="more options of penstock bench io, last")
    arguments = parser.parse_args()
    if arguments.round < 2 or arguments.round % 2 != 0:
        parser.error("--round must be even")
    report = load(arguments)
    if not arguments.table:
        measure(arguments, report)
    print_table(report)


if __name__ == "__main__":
    main()
