# SPDX-License-Identifier: Apache-2.0
"""Fixtures: the seed of this run. Files go to pytest's own temporary folder, which is removed where tests passed."""

from __future__ import annotations

import os
import random
import secrets

import pytest

SEED = int(os.environ["PST_TEST_SEED"], 0) if os.environ.get("PST_TEST_SEED") else secrets.randbits(31)


def pytest_report_header(config: pytest.Config) -> str:
    return f"PST_TEST_SEED={SEED}   (set it to replay this run)"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    terminalreporter.write_line(f"PST_TEST_SEED={SEED}")


@pytest.fixture
def rng() -> random.Random:
    return random.Random(SEED)
