# SPDX-License-Identifier: Apache-2.0
"""Fixtures: the program, the seed of this run, the I/O engines that work here."""

from __future__ import annotations

import os
import secrets
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "reference"))
sys.path.insert(0, str(HERE))

import penstock_cli

REPOSITORY = HERE.parents[1]
CASES = HERE.parent / "reference" / "cases"
TOKENIZERS = HERE.parent / "reference" / "tokenizers"
SEED = int(os.environ["PST_TEST_SEED"], 0) if os.environ.get("PST_TEST_SEED") else secrets.randbits(31)


def pytest_report_header(config: pytest.Config) -> str:
    return f"PST_TEST_SEED={SEED}   (set it to replay this run)"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    terminalreporter.write_line(f"PST_TEST_SEED={SEED}")


@pytest.fixture(scope="session")
def seed() -> int:
    """The seed of this run: fresh, or PST_TEST_SEED."""
    return SEED


@pytest.fixture(scope="session")
def penstock() -> penstock_cli.Penstock:
    """The program under test."""
    return penstock_cli.Penstock(penstock_cli.find_program())


@pytest.fixture(scope="session")
def engines(penstock: penstock_cli.Penstock) -> list[str]:
    """I/O engines to ask for by name. io_uring is left out where the kernel refuses it, and only then."""
    options = ("score", CASES / "llama_mha", "--token-ids", "5,6", "--io-engine", "io_uring")
    probe = penstock.run(*options, check=False)
    if probe.returncode == 0:
        return ["io_uring", "threads"]
    assert b"io_uring" in probe.stderr, probe.stderr
    return ["threads"]
