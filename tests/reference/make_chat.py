# SPDX-License-Identifier: Apache-2.0
"""Writes chat/cases.json: conversations and what transformers' apply_chat_template makes of them, with the templates of
chat/templates (in the styles of the field's families) and with random ones. --check compares with the stored file."""

from __future__ import annotations

import argparse
import json
import re
import sys
import warnings
from pathlib import Path

import chat_samples as samples

HERE = Path(__file__).resolve().parent / "chat"
SEED = 20261121
# What Python may make of these in an expression is not promised: see samples.is_peculiar.
LAZY = r"\[[^\]]*:[^\]]*\]|\| *(select|unique|map|reject|items|batch)|\*\*"


def agreed(case: dict) -> dict | None:
    """The case with its text; None for what is not promised to be as Python has it."""
    made = samples.render(case)
    if samples.is_peculiar(case, made):
        return None
    if "text" in made and re.search(LAZY, case["template"]) and "name" not in case:
        return None
    return case | ({"text": made["text"]} if "text" in made else {"fails": True})


def cases() -> list[dict]:
    """All that is stored."""
    made = []
    for path in sorted((HERE / "templates").glob("*.jinja")):
        conversations = samples.Conversations(SEED + len(path.name))
        for _ in range(24):
            made.append(agreed(conversations.case() | {"template": path.read_text(encoding="utf-8"), "name": path.name}))
    templates = samples.Templates(SEED)
    for number in range(1200):
        case = agreed(templates.case(whole=number % 3 == 0))
        if case is not None and ("text" in case or number % 8 == 0):
            case.pop("variables")
            made.append(case)
    return [case for case in made if case is not None]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare with the stored file instead of writing it")
    check = parser.parse_args().check
    warnings.simplefilter("ignore")
    templates: dict[str, str] = {}
    lines = []
    for case in cases():
        name = case.pop("name", None)
        if name is not None:
            templates[name] = case.pop("template")
            case["file"] = name
        lines.append(json.dumps(case, ensure_ascii=False, separators=(",", ":")))
    head = {"config": samples.CONFIG, "time": samples.TIME, "variables": samples.VARIABLES}
    text = json.dumps(head, ensure_ascii=False)[:-1] + ',\n"cases":[\n' + ",\n".join(lines) + "\n]}\n"
    stored = HERE / "cases.json"
    if not check:
        stored.write_text(text, encoding="utf-8")
        print(f"{len(lines)} cases, {len(text)} bytes")
        return 0
    if stored.is_file() and stored.read_text(encoding="utf-8") == text:
        return 0
    print("differs: chat/cases.json", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
