# SPDX-License-Identifier: Apache-2.0
"""DeepSpeed's ZeRO-Inference on its CPU accelerator: stage 3 with parameters offloaded to the drive."""

from __future__ import annotations

import os
import tempfile
import time

import common

os.environ.setdefault("DS_ACCELERATOR", "cpu")
for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29517"}.items():
    os.environ.setdefault(name, value)


def configuration(s: dict, config, offload: str, dtype: str) -> dict:
    """Every buffer holds the largest parameter; as many as fit the memory beside what Python and torch take."""
    hidden = config.hidden_size
    largest = hidden * max(config.vocab_size, getattr(config, "intermediate_size", 0), 4 * hidden)
    buffers = max(3, min(6, (s["memory"] - 2**30) // (2 * largest)))
    return {
        "bf16": {"enabled": dtype == "torch.bfloat16"},
        "fp16": {"enabled": dtype == "torch.float16"},
        "zero_optimization": {
            "stage": 3,
            "stage3_prefetch_bucket_size": 2 * hidden * hidden,
            "stage3_param_persistence_threshold": hidden,
            "stage3_max_live_parameters": 2 * hidden * hidden,
            "offload_param": {"device": "nvme", "nvme_path": offload, "pin_memory": False,
                              "buffer_count": buffers, "buffer_size": largest},
        },
        "aio": {"block_size": 1048576, "queue_depth": 32, "intra_op_parallelism": 1, "single_submit": False,
                "overlap_events": True},
        "train_micro_batch_size_per_gpu": s["batch_size"],
    }


def main() -> None:
    s = common.settings()
    try:
        import deepspeed
        import torch
        import transformers
        from transformers.integrations import HfDeepSpeedConfig
    except ImportError as error:
        common.missing(f"ZeRO-Inference needs torch, transformers and deepspeed: {error}")
    if not common.begins(s):
        return
    deepspeed.init_distributed(dist_backend="gloo", verbose=False)
    started = time.perf_counter()
    config = transformers.AutoConfig.from_pretrained(s["model"])
    dtype = getattr(config, "dtype", None) or getattr(config, "torch_dtype", None) or torch.bfloat16
    with tempfile.TemporaryDirectory(prefix="penstock-bench-zero-", dir=s["offload_dir"]) as offload:
        zero = configuration(s, config, offload, str(dtype))
        keep = HfDeepSpeedConfig(zero)  # from_pretrained looks for a live one
        model = transformers.AutoModelForCausalLM.from_pretrained(s["model"], dtype=dtype)
        engine = deepspeed.initialize(model=model, config=zero)[0]
        engine.module.eval()
        load_seconds = time.perf_counter() - started
        loops = common.timed_loops(s, engine.module, config.vocab_size)
        del keep
    versions = {module.__name__: module.__version__ for module in (deepspeed, torch, transformers)}
    common.finish({"load_seconds": load_seconds, "loops": loops, "versions": versions, "dtype": str(dtype)})


if __name__ == "__main__":
    main()
