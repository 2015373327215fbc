#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Streamed generation beside fio's sequential read of the same files, in interleaved pairs.

Each pair runs fio (direct, sequential, the best of libaio and io_uring settings on this drive, chosen beforehand) over the checkpoint's files and `penstock bench infer` with everything streamed, the order alternating from pair to pair.
Prints and saves JSON with every repetition, the median of the ratios and what ran on which machine.

    bench/against_fio.py build/penstock MODEL --batch-size 1 --host-memory 1500M --pairs 5 --output raw.json
"""
import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from pathlib import Path


def drop_page_cache() -> bool:
    """Direct reads do not need it; it keeps buffered pages of other work from being in the way. Root only."""
    try:
        Path("/proc/sys/vm/drop_caches").write_text("1")
        return True
    except OSError:
        return False


# What fio may use. Registered buffers and files matter on drives behind a hypervisor, where mapping pages costs most.
REGISTERED = ["--ioengine=io_uring", "--fixedbufs=1", "--registerfiles=1"]
CHOICES = {
    "libaio 1M x 32": ["--ioengine=libaio", "--bs=1M", "--iodepth=32"],
    "libaio 4M x 16": ["--ioengine=libaio", "--bs=4M", "--iodepth=16"],
    "io_uring 1M x 32": ["--ioengine=io_uring", "--bs=1M", "--iodepth=32"],
    "io_uring 1M x 64, registered": [*REGISTERED, "--bs=1M", "--iodepth=64"],
    "io_uring 4M x 16, registered": [*REGISTERED, "--bs=4M", "--iodepth=16"],
}


def run_fio(files: list[Path], choice: str, seconds: int) -> float:
    """Bytes per second of one sequential direct read over the files."""
    command = [
        "fio", "--name=read", "--readonly", "--rw=read", "--direct=1", *CHOICES[choice], "--file_service_type=sequential",
        "--filename=" + ":".join(str(f) for f in files), "--output-format=json",
        "--time_based", f"--runtime={seconds}",
    ]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(result.stdout)["jobs"][0]["read"]["bw_bytes"]


def run_penstock(binary: str, model: Path, arguments: argparse.Namespace) -> dict:
    """The stats of one `bench infer`."""
    command = [
        binary, "bench", "infer", str(model), "--loops", "1", "--batch-size", str(arguments.batch_size), "--prompt-len",
        str(arguments.prompt_len), "--gen-len", str(arguments.gen_len), "--host-memory", arguments.host_memory, "--resident", "0", "--json",
    ]
    if arguments.io_engine:
        command += ["--io-engine", arguments.io_engine]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode != 0:
        sys.exit(f"{' '.join(command)}: {result.stderr}")
    return json.loads(result.stdout)["stats"]


def machine() -> dict:
    """What the figures belong to."""
    cpu = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), "unknown")
    return {"cpu": cpu, "cores": os.cpu_count(), "kernel": ".".join(platform.release().split(".")[:2]), "load_before": os.getloadavg()[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("binary")
    parser.add_argument("model", type=Path)
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--prompt-len", type=int, default=8)
    parser.add_argument("--gen-len", type=int, default=2)
    parser.add_argument("--host-memory", default="1500M")
    parser.add_argument("--io-engine", default="")
    parser.add_argument("--fio-seconds", type=int, default=8)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    files = sorted(arguments.model.glob("*.safetensors"))
    settings = {k: v.name if isinstance(v, Path) else str(v) for k, v in vars(arguments).items()}
    report: dict = {"machine": machine(), "settings": settings | {"binary": Path(arguments.binary).name}}
    report["fio"] = subprocess.run(["fio", "--version"], capture_output=True, text=True).stdout.strip()
    report["choices"] = {choice: run_fio(files, choice, 4) for choice in CHOICES}
    choice = max(report["choices"], key=lambda k: report["choices"][k])
    report["fio_choice"] = choice
    print(f"fio's best here: {choice}", file=sys.stderr)
    pairs = []
    for number in range(arguments.pairs):
        drop_page_cache()
        order = ["fio", "penstock"] if number % 2 == 0 else ["penstock", "fio"]
        pair: dict = {"order": order}
        for who in order:
            if who == "fio":
                pair["fio_bytes_per_second"] = run_fio(files, choice, arguments.fio_seconds)
            else:
                pair["penstock"] = run_penstock(arguments.binary, arguments.model, arguments)
        pair["ratio"] = pair["penstock"]["read_bytes_per_second"] / pair["fio_bytes_per_second"]
        print(f"pair {number + 1}: fio {pair['fio_bytes_per_second'] / 1e9:.3f} GB/s, penstock "
              f"{pair['penstock']['read_bytes_per_second'] / 1e9:.3f} GB/s, ratio {pair['ratio']:.3f}", file=sys.stderr)
        pairs.append(pair)
    report["pairs"] = pairs
    report["median_ratio"] = statistics.median(pair["ratio"] for pair in pairs)
    text = json.dumps(report, indent=1)
    if arguments.output:
        arguments.output.write_text(text + "\n")
    print(f"median ratio {report['median_ratio']:.3f}")


if __name__ == "__main__":
    main()
