# SPDX-License-Identifier: Apache-2.0
"""The examples of docs/python.md run as they stand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

MANUAL = Path(__file__).resolve().parents[3] / "docs" / "python.md"


@pytest.mark.skipif(not MANUAL.is_file(), reason="no source checkout")
def test_the_manual_s_examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", MANUAL.read_text(), flags=re.M | re.S)
    assert len(blocks) >= 4
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, str(MANUAL), "exec"), names)
    assert (tmp_path / "weights.bin").stat().st_size == 4_000_000
    assert sum(p.stat().st_size for p in tmp_path.glob("drive*/weights")) == 4_000_000
