# SPDX-License-Identifier: Apache-2.0
"""Counts of what a process has, to see that nothing is left."""

from __future__ import annotations

import gc
import os
import time


class Resources:
    """Threads and descriptors of this process."""

    def __init__(self) -> None:
        self.before = self.now()

    @staticmethod
    def now() -> tuple[int, int]:
        gc.collect()
        return len(os.listdir("/proc/self/task")), len(os.listdir("/proc/self/fd"))

    def assert_back(self) -> None:
        """As many as before. A thread that was joined may be a moment in leaving the system's list."""
        end = time.monotonic() + 5
        while self.now() != self.before and time.monotonic() < end:
            time.sleep(0.01)
        assert self.now() == self.before, "(threads, descriptors) now and before"
