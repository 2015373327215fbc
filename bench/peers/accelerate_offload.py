# SPDX-License-Identifier: Apache-2.0
"""transformers with Accelerate's disk offload. Safetensors weights stay in the folder; what fits `accelerate_memory` is kept."""

from __future__ import annotations

import tempfile
import time

import common


def main() -> None:
    s = common.settings()
    try:
        import accelerate
        import torch
        import transformers
    except ImportError as error:
        common.missing(f"Accelerate's disk offload needs torch, transformers and accelerate: {error}")
    if not common.begins(s):
        return
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="penstock-bench-offload-", dir=s["offload_dir"]) as offload:
        model = transformers.AutoModelForCausalLM.from_pretrained(
            s["model"], dtype="auto", device_map="auto", max_memory={"cpu": s["peer_memory"]}, offload_folder=offload
        ).eval()
        load_seconds = time.perf_counter() - started
        loops = common.timed_loops(s, model, model.config.vocab_size)
    devices: dict[str, int] = {}
    for device in getattr(model, "hf_device_map", {"": "cpu"}).values():
        devices[str(device)] = devices.get(str(device), 0) + 1
    versions = {module.__name__: module.__version__ for module in (accelerate, torch, transformers)}
    common.finish({"load_seconds": load_seconds, "loops": loops, "versions": versions, "modules_by_device": devices,
                   "dtype": str(model.dtype)})


if __name__ == "__main__":
    main()
