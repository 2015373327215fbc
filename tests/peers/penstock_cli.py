# SPDX-License-Identifier: Apache-2.0
"""Runs the penstock program under test and reads what it prints."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from pathlib import Path

import numpy as np

LIMIT_SECONDS = 300


class Penstock:
    """The program; every call is one process."""

    def __init__(self, program: Path) -> None:
        self.program = program

    def run(
        self, *args: object, stdin: bytes = b"", check: bool = True
    ) -> subprocess.CompletedProcess[bytes]:
        """One command; fails with its error line unless `check` is false."""
        command = [str(self.program), *map(str, args)]
        done = subprocess.run(command, input=stdin, capture_output=True, timeout=LIMIT_SECONDS)
        if check and done.returncode != 0:
            shown = " ".join(a if len(a) < 200 else a[:200] + "..." for a in command)
            raise AssertionError(
                f"{shown}: exit {done.returncode}: {done.stderr.decode(errors='replace')[-2000:]}"
            )
        return done

    def json(self, *args: object) -> dict:
        """One command with --json; its whole output must be one JSON document."""
        return json.loads(self.run(*args, "--json").stdout)

    def logits(self, folder: Path, ids: list[int], *options: object) -> np.ndarray:
        """`score --logits-out`: (tokens, vocabulary), float32."""
        with tempfile.TemporaryDirectory(prefix="penstock-peers-") as temp:
            out = Path(temp) / "logits.npy"
            self.run("score", folder, "--token-ids", joined(ids), "--logits-out", out, *options)
            logits = np.load(out, allow_pickle=False)
        assert logits.dtype == np.float32, logits.dtype
        return logits

    def greedy(self, folder: Path, ids: list[int], count: int, *options: object) -> list[int]:
        """`generate` with `count` tokens and no end token: the new ids."""
        fixed = ("--ignore-eos", "--temperature", 0, "--max-new-tokens", count)
        answer = self.json("generate", folder, "--token-ids", joined(ids), *fixed, *options)
        return answer["results"][0]["token_ids"]

    def tokenize(self, folder: Path, texts: list[str], *options: object) -> list[list[int]]:
        """`tokenize --jsonl`: ids of each string."""
        return self._lines(folder, texts, *options)

    def decode(self, folder: Path, sequences: list[list[int]], *options: object) -> list[str]:
        """`tokenize --decode --jsonl`: text of each sequence."""
        return self._lines(folder, sequences, "--decode", *options)

    def _lines(self, folder: Path, items: list, *options: object) -> list:
        with tempfile.NamedTemporaryFile(
            "w", prefix="penstock-peers-", suffix=".jsonl", encoding="utf-8"
        ) as file:
            file.writelines(json.dumps(item, ensure_ascii=False) + "\n" for item in items)
            file.flush()
            done = self.run("tokenize", folder, "--jsonl", file.name, *options)
        out = [json.loads(line) for line in done.stdout.decode("utf-8").split("\n") if line]
        assert len(out) == len(items), f"{len(items)} lines in, {len(out)} out"
        return out


def joined(ids: list[int]) -> str:
    """1,2,3"""
    return ",".join(map(str, ids))


def find_program() -> Path:
    """The program named by PENSTOCK."""
    return Path(os.environ["PENSTOCK"])
