# SPDX-License-Identifier: Apache-2.0
"""Interpreters of their own for tests."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

PYTHON = Path(__file__).resolve().parents[2]


def run_python(code: str, *arguments: str, check: bool = True, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs code in an interpreter of its own, which finds the package where this one does."""
    paths = [str(PYTHON), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), **environment},
        capture_output=True,
        text=True,
        timeout=900,  # stock DeepSpeed compiles its operator, minutes on a busy machine
    )
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done
