# SPDX-License-Identifier: Apache-2.0
"""The program `penstock` of an installed wheel: the C program beside this module takes this process over."""

import os
import sys
from pathlib import Path


def main() -> None:
    program = Path(__file__).resolve().parent / "bin" / "penstock"
    try:
        os.execv(program, ["penstock", *sys.argv[1:]])
    except OSError as problem:
        sys.exit(f"penstock: error: cannot start {program}: {problem.strerror}")
