# SPDX-License-Identifier: Apache-2.0
"""I/O engines that misbehave on purpose, for tests of what stands on `penstock.io`.

with FaultEngine("threads", delay=(0.01, 0.02), rate=0.1, seed=1) as engine, IO(engine=engine) as io: ...
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterable, Sequence
from ctypes import byref, c_int, c_void_p
from typing import Any

from penstock import _native as native
from penstock._native import lib
from penstock.errors import UsageError

FAULTS = {
    "error": native.FAULT_ERROR,
    "short": native.FAULT_SHORT,
    "delay": native.FAULT_DELAY,
    "reorder": native.FAULT_REORDER,
    "torn": native.FAULT_TORN,
}


class FaultEngine:
    """Wraps an engine (by name, or another FaultEngine; None: what "auto" would choose).

    `faults`: which of "error", "short", "delay", "reorder" and "torn" may strike. `rate`: the chance that a request is
    struck; besides, `times` requests from number `at` on are. `delay`: seconds, least and most. `errors`: errno values
    to fail with. The same seed, workload and a single worker give the same faults.
    """

    def __init__(
        self,
        inner: str | FaultEngine | None = None,
        faults: Iterable[str] = (),
        *,
        rate: float = 1.0,
        seed: int = 0,
        at: int = 0,
        times: int = 0,
        reads: bool = True,
        writes: bool = True,
        errors: Sequence[int] = (),
        delay: tuple[float, float] = (0.0, 0.002),
        reorder_window: int = 0,
    ) -> None:
        chosen = 0
        for name in faults:
            if name not in FAULTS:
                raise UsageError(f"there is no fault {name!r} ({', '.join(FAULTS)})")
            chosen |= FAULTS[name]
        values = (c_int * len(errors))(*errors)
        options = native.sized(
            native.FaultOptions,
            faults=chosen,
            seed=seed,
            rate=rate,
            at=at,
            times=times,
            reads=reads,
            writes=writes,
            errors=ctypes.cast(values, ctypes.POINTER(c_int)) if errors else None,
            error_count=len(errors),
            min_delay_ns=int(delay[0] * 1e9),
            max_delay_ns=int(delay[1] * 1e9),
            reorder_window=reorder_window,
        )
        self._inner = inner  # it outlives the wrapper
        self._pid = os.getpid()
        out = c_void_p()
        table = inner.table if isinstance(inner, FaultEngine) else None
        name_ = inner.encode() if isinstance(inner, str) else None
        native.call(lib.pst_io_fault_create, table, name_, byref(options), byref(out))
        self.table: int | None = out.value

    def counts(self) -> dict[str, int]:
        """Requests seen, and struck by each fault."""
        out = native.FaultCounts()
        lib.pst_io_fault_get_counts(self.table, byref(out))
        return {name: getattr(out, name) for name, *_ in out._fields_}

    def __enter__(self) -> FaultEngine:
        return self

    def __exit__(self, *_: Any) -> None:
        """It goes when the last handle that uses it does."""

    def __del__(self) -> None:
        table = getattr(self, "table", None)
        # At the interpreter's end a handle that a pool keeps open may still use it.
        if table is not None and self._pid == os.getpid() and not sys.is_finalizing():
            self.table = None
            lib.pst_io_fault_destroy(table)
