# SPDX-License-Identifier: Apache-2.0
"""What the drivers of other libraries share: settings in, one JSON document out, a clear line where one is missing."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

MISSING = 3  # exit status: the library is not there


def missing(what: str) -> None:
    """Ends the driver: what has to be installed."""
    print(what, file=sys.stderr)
    sys.exit(MISSING)


def settings() -> dict:
    """model, batch_size, prompt_len, gen_len, loops, threads, seed, memory, offload_dir and a driver's own."""
    return json.loads(sys.argv[1])


def read_bytes() -> int:
    """Bytes that this process caused to be read from drives so far."""
    for line in Path("/proc/self/io").read_text().splitlines():
        if line.startswith("read_bytes:"):
            return int(line.split()[1])
    return 0


def figures(s: dict, prefill: float, total: float, read: int) -> dict:
    """The figures of a generation of gen_len tokens for each prompt."""
    batch, made = s["batch_size"], s["gen_len"]
    return {
        "prefill_seconds": prefill,
        "decode_seconds": total - prefill,
        "total_seconds": total,
        "prefill_tokens_per_second": batch * s["prompt_len"] / prefill,
        "decode_tokens_per_second": batch * (made - 1) / (total - prefill) if made > 1 else 0.0,
        "tokens_per_second": batch * made / total,
        "drive_bytes_read": read,
    }


def begins(s: dict) -> bool:
    """Prepares torch and transformers, which are there; False: this was all that was asked for."""
    import torch
    import transformers

    if s.get("prepare"):
        finish({})
        return False
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(s["threads"])
    return True


def timed_loops(s: dict, model, vocab: int) -> list[dict]:
    """Generations of transformers on seeded prompts; the first call of a logits processor ends the prefill."""
    import torch
    from transformers import LogitsProcessor, LogitsProcessorList

    class Stamp(LogitsProcessor):
        def __init__(self) -> None:
            self.times: list[float] = []

        def __call__(self, input_ids, scores):
            self.times.append(time.perf_counter())
            return scores

    def generation() -> dict:
        stamp, before, started = Stamp(), read_bytes(), time.perf_counter()
        with torch.no_grad():  # inference_mode makes Accelerate's hooks keep every weight that they loaded
            out = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                logits_processor=LogitsProcessorList([stamp]),
                do_sample=False,
                max_new_tokens=s["gen_len"],
                min_new_tokens=s["gen_len"],
                pad_token_id=0,
            )
        total = time.perf_counter() - started
        if out.shape[1] != s["prompt_len"] + s["gen_len"]:
            raise SystemExit(f"{out.shape[1] - s['prompt_len']} tokens were made, not {s['gen_len']}")
        return figures(s, stamp.times[0] - started, total, read_bytes() - before)

    ids = torch.randint(
        0, vocab, (s["batch_size"], s["prompt_len"]), generator=torch.Generator().manual_seed(s["seed"])
    )
    return [generation() for _ in range(s["loops"])]


def finish(document: dict) -> None:
    print(json.dumps(document))
