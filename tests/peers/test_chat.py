# SPDX-License-Identifier: Apache-2.0
"""Chat templates against transformers: random conversations through the stored templates, and random templates."""

from __future__ import annotations

import json
import subprocess
import warnings

import chat_samples as samples
import pytest
from conftest import CASES, penstock_cli

TEMPLATES = sorted((CASES.parent / "chat" / "templates").glob("*.jinja"))
SHOWN = 5


def ours(cases: list[dict]) -> list[dict]:
    """chat_dump's answers."""
    program = penstock_cli.find_program().parent / "tests" / "reference" / "chat_dump"
    head = {"config": samples.CONFIG, "time": samples.TIME}
    text = "".join(json.dumps(case | head) + "\n" for case in cases)
    done = subprocess.run([program], input=text.encode(), capture_output=True, check=True, timeout=600)
    answers = [json.loads(line) for line in done.stdout.split(b"\n") if line]
    assert len(answers) == len(cases)
    return answers


def compare(cases: list[dict], peculiar: float) -> None:
    """The same text, or a failure of both. peculiar: the share of cases where Penstock may mean to differ."""
    warnings.simplefilter("ignore")
    wrong, meant, failed = [], 0, 0
    for case, got in zip(cases, ours(cases), strict=True):
        wanted = samples.render(case)
        failed += "error" in wanted
        if got == wanted or ("error" in got and "error" in wanted):
            continue
        if samples.is_peculiar(case, wanted, got.get("error", "")):
            meant += 1
        else:
            wrong.append(f"{case['template']}\n  got    {got}\n  wanted {wanted}")
    assert not wrong, f"{len(wrong)} of {len(cases)} differ\n" + "\n".join(wrong[:SHOWN])
    assert meant <= peculiar * len(cases), f"{meant} of {len(cases)} are said to be peculiar"
    assert failed < 0.9 * len(cases)


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_conversations(seed: int, path: object) -> None:
    conversations = samples.Conversations(seed)
    template = path.read_text(encoding="utf-8")
    compare([conversations.case() | {"template": template} for _ in range(300)], 0)


@pytest.mark.parametrize("whole", [False, True], ids=["expressions", "templates"])
def test_random_templates(seed: int, whole: bool) -> None:
    templates = samples.Templates(seed + whole)
    compare([templates.case(whole) for _ in range(1500)], 0.02)
