# SPDX-License-Identifier: Apache-2.0
"""What `penstock convert` writes, decoded by the few lines of NumPy that docs/quantized.md shows."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Callable

import numpy as np
import pytest
from conftest import CASES, REPOSITORY
from safetensors import safe_open

MODELS = [REPOSITORY / "models" / "penstock-tales", CASES / "llama_odd", CASES / "qwen2_f16_sharded"]


def documented_decode() -> Callable[..., np.ndarray]:
    """The function as the documentation has it."""
    text = (REPOSITORY / "docs" / "quantized.md").read_text()
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    assert code is not None
    scope: dict = {}
    exec(compile(code[1], "docs/quantized.md", "exec"), scope)
    return scope["decode"]


def tensors_of(folder: Path) -> dict[str, np.ndarray]:
    """Every tensor; floats as float32."""
    out: dict[str, np.ndarray] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():
                tensor = tensors.get_tensor(name)
                out[name] = (tensor.float() if tensor.is_floating_point() else tensor).numpy()
    return out


@pytest.mark.parametrize("model", MODELS, ids=lambda m: m.name)
@pytest.mark.parametrize(
    "options", [(8, 64, False), (4, 64, False), (4, 22, True), (8, 32, True)], ids=lambda o: "-".join(map(str, o))
)
def test_decoded(penstock, tmp_path: Path, model: Path, options: tuple[int, int, bool]) -> None:
    bits, group, symmetric = options
    extra = ["--symmetric"] if symmetric else []
    penstock.run("convert", model, tmp_path / "out", "--bits", bits, "--group-size", group, *extra)
    decode = documented_decode()
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert (config["bits"], config["group_size"], config["symmetric"]) == options
    originals, quantized = tensors_of(model), tensors_of(tmp_path / "out")
    assert any(rows.dtype == np.uint8 for rows in quantized.values())
    for name, rows in quantized.items():
        original = originals[name]
        if rows.dtype != np.uint8:
            assert np.array_equal(rows, original), name
            continue
        columns = original.shape[1]
        back = decode(rows, columns, bits, group, symmetric)
        assert back.shape == original.shape, name
        for begin in range(0, columns, group):
            part, was = back[:, begin : begin + group], original[:, begin : begin + group]
            spread = np.abs(was).max(1) / (2 ** (bits - 1) - 1) if symmetric else np.ptp(was, axis=1) / (2**bits - 1)
            # Half a step, and what rounding the scale and the minimum to 16 bits adds.
            bound = spread * 0.51 + np.abs(was).max(1) * 2.0**-10
            assert (np.abs(part - was).max(1) <= bound).all(), (name, begin)
