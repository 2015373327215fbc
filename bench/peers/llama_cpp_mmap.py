# SPDX-License-Identifier: Apache-2.0
"""llama.cpp with weights mapped from a GGUF: its batched benchmark program, else the module llama_cpp.

The GGUF is `gguf`, or is written once beside the offload folder from the model's own weights.
"""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path

import common
import gguf_write


def find_gguf(s: dict) -> Path:
    if s.get("gguf"):
        return Path(s["gguf"])
    out = Path(s["offload_dir"]) / (Path(s["model"]).name + ".gguf")
    if not out.exists():
        partial = out.with_suffix(".partial")
        gguf_write.write(Path(s["model"]), partial)
        partial.rename(out)
    return out


def run_program(s: dict, gguf: Path) -> dict:
    """llama-batched-bench: prompts of all sequences, then one row of each at a time."""
    tokens = s["batch_size"] * (s["prompt_len"] + s["gen_len"])
    command = [s["llama_bench"], "-m", str(gguf), "-npp", str(s["prompt_len"]), "-ntg", str(s["gen_len"])]
    command += ["-npl", str(s["batch_size"]), "-c", str((tokens + 255) // 256 * 256), "-kvu", "-t", str(s["threads"])]
    command += ["-b", str(max(2048, s["llama_ubatch"])), "-ub", str(s["llama_ubatch"])]
    command += ["--output-format", "jsonl"]
    loops = []
    for _ in range(s["loops"]):
        done = subprocess.run(command, capture_output=True, text=True)
        lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        if done.returncode != 0 or not lines:
            raise SystemExit(f"{s['llama_bench']} failed: {done.stderr[-500:]}")
        loops.append(common.figures(s, lines[-1]["t_pp"], lines[-1]["t"], 0))
    return {"loops": loops, "program": s["llama_bench"]}


def run_module(s: dict, gguf: Path) -> dict:
    """The same through llama_cpp's low level: batches of rows of many sequences."""
    try:
        import llama_cpp
        import numpy as np
    except ImportError as error:
        common.missing(f"llama.cpp needs --llama-bench (its llama-batched-bench) or the module llama_cpp: {error}")
    llama_cpp.llama_backend_init()
    started = time.perf_counter()
    parameters = llama_cpp.llama_model_default_params()
    parameters.use_mmap, parameters.n_gpu_layers = True, 0
    model = llama_cpp.llama_model_load_from_file(str(gguf).encode(), parameters)
    if not model:
        raise SystemExit(f"llama.cpp cannot load {gguf}")
    c = llama_cpp.llama_context_default_params()
    batch_size, prompt, made = s["batch_size"], s["prompt_len"], s["gen_len"]
    most = max(2048, s["llama_ubatch"])
    c.n_ctx = batch_size * (prompt + made)
    c.n_batch, c.n_ubatch, c.n_seq_max = most, s["llama_ubatch"], batch_size
    c.kv_unified = True
    c.n_threads = c.n_threads_batch = s["threads"]
    context = llama_cpp.llama_init_from_model(model, c)
    if not context:
        raise SystemExit("llama.cpp cannot make a context of this size")
    load_seconds = time.perf_counter() - started
    vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
    ids = np.random.default_rng(s["seed"]).integers(0, vocab, (batch_size, prompt))
    batch = llama_cpp.llama_batch_init(most, 0, 1)

    def decode(rows) -> None:
        """rows: token, position, sequence, whether its logits are wanted."""
        for first in range(0, len(rows), most):
            part = rows[first : first + most]
            batch.n_tokens = len(part)
            for i, (token, position, sequence, wants) in enumerate(part):
                batch.token[i], batch.pos[i], batch.n_seq_id[i] = int(token), position, 1
                batch.seq_id[i][0], batch.logits[i] = sequence, wants
            if llama_cpp.llama_decode(context, batch) != 0:
                raise SystemExit("llama_decode failed")

    loops = []
    for _ in range(s["loops"]):
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
        before, begin = common.read_bytes(), time.perf_counter()
        decode([(ids[q, p], p, q, p == prompt - 1) for q in range(batch_size) for p in range(prompt)])
        prefill = time.perf_counter() - begin
        chosen = [int(n) for n in ids[:, -1]]  # what is chosen does not change the work
        for step in range(made - 1):
            decode([(chosen[q], prompt + step, q, True) for q in range(batch_size)])
            for q in range(batch_size):
                logits = np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(context, q), (vocab,))
                chosen[q] = int(logits.argmax())
        total = time.perf_counter() - begin
        loops.append(common.figures(s, prefill, total, common.read_bytes() - before))
    return {"load_seconds": load_seconds, "loops": loops, "versions": {"llama_cpp": llama_cpp.__version__}}


def main() -> None:
    s = common.settings()
    if not s.get("llama_bench"):
        try:
            import llama_cpp  # noqa: F401
        except ImportError as error:
            common.missing(f"llama.cpp needs --llama-bench (its llama-batched-bench) or the module llama_cpp: {error}")
    gguf = find_gguf(s)
    if s.get("prepare"):
        common.finish({"gguf": str(gguf)})
        return
    common.finish(run_program(s, gguf) if s.get("llama_bench") else run_module(s, gguf))


if __name__ == "__main__":
    main()
