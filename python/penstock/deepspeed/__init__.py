# SPDX-License-Identifier: Apache-2.0
"""DeepSpeed's asynchronous I/O operators and checkpoints, on Penstock.

`aio_handle`, `gds_handle`, `pin_handle`, `aio_read`, `aio_write` and `deepspeed_memcpy` have the names, arguments,
defaults and return values of DeepSpeed's own, so that code written for those runs on these. `install()` puts them under
a stock DeepSpeed in this process, whether it is imported already or not. Started as `python -m penstock.deepspeed
SCRIPT ...`, or with PENSTOCK_DEEPSPEED=1 in the environment, a program and its subprocesses have them from the start.

DeepSpeed's configuration can then also choose Penstock's checkpoint engine:
`"checkpoint": {"writer": {"type": "penstock", "decoupled": false}}`; `install(checkpoints="blocking")` makes it the one
that is used where the configuration says nothing.

Where a transfer fails, -1 is returned and the reason is logged (logger "penstock"); a failure is never reported as
success and never ends the process. Arguments of a wrong type raise.

Neither deepspeed nor torch is imported before something is done that needs it.
"""

from __future__ import annotations

from penstock.deepspeed._handle import aio_handle, aio_read, aio_write, deepspeed_memcpy, gds_handle
from penstock.deepspeed._install import install, installed, uninstall
from penstock.deepspeed._memory import pin_handle

__all__ = [
    "aio_handle",
    "aio_read",
    "aio_write",
    "deepspeed_memcpy",
    "gds_handle",
    "install",
    "installed",
    "pin_handle",
    "uninstall",
]
