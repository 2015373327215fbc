#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""`penstock bench infer` beside another library, in interleaved pairs: what `penstock bench infer --against` runs.

    bench/against.py --against accelerate --penstock build/penstock --model MODEL --memory 3000000000 \\
        --batch-size 16 --prompt-len 64 --gen-len 8 --pairs 5 --output raw.json -- --resident 0

Both sides get the same folder, batch (unless --peer-batch-size says otherwise), lengths, threads and memory limit, and make
exactly --gen-len tokens for each prompt; times exclude start and loading. Each run is a process of its own. As root each runs in
a control group whose limit counts the page cache, too, and the page cache is dropped before; else the limits are only what each
side was told, and the report says so. --drive-rate puts the model, and what the other side writes, onto a drive of that steady
rate: a loop device that the control group limits. Every repetition is in the document.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import drives
import measuring

DRIVERS = {"accelerate": "accelerate_offload.py", "deepspeed": "deepspeed_zero.py", "llamacpp": "llama_cpp_mmap.py"}
MISSING = 3  # exit status of a driver without its library


def run(command: list[str], arguments: argparse.Namespace, limited: bool = True) -> dict:
    """One run, in the memory limit where that can be enforced."""
    if limited and arguments.enforced:
        record = measuring.run_limited(command, arguments.memory, arguments.timeout, arguments.drives, arguments.drive_rate)
    else:
        started = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, timeout=arguments.timeout)
        record = {"exit": done.returncode, "wall_seconds": time.perf_counter() - started}
        record |= {"stdout": done.stdout} if done.returncode == 0 else {"stderr": done.stderr[-2000:]}
    if record["exit"] == 0:
        text = record.pop("stdout")
        record["output"] = json.loads(text[text.index("{") :])
    return record


def penstock_command(a: argparse.Namespace) -> list[str]:
    command = [a.penstock, "bench", "infer", a.model, "--json", "--loops", str(a.loops), "--threads", str(a.threads)]
    command += ["--batch-size", str(a.batch_size), "--prompt-len", str(a.prompt_len), "--gen-len", str(a.gen_len)]
    return command + ["--host-memory", str(a.memory * 15 // 16), *a.options]


def driver_command(a: argparse.Namespace, **more) -> list[str]:
    settings = {
        "model": a.model,
        "batch_size": a.peer_batch_size or a.batch_size,
        "prompt_len": a.prompt_len,
        "gen_len": a.gen_len,
        "loops": a.loops,
        "threads": a.threads,
        "seed": 1,
        "memory": a.memory,
        "peer_memory": a.peer_memory or max(a.memory - 2**30, a.memory // 4),
        "offload_dir": a.offload_dir,
        "llama_bench": a.llama_bench,
        "gguf": a.gguf,
        "llama_ubatch": a.llama_ubatch,
    }
    driver = Path(__file__).resolve().parent / "peers" / DRIVERS[a.against]
    return [a.python, str(driver), json.dumps(settings | more)]


def run_side(side: str, a: argparse.Namespace) -> dict:
    record = run(penstock_command(a) if side == "penstock" else driver_command(a), a)
    if record["exit"] == MISSING:
        sys.exit(record["stderr"].strip().splitlines()[-1])
    if record["exit"] == 0:
        output = record["output"]
        loops = output["loops"] if side == "peer" else output["results"]
        record["figures"] = min(loops, key=lambda loop: loop["total_seconds"])
    return record


def summary(pairs: list[dict]) -> dict:
    """Medians over the pairs in which both sides finished."""
    whole = [p for p in pairs if "figures" in p["penstock"] and "figures" in p["peer"]]
    out: dict = {"pairs": len(pairs), "pairs_finished": len(whole)}
    if not whole:
        return out
    for key in ("prefill_tokens_per_second", "decode_tokens_per_second", "tokens_per_second"):
        ours = [p["penstock"]["figures"][key] for p in whole]
        theirs = [p["peer"]["figures"][key] for p in whole]
        ratios = [o / t for o, t in zip(ours, theirs, strict=True) if t > 0]
        out[key] = {"penstock": statistics.median(ours), "peer": statistics.median(theirs)}
        if ratios:
            out[key] |= {"ratio": statistics.median(ratios), "lowest": min(ratios), "highest": max(ratios)}
    return out


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--against", choices=DRIVERS, required=True)
    parser.add_argument("--penstock", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--memory", type=measuring.size_bytes, required=True, help="limit of each side")
    parser.add_argument("--peer-memory", type=measuring.size_bytes, default=0,
                        help="weights that Accelerate keeps; limit - 1 GiB unless given")
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--peer-batch-size", type=int, default=0,
                        help="the other side's own best batch; the same unless given")
    parser.add_argument("--prompt-len", type=int, default=512)
    parser.add_argument("--gen-len", type=int, default=32)
    parser.add_argument("--loops", type=int, default=1, help="generations in one process; the best counts, on both sides")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--offload-dir", default="", help="where the other side may write; a temporary folder unless given")
    parser.add_argument("--llama-bench", default="", help="llama.cpp's llama-batched-bench")
    parser.add_argument("--llama-ubatch", type=int, default=512, help="rows that llama.cpp computes at once")
    parser.add_argument("--gguf", default="", help="the same model for llama.cpp; written from its weights unless given")
    parser.add_argument("--drive-rate", type=measuring.size_bytes, default=0,
                        help="bytes per second of a drive made for this, which gets a copy of the model; needs root")
    parser.add_argument("--backing", type=Path, default=Path("/var/tmp"), help="folder for that drive's backing file")
    parser.add_argument("--timeout", type=float, default=7200, help="seconds for one run")
    parser.add_argument("--json", action="store_true", help="print the document")
    parser.add_argument("--output", type=Path)
    parser.add_argument("options", nargs="*", help="after --: more options of penstock bench infer")
    arguments = parser.parse_args()
    arguments.threads = arguments.threads or os.cpu_count()
    return arguments


def compare(a: argparse.Namespace) -> dict:
    hidden = ("json", "output", "python", "options", "offload_dir", "drives", "backing", "gguf", "llama_bench")
    settings = {k: v for k, v in vars(a).items() if k not in hidden} | {"penstock_options": a.options}
    settings["model"], settings["penstock"] = Path(a.model).name, Path(a.penstock).name
    report: dict = {"machine": measuring.machine(), "settings": settings, "memory_enforced": a.enforced, "pairs": []}
    prepared = run(driver_command(a, prepare=True), a, limited=False)  # is it there at all? And llama.cpp's file
    if prepared["exit"] != 0:
        sys.exit((prepared["stderr"].strip().splitlines() or ["the driver failed"])[-1])
    a.gguf = prepared["output"].get("gguf", a.gguf)
    for number in range(a.pairs):
        order = ["penstock", "peer"] if number % 2 == 0 else ["peer", "penstock"]
        pair: dict = {"order": order}
        for side in order:
            pair[side] = run_side(side, a)
            figures = pair[side].get("figures")
            said = f"{figures['tokens_per_second']:.4g} tokens/s" if figures else f"failed: {pair[side].get('stderr', '')[-300:]}"
            print(f"pair {number + 1}/{a.pairs} {a.against if side == 'peer' else side}: {said}", file=sys.stderr, flush=True)
        report["pairs"].append(pair)
        report["summary"] = summary(report["pairs"])
        if a.output:
            a.output.write_text(json.dumps(report, indent=1) + "\n")
    return report


@contextlib.contextmanager
def steady_drive(a: argparse.Namespace):
    """Moves the model to a drive of the wanted rate while it lasts, and what the other side writes."""
    drives.own_mounts()
    files = [f for f in Path(a.model).iterdir() if f.is_file()]
    room = sum(f.stat().st_size for f in files) * (1 if a.against == "accelerate" else 2)
    with tempfile.TemporaryDirectory(prefix="penstock-against-", dir=a.backing) as folder:
        drive = drives.Drive(Path(folder), 0, room * 11 // 10 + 2**28)
        try:
            model = drive.mount / Path(a.model).name
            model.mkdir()
            for file in files:
                shutil.copyfile(file, model / file.name)
            os.sync()
            a.model, a.offload_dir, a.drives = str(model), str(drive.mount), [drive.number]
            yield
        finally:
            drive.close()


def main() -> int:
    a = parse()
    a.enforced, a.drives = os.geteuid() == 0, []
    if a.enforced:
        try:
            measuring.MemoryGroup(a.memory).remove()
        except (OSError, SystemExit):
            a.enforced = False
    if not a.enforced:
        print("no control group can be made here: each side is only told its limit", file=sys.stderr)
    if a.drive_rate and not a.enforced:
        sys.exit("--drive-rate needs root and control groups")
    with contextlib.ExitStack() as stack:
        if a.drive_rate:
            stack.enter_context(steady_drive(a))
        a.offload_dir = a.offload_dir or stack.enter_context(tempfile.TemporaryDirectory(prefix="penstock-against-"))
        report = compare(a)
    if a.json:
        print(json.dumps(report))
    else:
        for key, value in report["summary"].items():
            print(f"{key}: {value}")
    return 0 if report["summary"]["pairs_finished"] == a.pairs else 1


if __name__ == "__main__":
    sys.exit(main())
