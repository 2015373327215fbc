# SPDX-License-Identifier: Apache-2.0
"""Puts the operators under a stock DeepSpeed.

DeepSpeed keeps the operators that it has loaded in a dictionary of its OpBuilder, and the one for locked memory in an
attribute of sys. With ours in there it never builds or loads its own: neither a compiler nor libaio's headers are
needed. Where DeepSpeed is not imported yet, this is done at the moment when it is (`penstock_deepspeed_hook`).

Its engine for training chooses a checkpoint engine by the configuration; ours is one more that can be chosen.
"""

from __future__ import annotations

import logging
import sys
import types
from typing import Any

import penstock_deepspeed_hook as hook

from penstock import _native
from penstock.deepspeed import _handle, _memory
from penstock.errors import UsageError

log = logging.getLogger("penstock")

PIN_ATTRIBUTE = "_deepspeed_pin_memory_op_module"
_NOTHING = object()

# What was there before, to be put back: (where, name, value or _NOTHING).
_before: list[tuple[Any, str, Any]] = []
_modules: dict[str, types.ModuleType] = {}

CHECKPOINTS = ("blocking", "decoupled")
_checkpoints: str | None = None  # what is used where the configuration says nothing
_trust_pickles = False


def _module(name: str, *members: Any) -> types.ModuleType:
    """A module without a file, as an operator of DeepSpeed."""
    if name not in _modules:
        module = types.ModuleType(f"penstock.deepspeed.{name}", "An operator of DeepSpeed, by Penstock.")
        for member in members:
            setattr(module, member.__name__, member)
        _modules[name] = module
    return _modules[name]


def _operators() -> dict[str, types.ModuleType]:
    functions = (_handle.aio_read, _handle.aio_write, _handle.deepspeed_memcpy)
    return {
        "async_io": _module("async_io_op", _handle.aio_handle, *functions),
        "gds": _module("gds_op", _handle.gds_handle, *functions),
        "pin_memory": _module("pin_memory_op", _memory.pin_handle),
    }


def _replace(where: Any, name: str, value: Any) -> None:
    if isinstance(where, dict):
        _before.append((where, name, where.get(name, _NOTHING)))
        where[name] = value
    else:
        _before.append((where, name, vars(where).get(name, _NOTHING)))
        setattr(where, name, value)


def _patch(name: str, module: types.ModuleType) -> None:
    """A module of DeepSpeed was imported just now, or is there."""
    kind = hook.kind_of(name)
    if kind == "builder":
        for operator_name, operator_module in _operators().items():
            _replace(module.OpBuilder._loaded_ops, operator_name, operator_module)
    elif kind == "async_io":
        # It looks for libaio, and the GDS one for cuFile besides.
        _replace(module.AsyncIOBuilder, "is_compatible", _is_compatible)
    elif kind == "ops":
        if "__compatible_ops__" in vars(module):
            _replace(vars(module)["__compatible_ops__"], "async_io", True)
        elif "_probe_compatible_ops" in vars(module):  # asked for later
            _replace(module, "_probe_compatible_ops", _probing(module._probe_compatible_ops))
    elif kind == "writers":
        known = module.VALID_VALUES[module.CHECKPOINT_WRITER_TYPE]
        _replace(module.VALID_VALUES, module.CHECKPOINT_WRITER_TYPE, [*known, hook.WRITER_TYPE])
        _replace(module, "get_checkpoint_writer_config", _reading(module.get_checkpoint_writer_config))
    elif kind == "engine":
        _patch_engine(module)


def _patch_engine(module: types.ModuleType) -> None:
    from penstock.deepspeed import _checkpoint_engine as ours

    create = ours.around_create(module.create_checkpoint_engine, _default, _trusts)
    _replace(module, "create_checkpoint_engine", create)
    _replace(module.DeepSpeedEngine, "save_checkpoint", ours.around_save(module.DeepSpeedEngine.save_checkpoint))


def _reading(get_writer_config: Any) -> Any:
    def get_checkpoint_writer_config(param_dict: Any) -> Any:
        from penstock.deepspeed import _checkpoint_engine as ours  # not before DeepSpeed itself is there

        return ours.around_writer_config(get_writer_config)(param_dict)

    return get_checkpoint_writer_config


def _default() -> str | None:
    return _checkpoints


def _trusts() -> bool:
    return _trust_pickles


def _is_compatible(self: Any, verbose: bool = False) -> bool:
    return True


def _probing(probe: Any) -> Any:
    def probe_compatible_ops() -> dict[str, bool]:
        found: dict[str, bool] = probe()
        found["async_io"] = True
        return found

    return probe_compatible_ops


def _use_pin_operator() -> None:
    theirs = getattr(sys, PIN_ATTRIBUTE, None)
    if theirs is not None:
        # Tensors that it locked may be there, and are as good.
        _memory.foreign_is_pinned = theirs.pin_handle().is_pinned
    _replace(sys, PIN_ATTRIBUTE, _operators()["pin_memory"])


def install(checkpoints: str | bool | None = None, *, trust_pickles: bool | None = None) -> None:
    """Puts the operators under DeepSpeed in this process: now if it is imported, else when it will be. Handles that
    DeepSpeed has made before stay what they are. Once installed, it does nothing but to take note of `checkpoints`:
    which checkpoint engine is used where DeepSpeed's configuration names none. None: DeepSpeed's own; "blocking" (or
    True) and "decoupled": Penstock's; and of `trust_pickles`: whether Penstock's loads a checkpoint that holds objects
    of unknown classes by torch.load, which executes what the file says. Else such a checkpoint is refused. Raises
    LibraryError where the C library cannot be loaded."""
    global _checkpoints, _trust_pickles
    if checkpoints is True:
        checkpoints = "blocking"
    if checkpoints and checkpoints not in CHECKPOINTS:
        raise UsageError(f"checkpoints={checkpoints!r} is none of {', '.join(CHECKPOINTS)}")
    _checkpoints = checkpoints or _checkpoints
    _trust_pickles = _trust_pickles if trust_pickles is None else trust_pickles
    if _before:
        return
    _native.lib.load()  # fails here and now, or never
    _use_pin_operator()
    for name in list(sys.modules):
        module = sys.modules.get(name)
        if isinstance(module, types.ModuleType) and hook.kind_of(name) is not None and not hook.is_importing(module):
            _patch(name, module)
    hook.on_import(_patch)


def uninstall() -> None:
    """Puts back what install() replaced. Handles and engines that were made meanwhile go on working."""
    global _checkpoints, _trust_pickles
    _checkpoints, _trust_pickles = None, False
    hook.on_import(None)
    while _before:
        where, name, value = _before.pop()
        if isinstance(where, dict):
            if value is _NOTHING:
                where.pop(name, None)
            else:
                where[name] = value
        elif value is _NOTHING:
            delattr(where, name)
        else:
            setattr(where, name, value)
    _memory.foreign_is_pinned = None


def installed() -> bool:
    return bool(_before)
