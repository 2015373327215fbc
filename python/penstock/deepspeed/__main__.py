# SPDX-License-Identifier: Apache-2.0
"""python -m penstock.deepspeed [--checkpoints blocking|decoupled] SCRIPT [ARGUMENTS...], or -m MODULE [ARGUMENTS...]:
runs a program with Penstock's operators under DeepSpeed, and, with --checkpoints, its checkpoint engine. Where
Penstock is installed, its subprocesses have them too, by the environment variable PENSTOCK_DEEPSPEED, which
penstock_deepspeed.pth in site-packages looks at."""

from __future__ import annotations

import os
import runpy
import sys

from penstock.deepspeed import install

USAGE = (
    "usage: python -m penstock.deepspeed [--checkpoints blocking|decoupled] "
    "SCRIPT [ARGUMENTS...] | -m MODULE [ARGUMENTS...]"
)


def main() -> None:
    arguments = sys.argv[1:]
    if arguments and arguments[0] in ("-h", "--help"):
        print(USAGE)
        return
    checkpoints = None
    if arguments and arguments[0] == "--checkpoints":
        checkpoints = arguments[1] if len(arguments) > 1 else ""
        arguments = arguments[2:]
    by_module = bool(arguments) and arguments[0] == "-m"
    if by_module:
        arguments = arguments[1:]
    if not arguments or arguments[0].startswith("-") or checkpoints not in (None, "blocking", "decoupled"):
        print(USAGE, file=sys.stderr)
        sys.exit(2)
    os.environ["PENSTOCK_DEEPSPEED"] = checkpoints or "1"
    install(checkpoints)
    sys.argv = arguments
    if by_module:
        sys.path[0] = os.getcwd()
        runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
    else:
        sys.path[0] = os.path.dirname(os.path.abspath(arguments[0]))
        runpy.run_path(arguments[0], run_name="__main__")


if __name__ == "__main__":
    main()
