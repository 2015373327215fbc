# SPDX-License-Identifier: Apache-2.0
"""Notices when DeepSpeed is imported, so that Penstock's operators are put under it.

The file penstock_deepspeed.pth, which lies beside this one in an installation, imports this module at the start of
every interpreter whose environment says PENSTOCK_DEEPSPEED=1. So nothing is imported here before DeepSpeed is.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False  # typing's own takes longer to import than all this
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any

VARIABLE = "PENSTOCK_DEEPSPEED"
WRITER_TYPE = "PENSTOCK"  # in DeepSpeed's configuration, which makes it upper case

# In a checkout of DeepSpeed, op_builder is a package of its own too.
_KINDS = {
    "deepspeed.ops": "ops",
    "deepspeed.ops.op_builder.builder": "builder",
    "op_builder.builder": "builder",
    "deepspeed.runtime.model_checkpointing.config": "writers",
    "deepspeed.runtime.engine": "engine",
}

_patch: Callable[[str, ModuleType], None] | None = None


def kind_of(name: str) -> str | None:
    """What a module is to us: one of the values above, "async_io" or nothing."""
    if not name.startswith(("deepspeed.", "op_builder.")):
        return None
    kind = _KINDS.get(name)
    if kind is None and name.endswith(".async_io") and name.startswith(("deepspeed.ops.op_builder.", "op_builder.")):
        return "async_io"
    return kind


def is_importing(module: ModuleType) -> bool:
    """Whether its code has not run to the end."""
    return bool(getattr(getattr(module, "__spec__", None), "_initializing", False))


def _install_first(name: str, module: ModuleType) -> None:
    """The first module of DeepSpeed in a process that the environment asks for: install() does the rest. A failure is
    told and not raised: the import goes on, with DeepSpeed's own operators."""
    global _patch
    if _patch is _install_first:
        _patch = None
    try:
        from penstock import deepspeed

        value = os.environ.get(VARIABLE, "")
        deepspeed.install(checkpoints=value if value in ("blocking", "decoupled") else None)
        if _patch is not None:
            _patch(name, module)
    except Exception as problem:
        import warnings

        warnings.warn(
            f"{VARIABLE} is set, but DeepSpeed keeps its own operators: {problem}", RuntimeWarning, stacklevel=2
        )


class _Finder:
    """Finds the modules as others do, and looks at them when their code has run."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if _patch is None or kind_of(name) is None:
            return None
        for finder in sys.meta_path:
            if finder is self or not hasattr(finder, "find_spec"):
                continue
            spec = finder.find_spec(name, path, target)
            if spec is not None:
                if spec.loader is not None:
                    _watch(spec.loader)
                return spec
        return None


def _watch(loader: Any) -> None:
    execute = loader.exec_module

    def exec_module(module: ModuleType) -> None:
        execute(module)
        if _patch is not None:
            _patch(module.__name__, module)

    loader.exec_module = exec_module


_finder = _Finder()


def on_import(patch: Callable[[str, ModuleType], None] | None) -> None:
    """From now on calls patch(name, module) for each module of DeepSpeed that matters, when it was imported."""
    global _patch
    _patch = patch
    if _finder in sys.meta_path:
        sys.meta_path.remove(_finder)
    if patch is not None:
        sys.meta_path.insert(0, _finder)


if os.environ.get(VARIABLE, "0") not in ("", "0"):
    on_import(_install_first)
