# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the tests of penstock.deepspeed: handles, random bytes, the log, handles that fail on purpose."""

from __future__ import annotations

import ctypes
import logging
import os
import secrets
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest
from penstock import _native
from penstock import deepspeed as ours
from penstock.deepspeed import _handle

if TYPE_CHECKING:
    import torch

SEED = int(os.environ["PST_TEST_SEED"], 0) if os.environ.get("PST_TEST_SEED") else secrets.randbits(31)


def pytest_report_header(config: pytest.Config) -> str:
    return f"PST_TEST_SEED={SEED}   (set it to replay this run)"


@pytest.fixture()
def generator() -> torch.Generator:
    import torch

    return torch.Generator().manual_seed(SEED)


@pytest.fixture()
def random_bytes(generator: torch.Generator) -> Callable[[int], torch.Tensor]:
    """A tensor of so many random bytes."""
    import torch

    return lambda count: torch.randint(0, 256, (count,), dtype=torch.uint8, generator=generator)


@pytest.fixture()
def handles() -> Iterator[Callable[..., ours.aio_handle]]:
    """Makes handles that are closed after the test."""
    made: list[ours.aio_handle] = []

    def make(*arguments: Any, **keywords: Any) -> ours.aio_handle:
        made.append(ours.aio_handle(*arguments, **keywords))
        return made[-1]

    yield make
    for handle in made:
        handle.close()


@pytest.fixture()
def complaints(caplog: pytest.LogCaptureFixture) -> Callable[[], str]:
    """What was logged as an error since the last call; a test that expects an error must ask."""
    caplog.set_level(logging.ERROR, "penstock")

    def said() -> str:
        text = "\n".join(record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR)
        caplog.clear()
        return text

    return said


@pytest.fixture()
def failing(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., ours.aio_handle]]:
    """Makes a handle whose I/Os fail: failing(kind, **options of the fault wrapper)."""
    engines: list[int] = []
    made: list[ours.aio_handle] = []

    def make(kind: int, handle: dict[str, Any] | None = None, error: int = 5, **options: Any) -> ours.aio_handle:
        codes = (ctypes.c_int * 1)(error)
        out = ctypes.c_void_p()
        _native.call(
            _native.lib.pst_io_fault_create,
            None,
            None,
            ctypes.byref(_native.sized(_native.FaultOptions, faults=kind, errors=codes, error_count=1, **options)),
            ctypes.byref(out),
        )
        assert out.value is not None
        engines.append(out.value)
        monkeypatch.setattr(_handle, "engine_table", out.value)
        made.append(ours.aio_handle(**(handle or {})))
        monkeypatch.setattr(_handle, "engine_table", None)
        return made[-1]

    yield make
    for one in made:
        one.close()
    for engine in engines:
        _native.lib.pst_io_fault_destroy(engine)
