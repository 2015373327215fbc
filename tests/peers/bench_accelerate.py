#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Benchmark: `penstock bench infer` beside `transformers` with Accelerate's disk offload, both in one memory limit.

    bench_accelerate.py MODEL --penstock build/penstock --memory 3G --batch-size 16 --prompt-len 64 --gen-len 8 \\
        --pairs 5 --output docs/benchmarks/accelerate.json

Runs pairs, the order alternated, each run in a process and a control group of its own (version 1 or 2, made and
removed here: needs root) whose limit counts the page cache too, so that neither side can keep the model there.
The page cache is dropped before each run. Both sides get the same folder, batch, lengths, threads and limit and
greedy decoding of exactly --gen-len tokens; times exclude start and loading. Writes every repetition to --output.

Accelerate's side: safetensors weights stay in the folder (no second copy), what fits --accelerate-memory (the
limit less 1 GiB, unless given) is kept in memory, the rest is read for each pass. A run that its limit kills is recorded.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

UNITS = {"K": 10**3, "M": 10**6, "G": 10**9, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}


def size_bytes(text: str) -> int:
    """1500M, 3G, 3Gi or plain bytes."""
    for suffix in sorted(UNITS, key=len, reverse=True):
        if text.endswith(suffix):
            return int(float(text[: -len(suffix)]) * UNITS[suffix])
    return int(text)


# ---- the memory limit ----


class MemoryGroup:
    """A control group with a memory limit, of version 2 where that has the memory controller, else of version 1."""

    def __init__(self, limit_bytes: int) -> None:
        self.version, parent = self._parent()
        self.folder = parent / f"penstock-bench-{os.getpid()}-{time.monotonic_ns()}"
        self.folder.mkdir()
        if self.version == 2:
            self._write("memory.max", limit_bytes)
            self._write("memory.swap.max", 0, optional=True)
        else:
            self._write("memory.limit_in_bytes", limit_bytes)
            self._write("memory.memsw.limit_in_bytes", limit_bytes, optional=True)
            self._write("memory.swappiness", 0, optional=True)

    @staticmethod
    def _parent() -> tuple[int, Path]:
        """Version and folder under which groups can be made. The top of each mount: the own group would pass
        a limit on, and groups of version 2 that hold processes cannot have limited children."""
        mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
        for _, where, kind, *_ in mounts:
            controllers = Path(where) / "cgroup.controllers"
            if kind == "cgroup2" and controllers.exists() and "memory" in controllers.read_text().split():
                (Path(where) / "cgroup.subtree_control").write_text("+memory")
                return 2, Path(where)
        for _, where, kind, options, *_ in mounts:
            if kind == "cgroup" and "memory" in options.split(","):
                return 1, Path(where)
        raise SystemExit("bench_accelerate.py: no memory control group found")

    def _write(self, name: str, value: int, optional: bool = False) -> None:
        try:
            (self.folder / name).write_text(str(value))
        except OSError:
            if not optional:
                raise

    def enter(self) -> None:
        """Moves the calling process in; run in the child before it starts the program."""
        (self.folder / "cgroup.procs").write_text(str(os.getpid()))

    def figures(self) -> dict:
        """Peak use, page cache included, and how often the limit was met."""
        names = (
            ["memory.peak", "memory.events"]
            if self.version == 2
            else ["memory.max_usage_in_bytes", "memory.failcnt"]
        )
        return {
            name: (self.folder / name).read_text().strip() for name in names if (self.folder / name).exists()
        }

    def remove(self) -> None:
        for _ in range(50):
            try:
                self.folder.rmdir()
                return
            except OSError:
                time.sleep(0.1)
        print(f"could not remove {self.folder}", file=sys.stderr)


def drop_page_cache() -> None:
    """So that a run does not read what the one before left in memory."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")


# ---- Accelerate's side, in a process of its own ----


def run_transformers(settings: dict) -> dict:
    """Loads with disk offload, generates --loops times; figures of each loop."""
    import accelerate
    import torch
    import transformers
    from transformers import AutoConfig, AutoModelForCausalLM

    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(settings["threads"])
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(
        prefix="penstock-bench-offload-", dir=settings["offload_dir"]
    ) as offload:
        model = AutoModelForCausalLM.from_pretrained(
            settings["model"],
            dtype="auto",
            device_map="auto",
            max_memory={"cpu": settings["accelerate_memory"]},
            offload_folder=offload,
        ).eval()
        load_seconds = time.perf_counter() - started
        vocab = AutoConfig.from_pretrained(settings["model"]).vocab_size
        shape = (settings["batch_size"], settings["prompt_len"])
        ids = torch.randint(0, vocab, shape, generator=torch.Generator().manual_seed(settings["seed"]))
        loops = [one_generation(model, ids, settings["gen_len"]) for _ in range(settings["loops"])]
    devices: dict[str, int] = {}
    for device in getattr(model, "hf_device_map", {"": "cpu"}).values():
        devices[str(device)] = devices.get(str(device), 0) + 1
    versions = {m.__name__: m.__version__ for m in (accelerate, torch, transformers)}
    return {
        "load_seconds": load_seconds,
        "loops": loops,
        "modules_by_device": devices,
        "versions": versions,
        "dtype": str(model.dtype),
    }


def one_generation(model, ids, gen_len: int) -> dict:
    """Exactly gen_len new tokens, greedy; the time of each pass."""
    import torch
    from transformers import LogitsProcessor, LogitsProcessorList

    class Stamp(LogitsProcessor):
        """Notes when each pass ended."""

        def __init__(self) -> None:
            self.times: list[float] = []

        def __call__(self, input_ids, scores):
            self.times.append(time.perf_counter())
            return scores

    stamp = Stamp()
    settings = {"do_sample": False, "max_new_tokens": gen_len, "min_new_tokens": gen_len, "pad_token_id": 0}
    read_before = read_bytes()
    started = time.perf_counter()
    with torch.no_grad():  # inference_mode makes the offloading hooks keep every weight that they loaded
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            logits_processor=LogitsProcessorList([stamp]),
            **settings,
        )
    total = time.perf_counter() - started
    assert out.shape[1] == ids.shape[1] + gen_len
    batch, prompt = ids.shape
    prefill = stamp.times[0] - started
    return {
        "prefill_seconds": prefill,
        "decode_seconds": total - prefill,
        "total_seconds": total,
        "prefill_tokens_per_second": batch * prompt / prefill,
        "decode_tokens_per_second": batch * (gen_len - 1) / (total - prefill) if gen_len > 1 else 0.0,
        "tokens_per_second": batch * gen_len / total,
        "drive_bytes_read": read_bytes() - read_before,
    }


def read_bytes() -> int:
    """Bytes that this process caused to be read from drives so far."""
    for line in Path("/proc/self/io").read_text().splitlines():
        if line.startswith("read_bytes:"):
            return int(line.split()[1])
    return 0


# ---- running one side ----


def run_limited(command: list[str], limit_bytes: int, timeout: float) -> dict:
    """Runs a command inside a fresh memory group; its output, exit status and the group's figures."""
    drop_page_cache()
    group = MemoryGroup(limit_bytes)
    try:
        started = time.perf_counter()
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout, preexec_fn=group.enter
        )
        wall = time.perf_counter() - started
        record = {"exit": done.returncode, "wall_seconds": wall, "group": group.figures()}
        if done.returncode == 0:
            record["output"] = json.loads(done.stdout[done.stdout.index("{") :])
        else:
            record["stderr"] = done.stderr[-2000:]
        return record
    except subprocess.TimeoutExpired:
        return {"exit": None, "stderr": f"no end within {timeout} s", "group": group.figures()}
    finally:
        group.remove()


def run_accelerate(args: argparse.Namespace) -> dict:
    settings = {
        "model": str(args.model),
        "threads": args.threads,
        "accelerate_memory": args.accelerate_memory,
        "offload_dir": args.offload_dir,
        "batch_size": args.batch_size,
        "prompt_len": args.prompt_len,
        "gen_len": args.gen_len,
        "loops": args.loops,
        "seed": 1,
    }
    command = [args.python, str(Path(__file__).resolve()), "--child", json.dumps(settings)]
    record = run_limited(command, args.memory, args.timeout)
    if record["exit"] == 0:
        loops = record["output"]["loops"]
        record["figures"] = (
            loops[-1] if len(loops) == 1 else min(loops, key=lambda loop: loop["total_seconds"])
        )
    return record


def run_penstock(args: argparse.Namespace) -> dict:
    command = [str(args.penstock), "bench", "infer", str(args.model), "--batch-size", str(args.batch_size)]
    command += [
        "--prompt-len",
        str(args.prompt_len),
        "--gen-len",
        str(args.gen_len),
        "--loops",
        str(args.loops),
    ]
    command += [
        "--threads",
        str(args.threads),
        "--host-memory",
        str(args.host_memory),
        "--json",
        *args.penstock_options,
    ]
    record = run_limited(command, args.memory, args.timeout)
    if record["exit"] == 0:
        record["figures"] = record["output"]["stats"]
    return record


# ---- the report ----


def machine() -> dict:
    """Processor, memory, kernel."""
    model = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        "",
    )
    memory = int(Path("/proc/meminfo").read_text().split()[1]) * 1024
    return {
        "processor": model,
        "processors": os.cpu_count(),
        "memory_bytes": memory,
        "kernel": ".".join(platform.release().split(".")[:2]),
    }


def drive_of(folder: Path) -> dict:
    """File system and device that hold the folder."""
    best = max(
        (line.split() for line in Path("/proc/self/mounts").read_text().splitlines()),
        key=lambda m: len(m[1]) if str(folder).startswith(m[1].rstrip("/") + "/") else -1,
    )
    return {"device": best[0], "file_system": best[2]}


def summary(pairs: list[dict]) -> dict:
    """Medians over the pairs in which both sides finished."""
    whole = [p for p in pairs if p["penstock"]["exit"] == 0 and p["accelerate"]["exit"] == 0]
    out: dict = {"pairs_finished": len(whole), "pairs": len(pairs)}
    if not whole:
        return out
    for key in ("tokens_per_second", "decode_tokens_per_second", "prefill_tokens_per_second"):
        ours = [p["penstock"]["figures"][key] for p in whole]
        theirs = [p["accelerate"]["figures"][key] for p in whole]
        ratios = [a / b for a, b in zip(ours, theirs, strict=True) if b]
        out[key] = {
            "penstock_median": statistics.median(ours),
            "accelerate_median": statistics.median(theirs),
            "ratio_median": statistics.median(ratios) if ratios else None,
            "ratio_smallest": min(ratios, default=None),
            "ratio_largest": max(ratios, default=None),
        }
    return out


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument(
        "--penstock", type=Path, default=Path(__file__).resolve().parents[2] / "build" / "penstock"
    )
    parser.add_argument(
        "--python", default=sys.executable, help="interpreter that has transformers and accelerate"
    )
    parser.add_argument("--memory", type=size_bytes, required=True, help="limit of both control groups")
    parser.add_argument(
        "--host-memory", type=size_bytes, help="penstock's budget; 15/16 of the limit unless given"
    )
    parser.add_argument(
        "--accelerate-memory",
        type=size_bytes,
        help="weights that Accelerate keeps; limit - 1 GiB unless given",
    )
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--prompt-len", type=int, default=64)
    parser.add_argument("--gen-len", type=int, default=8)
    parser.add_argument(
        "--loops", type=int, default=1, help="generations in one process; the best counts for Accelerate"
    )
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument(
        "--offload-dir", default=None, help="where Accelerate may put what it must rewrite; normally nothing"
    )
    parser.add_argument("--timeout", type=float, default=3600, help="seconds for one run")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("penstock_options", nargs="*", help="after --: more options for penstock bench infer")
    args = parser.parse_args()
    args.model = args.model.resolve()
    args.host_memory = args.host_memory or args.memory * 15 // 16
    args.accelerate_memory = args.accelerate_memory or max(args.memory - 2**30, args.memory // 4)
    return args


def main() -> int:
    if len(sys.argv) == 3 and sys.argv[1] == "--child":
        print(json.dumps(run_transformers(json.loads(sys.argv[2]))))
        return 0
    args = parse()
    if os.geteuid() != 0:
        raise SystemExit("bench_accelerate.py: making control groups and dropping the page cache need root")
    report = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "drive": {**drive_of(args.model), "free_bytes": shutil.disk_usage(args.model).free},
        "model_bytes": sum(f.stat().st_size for f in args.model.glob("*.safetensors")),
        "settings": {
            k: str(v) if isinstance(v, Path) else v
            for k, v in vars(args).items()
            if k not in ("output", "python")
        },
        "pairs": [],
    }
    report["settings"]["model"] = args.model.name
    report["settings"]["penstock"] = args.penstock.name
    sides = {"penstock": run_penstock, "accelerate": run_accelerate}
    for number in range(args.pairs):
        order = list(sides) if number % 2 == 0 else list(sides)[::-1]
        pair: dict = {"order": order}
        for side in order:
            pair[side] = sides[side](args)
            figures = pair[side].get("figures")
            rate = f"{figures['tokens_per_second']:.4g} tokens/s" if figures else f"failed: {pair[side]}"
            print(f"pair {number + 1}/{args.pairs} {side}: {rate}", flush=True)
        report["pairs"].append(pair)
        report["summary"] = summary(report["pairs"])
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report["summary"], indent=1))
    return 0 if report["summary"]["pairs_finished"] == args.pairs else 1


if __name__ == "__main__":
    sys.exit(main())
