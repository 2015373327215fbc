# SPDX-License-Identifier: Apache-2.0
"""A thread that closes files which no transfer used for a while. It is there as long as a handle keeps some open."""

from __future__ import annotations

import os
import threading
import weakref
from typing import Any

_changed = threading.Condition()
_handles: weakref.WeakSet[Any] = weakref.WeakSet()  # with open files
_thread: threading.Thread | None = None
_stop = False


def add(handle: Any) -> None:
    """The handle has opened a file. It has close_idle_files(), which returns whether any are left."""
    global _thread
    if handle in _handles and _thread is not None:
        return
    with _changed:
        _handles.add(handle)
        if _thread is None and not _stop:
            _thread = threading.Thread(target=_run, name="penstock-files", daemon=True)
            _thread.start()


def remove(handle: Any) -> None:
    """The handle has closed all."""
    with _changed:
        _handles.discard(handle)
        _changed.notify()


def _run() -> None:
    global _thread
    while True:
        with _changed:
            if not _stop and _handles:
                _changed.wait(1.0)
            if _stop or not _handles:
                _thread = None
                return
            handles = list(_handles)
        for handle in handles:
            if not handle.close_idle_files():
                with _changed:
                    _handles.discard(handle)
        del handles  # a handle that nobody else has must be able to go
        handle = None


def stop() -> None:
    """At exit."""
    global _stop
    with _changed:
        _stop = True
        thread = _thread
        _changed.notify()
    if thread is not None:
        thread.join()


def _after_fork() -> None:
    global _changed, _thread
    _changed = threading.Condition()
    _handles.clear()
    _thread = None


os.register_at_fork(after_in_child=_after_fork)
