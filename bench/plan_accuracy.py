#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""How near `penstock plan` comes to what is then measured, on a drive of a steady rate.

The drive is a loop device with an ext4 file system, limited by the block I/O controller of the control groups. On it lies a
checkpoint of random weights. For each batch size, alternately: `plan --measure`, which takes the drive's and the processor's
rates and predicts, and `bench infer`, which runs; each figure of the prediction is divided by the measured one. Every
repetition is in the document.

    sudo bench/plan_accuracy.py build/penstock --rate 400M --batch-sizes 1 8 32 --repeat 3 --out raw.json

Needs root and room for the checkpoint in the backing folder. Nothing stays behind, even if it is killed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import drives
import measuring
import stripe_scaling

FIGURES = ("prefill_seconds", "decode_seconds", "total_seconds", "prefill_tokens_per_second", "decode_tokens_per_second",
           "tokens_per_second")


def run_json(command: list[str], group: stripe_scaling.Group) -> dict:
    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=group.enter)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}: {done.stderr}")
    return json.loads(done.stdout)


def repetition(options: argparse.Namespace, model: Path, batch: int, group: stripe_scaling.Group) -> dict:
    lengths = ["--prompt-len", str(options.prompt_len), "--gen-len", str(options.gen_len), "--host-memory", options.memory]
    lengths += ["--resident", options.resident, *options.options]
    plan = [options.penstock, "plan", str(model), "--measure", "--batch", str(batch), "--json", *lengths]
    bench = [options.penstock, "bench", "infer", str(model), "--batch-size", str(batch), "--loops", str(options.loops)]
    bench += ["--json", *lengths]
    predicted, measured = run_json(plan, group), run_json(bench, group)
    forecast, loops = predicted["results"][0], measured["results"]
    found = sorted(loops, key=lambda loop: loop["total_seconds"])[len(loops) // 2]
    ratios = {name: forecast[name] / found[name] for name in FIGURES if found[name] > 0}
    return {"ratios": ratios, "limited_by": found["limited_by"], "plan": predicted, "bench": measured}


def measure_all(options: argparse.Namespace, model: Path, group: stripe_scaling.Group) -> list[dict]:
    batches = []
    for batch in options.batch_sizes:
        runs = [repetition(options, model, batch, group) for _ in range(options.repeat)]
        medians = {name: statistics.median(run["ratios"][name] for run in runs) for name in runs[0]["ratios"]}
        worst = max(abs(run["ratios"]["tokens_per_second"] - 1) for run in runs)
        limited = runs[0]["limited_by"]
        print(f"batch {batch}, limited by {limited}: " + ", ".join(f"{name} {value:.3f}" for name, value in medians.items()),
              file=sys.stderr)
        batches.append({"batch": batch, "predicted_over_measured": medians, "worst_tokens_per_second": worst,
                        "limited_by": limited, "runs": runs})
    return batches


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("penstock")
    parser.add_argument("--backing", type=Path, default=Path("/var/tmp"), help="folder for the drive's backing file")
    parser.add_argument("--rate", type=measuring.size_bytes, default=measuring.size_bytes("400M"))
    parser.add_argument("--shape", default="llama3.2-1b")
    parser.add_argument("--layers", type=int, default=0, help="of the shape; all unless given")
    parser.add_argument("--memory", default="1G")
    parser.add_argument("--resident", default="0")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--prompt-len", type=int, default=32)
    parser.add_argument("--gen-len", type=int, default=8)
    parser.add_argument("--loops", type=int, default=3, help="repetitions in each run; the median one counts")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--out", type=Path)
    parser.add_argument("options", nargs="*", help="after --: more options of both commands")
    options = parser.parse_args()
    options.penstock = os.path.abspath(options.penstock)
    if os.geteuid() != 0:
        print("needs root: loop devices, mounts, control groups", file=sys.stderr)
        return 2
    drives.own_mounts()
    layers = ["--layers", str(options.layers)] if options.layers else []
    report: dict = {"benchmark": "plan_accuracy", "machine": measuring.machine(),
                    "settings": {k: str(v) for k, v in vars(options).items() if k not in ("penstock", "out", "backing")}}
    with tempfile.TemporaryDirectory(prefix="penstock-plan-", dir=options.backing) as folder:
        sparse = Path(folder) / "size"
        written = subprocess.run([options.penstock, "synth", options.shape, str(sparse), *layers, "--sparse", "--json"],
                                 capture_output=True, text=True, check=True)
        room = json.loads(written.stdout)["results"][0]["file_bytes"]
        drive = drives.Drive(Path(folder), 0, room * 11 // 10 + (256 << 20))
        group = None
        try:
            model = drive.mount / "model"
            subprocess.run([options.penstock, "synth", options.shape, str(model), *layers], check=True, capture_output=True)
            group = stripe_scaling.Group([drive], options.rate)
            report["batches"] = measure_all(options, model, group)
        finally:
            if group is not None:
                group.close()
            drive.close()
    text = json.dumps(report, indent=1) + "\n"
    if options.out is not None:
        options.out.write_text(text)
    print(json.dumps([{k: v for k, v in batch.items() if k != "runs"} for batch in report["batches"]]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
