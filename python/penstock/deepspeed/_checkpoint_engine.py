# SPDX-License-Identifier: Apache-2.0
"""A checkpoint engine for DeepSpeed: its files, written and read by Penstock.

The files are those of DeepSpeed's own engine under the same names, so each loads what the other saved. What is added:

- a file appears when it is whole and durable;
- `latest` names a checkpoint when all ranks' files are durable, at one stroke. DeepSpeed's first rank writes it
when its
  own files are saved, over the old one. (`around_save` keeps it from doing so.)
- where one rank fails, all of them raise, and `latest` stays;
- decoupled: files are written while the next step computes. DeepSpeed waits for them before it changes the
parameters;
  `latest` is written as soon as all are durable, also when no step follows.

Ranks tell each other about their files through the store of torch.distributed, never through its collectives.
"""

from __future__ import annotations

import functools
import inspect
import logging
import os
import threading
from collections.abc import Callable, Mapping
from typing import Any

import penstock_deepspeed_hook as hook
from deepspeed.runtime.checkpoint_engine.checkpoint_engine import CheckpointEngine

from penstock import errors
from penstock._background import Begun, Image, make_folders, sync_folder, write_small
from penstock._ranks import RanksError, Talk, World
from penstock.deepspeed import _load

log = logging.getLogger("penstock")

NAME = "PenstockCheckpointEngine"
TIMEOUT_SECONDS = 1800.0  # as torch.distributed's default


class _Save:
    """What is between create() and commit()."""

    def __init__(self, info: Any, number: int, publishes: bool) -> None:
        self.info = info
        self.number = number
        self.publishes = publishes
        self.folder = os.path.abspath(info.save_dir)  # also when the program goes elsewhere meanwhile
        self.begun: list[tuple[Begun, Image]] = []
        self.error: BaseException | None = None
        self.thread: threading.Thread | None = None


class PenstockCheckpointEngine(CheckpointEngine):  # type: ignore[misc]
    """See the module. One thread, as DeepSpeed's engines."""

    def __init__(self, config_params: Any = None, decoupled: bool = False, trust_pickles: bool = False) -> None:
        super().__init__(config_params)
        self.name = NAME
        self._decoupled = decoupled
        self._trust_pickles = trust_pickles
        self._world = World.of_torch(timeout=TIMEOUT_SECONDS, name=NAME)
        self._number = 0
        self._save: _Save | None = None
        self._publishes_next = False

    # ---- DeepSpeed's interface ----

    def create(self, info: Any) -> None:
        if self._save is not None:
            self.commit(self._save.info)
        self._number += 1
        self._save = _Save(info, self._number, info.save_latest or self._publishes_next)
        self._publishes_next = False

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        if not exist_ok and os.path.exists(path):
            raise FileExistsError(path)
        make_folders(path)

    def save(self, state_dict: Any, path: str) -> None:
        """A failure is raised by commit(), on all ranks: they would wait there for a rank that raises here."""
        try:
            if self._save is None or not self._decoupled:
                self._write(state_dict, path)
            else:
                image = Image.of(_apart_from_buffers(state_dict), "pt", path)
                self._save.begun.append((image.begin(path), image))
        except Exception as problem:
            if self._save is None:
                raise
            log.error("%s was not saved: %s", path, problem)
            self._save.error = self._save.error or problem

    def load(self, path: str, map_location: Any = None) -> Any:
        if self._save is not None and self._decoupled:
            self._settle(self._save)
        return _load.load(path, map_location, self._trust_pickles)

    def commit(self, info: Any) -> bool:
        """All ranks: when the files of all are durable and `latest` names them. Raises what a rank failed with."""
        save = self._save
        if save is None or info != save.info:
            raise errors.UsageError(f"commit of {info}, but created was {None if save is None else save.info}")
        self._settle(save)
        self._save = None
        if save.error is not None:
            raise save.error
        return True

    def is_decoupled(self) -> bool:
        return self._decoupled

    def get_commit_info(self) -> Any:
        return self._save.info if self._decoupled and self._save is not None else None

    def cleanup(self) -> None:
        if self._save is not None:
            self.commit(self._save.info)

    # ---- what is behind it ----

    def publish_next(self) -> None:
        """`latest` shall name the checkpoint that is created next."""
        self._publishes_next = True

    def all_given(self) -> None:
        """Nothing more is saved until commit(). Decoupled: the rest happens beside the training."""
        if self._decoupled and self._save is not None:
            self._start(self._save)

    @staticmethod
    def _write(state_dict: Any, path: str) -> None:
        image = Image.of(state_dict, "pt", path)
        try:
            image.write(path)
        finally:
            image.release()

    def _start(self, save: _Save) -> None:
        if save.thread is None:
            # Not a daemon: what was begun is finished before the interpreter ends.
            save.thread = threading.Thread(target=self._finish, args=(save,), name="penstock-checkpoint")
            save.thread.start()

    def _settle(self, save: _Save) -> None:
        if not self._decoupled:
            self._finish(save)
            return
        self._start(save)
        assert save.thread is not None
        for begun, _ in list(save.begun):
            begun.hurry()  # the training stands still
        save.thread.join()

    def _finish(self, save: _Save) -> None:
        """Waits for this rank's files, tells the others, and publishes. What fails is in save.error."""
        try:
            self._wait_for_files(save)
        except Exception as problem:
            save.error = save.error or problem
        talk = self._world.talk(str(save.number))
        try:
            _share(talk, save.error)
            if save.publishes:
                self._publish(save, talk)
        except Exception as problem:
            save.error = save.error or problem
        if save.error is not None:
            log.error("checkpoint %s in %s failed: %s", save.info.tag, save.info.save_dir, save.error)
        talk.leave(30.0 if save.error is None else 3.0)

    def _publish(self, save: _Save, talk: Talk) -> None:
        problem: Exception | None = None
        if self._world.rank == 0:
            try:
                write_small(os.path.join(save.folder, "latest"), save.info.tag.encode(), ".latest.penstock")
            except Exception as why:
                problem = why
        _share(talk, problem)

    def _wait_for_files(self, save: _Save) -> None:
        error: BaseException | None = None
        for begun, image in save.begun:
            try:
                begun.durable()
            except Exception as problem:
                error = error or problem
            begun.end()
            image.release()
        save.begun = []
        if error is not None:
            raise error
        folder = os.path.join(save.folder, save.info.tag)
        # Copies that DeepSpeed makes of a state that is offloaded to a drive.
        for above, _, names in os.walk(os.path.join(folder, "offloaded_tensors")):
            for name in names:
                _sync_file(os.path.join(above, name))
            sync_folder(above)
        for one in (folder, save.folder):
            if os.path.isdir(one):
                sync_folder(one)


def _share(talk: Talk, problem: BaseException | None) -> None:
    """All ranks: raises what this one, or another, failed with."""
    told = talk.all_gather(b"" if problem is None else (str(problem) or type(problem).__name__).encode())
    if problem is not None:
        raise problem
    failed = [f"rank {rank}: {why.decode()}" for rank, why in enumerate(told) if why]
    if failed:
        raise RanksError("; ".join(failed))


def _sync_file(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _apart_from_buffers(state: Any) -> Any:
    """Parameters stay as they are until the step that DeepSpeed commits before; buffers (running averages and the
    like) change in every forward pass, so they are copied."""
    if not isinstance(state, Mapping):
        return state
    module, names = state.get("module"), state.get("buffer_names")
    if not isinstance(module, dict) or not names:
        return state
    copied = type(module)(module)
    if hasattr(module, "_metadata"):
        copied._metadata = module._metadata  # type: ignore[attr-defined]
    for name in names:
        if hasattr(copied.get(name), "clone"):
            copied[name] = copied[name].clone()
    return {**state, "module": copied}


def around_save(save_checkpoint: Callable[..., Any]) -> Callable[..., Any]:
    """DeepSpeedEngine.save_checkpoint, with `latest` written by this engine where it is used."""
    signature = inspect.signature(save_checkpoint)

    @functools.wraps(save_checkpoint)
    def around(self: Any, *arguments: Any, **keywords: Any) -> Any:
        engine = getattr(self, "checkpoint_engine", None)
        if not isinstance(engine, PenstockCheckpointEngine):
            return save_checkpoint(self, *arguments, **keywords)
        given = signature.bind(self, *arguments, **keywords)
        given.apply_defaults()
        if given.arguments.get("save_latest"):
            given.arguments["save_latest"] = False
            engine.publish_next()
        done = save_checkpoint(*given.args, **given.kwargs)
        engine.all_given()
        return done

    return around


TRUST = "trust_pickles"


def around_writer_config(get_writer_config: Callable[..., Any]) -> Callable[..., Any]:
    """DeepSpeed's reading of the writer's configuration, with what is of this engine."""

    @functools.wraps(get_writer_config)
    def around(param_dict: Any) -> Any:
        config = get_writer_config(param_dict)
        if config and config.get("type") == hook.WRITER_TYPE:
            trusted = param_dict["writer"].get(TRUST, False)
            if not isinstance(trusted, bool):
                raise errors.UsageError(f"{TRUST} of a checkpoint writer is true or false, not {trusted!r}")
            config[TRUST] = trusted
        return config

    return around


def around_create(
    create: Callable[..., Any], default: Callable[[], str | None], trusts: Callable[[], bool]
) -> Callable[..., Any]:
    """create_checkpoint_engine, with this engine where the configuration asks for it, or, where it says nothing,
    `default`: None, "blocking" or "decoupled". `trusts`: whether pickles are trusted whatever it says."""

    @functools.wraps(create)
    def around(config_params: Any, *arguments: Any, **keywords: Any) -> Any:
        writer = None if config_params is None else config_params.checkpoint_config.get("writer")
        if writer is None:
            kind = default()
        else:
            kind = None if writer["type"] != hook.WRITER_TYPE else "decoupled" if writer["decoupled"] else "blocking"
        if kind is None:
            return create(config_params, *arguments, **keywords)
        trusted = trusts() or bool(writer and writer.get(TRUST))
        return PenstockCheckpointEngine(config_params, decoupled=kind == "decoupled", trust_pickles=trusted)

    return around
