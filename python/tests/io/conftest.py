# SPDX-License-Identifier: Apache-2.0
"""Fixtures: an I/O handle, files with known contents, the seed of this run, counts of threads and descriptors."""

from __future__ import annotations

import os
import random
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest
from penstock.io import IO
from resources import Resources

SEED = int(os.environ["PST_TEST_SEED"], 0) if os.environ.get("PST_TEST_SEED") else secrets.randbits(31)


def pytest_report_header(config: pytest.Config) -> str:
    return f"PST_TEST_SEED={SEED}   (set it to replay this run)"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    terminalreporter.write_line(f"PST_TEST_SEED={SEED}")


@pytest.fixture
def rng() -> random.Random:
    return random.Random(SEED)


@pytest.fixture
def io() -> Iterator[IO]:
    with IO() as handle:
        yield handle


@pytest.fixture
def contents(rng: random.Random) -> bytes:
    """A megabyte and a ragged end."""
    return rng.randbytes((1 << 20) + 777)


@pytest.fixture
def path(tmp_path: Path, contents: bytes) -> Path:
    """A file with `contents`."""
    file = tmp_path / "data.bin"
    file.write_bytes(contents)
    return file


@pytest.fixture
def resources() -> Resources:
    return Resources()
