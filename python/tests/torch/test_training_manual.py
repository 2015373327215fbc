# SPDX-License-Identifier: Apache-2.0
"""The examples of docs/checkpoints.md run as they stand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytest.importorskip("torch")
MANUAL = Path(__file__).resolve().parents[3] / "docs" / "checkpoints.md"


@pytest.mark.skipif(not MANUAL.is_file(), reason="no source checkout")
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_manual_s_examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", MANUAL.read_text(), flags=re.M | re.S)
    assert len(blocks) >= 2
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, str(MANUAL), "exec"), names)
    assert {path.name for path in (tmp_path / "run" / "checkpoints").glob("step-*")} == {"step-000100", "step-000200"}
    assert (tmp_path / "run" / "sharded" / ".metadata").is_file()
