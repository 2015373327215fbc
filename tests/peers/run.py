#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Compares penstock with the Python libraries: `run.py PENSTOCK [--venv DIR] [pytest arguments]`.

Makes a virtual environment from requirements.txt the first time (and again when that file changes), then runs
every test of this folder in it, and the Python package's own (python/tests) on libpenstock.so beside PENSTOCK. Needs
Python 3.11 with venv and pip; nothing is installed outside --venv.
PST_TEST_SEED replays a run with the seed that it printed.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import venv
from pathlib import Path

HERE = Path(__file__).resolve().parent
REQUIREMENTS = HERE / "requirements.txt"
PYTHON = HERE.parents[1] / "python"

NO_TESTS = 5  # pytest's status where the arguments select none


def prepare(folder: Path) -> Path:
    """The environment's interpreter; installs the requirements if they are new."""
    python = folder / "bin" / "python"
    stamp = folder / "requirements.sha256"
    digest = hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()
    if python.exists() and stamp.exists() and stamp.read_text() == digest:
        return python
    print(f"preparing {folder} (several hundred megabytes the first time)", flush=True)
    venv.create(folder, with_pip=True, clear=True)
    command = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", REQUIREMENTS]
    subprocess.run(command, check=True)
    stamp.write_text(digest)
    return python


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("penstock", type=Path, help="the built program")
    parser.add_argument("--venv", type=Path, default=HERE.parents[1] / "build" / "peers-venv")
    args, pytest_args = parser.parse_known_args()
    if not os.access(args.penstock, os.X_OK):
        print(f"run.py: {args.penstock} is no program", file=sys.stderr)
        return 2
    if sys.version_info < (3, 11):
        print("run.py: Python 3.11 or later is needed", file=sys.stderr)
        return 2
    python = prepare(args.venv.resolve())
    environment = {**os.environ, "PENSTOCK": str(args.penstock.resolve()), "HF_HUB_OFFLINE": "1"}
    environment["PYTHONDONTWRITEBYTECODE"] = "1"
    environment["PENSTOCK_LIBRARY"] = str(args.penstock.resolve().parent / "libpenstock.so")
    environment["PYTHONPATH"] = str(PYTHON)
    # Each folder by itself: they have modules of the same names.
    folders = [HERE, *sorted(path.parent for path in (PYTHON / "tests").glob("*/conftest.py"))]
    worst = 0
    for folder in folders:
        command = [python, "-m", "pytest", "-p", "no:cacheprovider", "-q", "-rs", folder, *pytest_args]
        status = subprocess.run(command, env=environment, cwd=folder).returncode
        if status != NO_TESTS or not pytest_args:
            worst = max(worst, status)
    return worst


if __name__ == "__main__":
    sys.exit(main())
