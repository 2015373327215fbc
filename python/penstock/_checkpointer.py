# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of a training loop: `Checkpointer` saves steps into a training folder, beside the training.

A save has four parts. Taking the object apart (what its pickle says, and the list of its storages) is all that happens
in save(). The rest is done by one thread, save after save: a folder for the step, the files (written by the library's
own threads), and, when they are durable, the manifest, the rename and `latest`. The thread begins with the first
save and ends when there is none left; so an interpreter that ends waits until what was begun is durable.

Nothing is read twice: from the moment when a save is `copied`, its tensors may change.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Union

from penstock import _ckpt, _steps, errors
from penstock._background import ENDINGS, FORMATS, UNLIMITED, Begun, Image, make_folders
from penstock._ranks import Talk, World, pack, unpack

if TYPE_CHECKING:
    import torch

Path = Union[str, "os.PathLike[str]"]

log = logging.getLogger("penstock")

_LOOK_SECONDS = 0.5


class Saving:
    """A save under way, or over: what Checkpointer.save() returns. All methods may be called from any thread."""

    def __init__(
        self, owner: Checkpointer, step: int, image: Image, tensors: list[torch.Tensor], commit: dict[str, Any]
    ):
        self.step = step
        self.report: _ckpt.Report | None = None  # figures of the write, when it is done
        self._owner = owner
        self._image: Image | None = image  # holds the memory that is saved
        self._tensors = tensors
        self._versions = _versions(tensors)
        self._places: list[tuple[Any, torch.Tensor]] = []  # where they are, if ranks have to agree in that
        self._commit = commit
        self._attempt = 0
        self._changed = threading.Condition()
        self._copied = self._done = self._cancelled = False
        self._hurried = False  # somebody has nothing else to do than to wait for it
        self._begun: Begun | None = None  # while the library writes
        self._error: BaseException | None = None
        self._told = False  # whether somebody has seen the error

    def __repr__(self) -> str:
        with self._changed:
            state = "copied" if self._copied else "under way"
            if self._done:
                state = "durable" if self._error is None else f"failed: {self._error}"
        return f"<Saving of step {self.step}, {state}>"

    def copied(self) -> bool:
        """Whether the tensors may change: they have been read, or will not be."""
        with self._changed:
            return self._copied or self._done

    def done(self) -> bool:
        """Whether it has ended, well or not."""
        with self._changed:
            return self._done

    def _wait(self, timeout: float | None, for_copy: bool) -> None:
        with self._changed:
            if timeout is None and self._owner._bytes_per_second is None:  # no training is to be protected meanwhile
                self._hurried = True
                if self._begun is not None:
                    self._begun.hurry()
            if not self._changed.wait_for(lambda: self._done or (for_copy and self._copied), timeout):
                what = "copied" if for_copy else "durable"
                raise TimeoutError(f"step {self.step} is not {what} after {timeout:g} s")

    def wait_copied(self, timeout: float | None = None) -> None:
        """Waits until the tensors may change. Raises what it failed with, or TimeoutError."""
        self._wait(timeout, for_copy=True)
        self._raise()

    def wait(self, timeout: float | None = None) -> None:
        """Waits until it is durable and published. Raises what it failed with, or TimeoutError."""
        self._wait(timeout, for_copy=False)
        self._raise()

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Waits until it has ended; what it failed with, or None."""
        self._wait(timeout, for_copy=False)
        with self._changed:
            self._told = True
            return self._error

    def _raise(self) -> None:
        with self._changed:
            if self._error is None:
                return
            self._told = True
            raise self._error

    def _take_untold(self) -> BaseException | None:
        with self._changed:
            if self._error is None or self._told:
                return None
            self._told = True
            return self._error

    def cancel(self) -> None:
        """Asks it to stop. It ends with CancelledError, or it was published before."""
        with self._changed:
            self._cancelled = True
            if self._begun is not None:
                self._begun.cancel()

    def retry(self) -> Saving:
        """Begins a save that failed again, from the same memory; with several ranks, all of them retry. UsageError
        where a tensor has changed since save(): what would be written is no step's state then."""
        with self._changed:
            if not self._done or self._error is None:
                raise errors.UsageError(f"step {self.step} did not fail")
            if _versions(self._tensors) != self._versions:
                raise errors.UsageError(f"step {self.step} cannot be retried: its tensors have changed since")
            self._attempt += 1
            self._copied = self._done = self._cancelled = self._hurried = False
            self._error = None
        try:
            self._owner._enqueue(self)
        except BaseException as problem:
            self._end(problem)
            raise
        return self

    # ---- of the thread that saves ----

    def _attach(self, begun: Begun | None) -> None:
        with self._changed:
            self._begun = begun
            if begun is not None and self._cancelled:
                begun.cancel()
            if begun is not None and self._hurried:
                begun.hurry()

    def _set_copied(self) -> None:
        with self._changed:
            self._copied = True
            self._changed.notify_all()

    def _end(self, error: BaseException | None) -> None:
        with self._changed:
            self._error = error
            self._told = self._cancelled and isinstance(error, errors.CancelledError)
            self._done = True
            self._begun = None
            if error is None and self._image is not None:
                self._image.release()
                self._image = None
                self._tensors = []
                self._places = []
            self._changed.notify_all()


class Checkpointer:
    """Saves the steps of a training into `folder`, and finds the newest complete one.

    folder              one folder per step is made in it ("step-000100"); it is made if it is missing
    keep_last           older complete steps beyond so many are removed when one is published; 0: none is
    every               what due() goes by
    asynchronous        save() returns at once; else when the step is durable
    format              "pt": any object, as torch.save; "safetensors": a dict of tensors
    bytes_per_second    at most so many are written on average; None: a rate that leaves the training undisturbed
                        (asynchronous), no limit (else)
    snapshot_bytes      memory for copies of tensors, so that they may change before the drive has taken them
    replicated          several ranks: all hold the same state, and each writes its share of it. False: each rank has a
                        state of its own, and a file for it
    group               the process group whose ranks save together; default: all of torch.distributed, where that is
                        initialized
    timeout             seconds until a rank that does not come makes a save fail
    in_flight           save() waits while so many are not done
    verify              restore() checks the digests

    With several ranks, all of them make it, and save and restore the same steps in the same order; messages go
    through the store of torch.distributed, never through its collectives. An error of a save in the background is
    raised by its handle, or else by the next call here. All methods may be called from any thread."""

    def __init__(
        self,
        folder: Path,
        *,
        keep_last: int = 0,
        every: int | None = None,
        asynchronous: bool = True,
        format: str = "pt",
        bytes_per_second: float | None = None,
        snapshot_bytes: int = 0,
        replicated: bool = True,
        group: Any = None,
        timeout: float = 600.0,
        in_flight: int = 2,
        verify: bool = True,
    ) -> None:
        if format not in FORMATS:
            raise errors.UsageError(f"format {format!r} is none of {', '.join(FORMATS)}")
        for name, value, least in (("keep_last", keep_last, 0), ("every", every, 1), ("in_flight", in_flight, 1)):
            if value is not None and value < least:
                raise errors.UsageError(f"{name} is {value}; at least {least} is needed")
        self.folder = os.path.abspath(folder)  # also when the program goes elsewhere meanwhile
        self.keep_last = keep_last
        self.every = every
        self.asynchronous = asynchronous
        self.format = format
        self.replicated = replicated
        self.verify = verify
        self._bytes_per_second = bytes_per_second
        self._snapshot_bytes = snapshot_bytes
        self._in_flight = in_flight
        self._world = World.of_torch(group, timeout)
        self._changed = threading.Condition()
        self._queue: deque[Saving] = deque()
        self._unfinished: list[Saving] = []
        self._failed: list[Saving] = []  # errors that nobody may have seen
        self._thread: threading.Thread | None = None
        self._talks: dict[str, int] = {}
        self._swept = self._looked = False
        self._closed = False
        make_folders(self.folder)

    # ---- saving ----

    def due(self, step: int) -> bool:
        """Whether a step is one to be saved: a multiple of `every`."""
        return self.every is None or step % self.every == 0

    def save(self, step: int, obj: Any, *, metadata: Mapping[str, str] | None = None, replace: bool = False) -> Saving:
        """Begins to save `obj` as `step`. Its tensors must stay as they are until the save is copied (wait_copied());
        everything else in it is taken now. `metadata` goes into the step's manifest. A complete step of the same
        number is refused, or with `replace` replaced at one stroke. Raises what an earlier save failed with, before
        it begins this one."""
        if step < 0:
            raise errors.UsageError(f"a step of number {step}")
        self._raise_untold()
        self._wait_for_room()
        _ckpt.metadata_pairs(metadata)  # fails here, or never
        commit = {"metadata": dict(metadata or {}), "replace": replace}
        image = Image.of(obj, self.format, self.folder)
        tensors = image.seen if image.seen is not None else list(_tensors_of(obj))
        saving = Saving(self, step, image, tensors, commit)
        if self.replicated and self._world.count > 1 and image.format == _ckpt.TORCH:
            saving._places = list(_places_of(obj))
        self._enqueue(saving)
        if not self.asynchronous:
            saving.wait()
        return saving

    def _wait_for_room(self) -> None:
        while True:
            with self._changed:
                if len(self._unfinished) < self._in_flight:
                    return
                oldest = self._unfinished[0]
            oldest._wait(None, for_copy=False)

    def _enqueue(self, saving: Saving) -> None:
        with self._changed:
            if self._closed:
                raise errors.UsageError("the checkpointer is closed")
            if self._thread is None:
                # Not a daemon: what was begun is finished before the interpreter ends.
                thread = threading.Thread(target=self._work, name="penstock-checkpoints", daemon=False)
                thread.start()  # or there is none, and nothing to wait for; it waits for the lock
                self._thread = thread
            self._queue.append(saving)
            self._unfinished.append(saving)

    def wait_copied(self, timeout: float | None = None) -> None:
        """Waits until the tensors of all saves may change: to be called before they do (see guard())."""
        self._wait_all(timeout, for_copy=True)
        self._raise_untold()

    def wait(self, timeout: float | None = None) -> None:
        """Waits until all saves are durable. Raises the first error that was not raised yet."""
        self._wait_all(timeout, for_copy=False)
        self._raise_untold()

    def guard(self, *optimizers: Any) -> None:
        """From now on every step() of these optimizers waits first until the tensors of all saves may change.
        Errors of saves are not raised there."""
        for optimizer in optimizers:
            optimizer.register_step_pre_hook(lambda *_: self._wait_all(None, for_copy=True))

    def _wait_all(self, timeout: float | None, for_copy: bool) -> None:
        until = None if timeout is None else time.monotonic() + timeout
        with self._changed:
            unfinished = list(self._unfinished)
        for saving in unfinished:
            saving._wait(None if until is None else max(0.0, until - time.monotonic()), for_copy)

    def _raise_untold(self) -> None:
        error = self._first_untold()
        if error is not None:
            raise error

    def _first_untold(self) -> BaseException | None:
        while True:
            with self._changed:
                if not self._failed:
                    return None
                saving = self._failed.pop(0)
            error = saving._take_untold()
            if error is not None:
                return error

    def close(self) -> None:
        """Waits until all saves have ended; raises the first error that was not raised yet."""
        self._wait_all(None, for_copy=False)
        with self._changed:
            self._closed = True
            thread = self._thread
        if thread is not None:
            thread.join()
        self._raise_untold()

    def __enter__(self) -> Checkpointer:
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        try:
            self.close()
        except Exception:
            if kind is None:
                raise
            log.exception("a checkpoint in %s failed", self.folder)  # the exception under way is the more important

    # ---- the thread that saves ----

    def _work(self) -> None:
        while True:
            with self._changed:
                if not self._queue:
                    self._thread = None
                    return
                saving = self._queue.popleft()
            talk = self._talk(f"{saving.step}/{saving._attempt}")
            error: BaseException | None = None
            try:
                self._carry_out(saving, talk)
            except BaseException as problem:
                error = talk.explain(problem)
                talk.fail(error)
                log.error("step %d was not saved in %s: %s", saving.step, self.folder, error)
            with self._changed:
                if error is not None:
                    self._failed.append(saving)
                saving._end(error)
                self._unfinished.remove(saving)
                self._changed.notify_all()
            del saving
            # Of ranks that failed, some may be gone.
            talk.leave(30.0 if error is None else 3.0)

    def _talk(self, name: str) -> Talk:
        """Messages of their own for each save, also of a step that is saved once more."""
        with self._changed:
            number = self._talks.get(name, 0)
            self._talks[name] = number + 1
        return self._world.talk(f"{name}/{number}")

    def _carry_out(self, saving: Saving, talk: Talk) -> None:
        if saving._cancelled:
            raise errors.CancelledError("cancelled", errors.E_CANCELLED)
        self._sweep_once()
        image = saving._image
        assert image is not None
        self._agree(saving, image, talk)
        alone = self._world.count == 1
        with _steps.Step(self.folder, saving.step, talk.record) as step:
            path = os.path.join(step.path, _file_name(self.format, self.replicated, self._world.rank))
            begun = image.begin(
                path,
                ranks=talk.record if self.replicated and not alone else None,
                bytes_per_second=self._rate(),
                snapshot_bytes=self._snapshot_bytes,
            )
            try:
                saving._attach(begun)
                self._until(begun, begun.copied)
                saving._set_copied()
                self._until(begun, begun.durable)
                saving.report = begun.report()
            finally:
                saving._attach(None)
                begun.end()
            self._look_once(path)
            step.commit(self.keep_last, saving._commit["replace"], saving._commit["metadata"])

    def _until(self, begun: Begun, reached: Callable[[float], bool]) -> None:
        while not reached(_LOOK_SECONDS):
            # The interpreter ends, and waits for this thread.
            if self._bytes_per_second is None and not threading.main_thread().is_alive():
                begun.hurry()

    def _look_once(self, path: str) -> None:
        """Of the first save: whether restore() will take what was saved. Better to be told now than by the next run."""
        if self._looked or not os.path.exists(path):
            return
        self._looked = True
        try:
            _ckpt.Checkpoint(os.fsencode(path)).close()
        except errors.UnsupportedError as problem:
            log.warning("restore() will refuse what is saved in %s (torch.load may not): %s", self.folder, problem)
        except errors.Error:  # commit will say so
            pass

    def _rate(self) -> int:
        if self._bytes_per_second is not None:
            return max(1, int(self._bytes_per_second))
        return 0 if self.asynchronous else UNLIMITED

    def _sweep_once(self) -> None:
        """What earlier processes left. The first rank does it while the others wait for it at the step's folder."""
        if self._swept or self._world.rank != 0:
            return
        self._swept = True
        try:
            removed = _steps.sweep(self.folder)
            if removed:
                log.info("%s: removed what %d unfinished saves had left", self.folder, removed)
        except errors.Error as problem:
            log.warning("%s: what unfinished saves left stays: %s", self.folder, problem)

    def _agree(self, saving: Saving, image: Image, talk: Talk) -> None:
        """All ranks save the same step in the same way; of replicated states the tensors fit, and the first rank's
        pickle is taken where they differ (a time, a path). It names storages by numbers, in the order in which the
        rank's own state has them: so all must have them in one order."""
        if self._world.count == 1:
            return
        way = f"step {saving.step} {self.format} {self.replicated} {saving._commit}".encode()
        table = image.description() if self.replicated else b""
        values = image.pickle or b"" if self.replicated else b""
        order = _describe(saving._places, len(image.tensors)) if image.pickle is not None else b"names"
        mine = pack(way, hashlib.sha256(table).digest(), hashlib.sha256(values).digest(), order)
        ranks = [unpack(message) for message in talk.all_gather(mine)]
        if any(message[0] != ranks[0][0] for message in ranks):
            raise errors.UsageError("the ranks do not save the same step in the same way")
        if any(message[1] != ranks[0][1] for message in ranks):
            raise errors.UsageError(
                "the ranks' states have other tensors, so they are no replicas: replicated=False saves each"
            )
        if all(message[2] == ranks[0][2] for message in ranks):
            return
        if any(message[3] != ranks[0][3] for message in ranks):
            raise errors.UsageError(
                "the ranks' states have their tensors at other places or in another order (a dict made from a set?), "
                "so they are no replicas: replicated=False saves each"
            )
        if not order:
            raise errors.UsageError(
                "the ranks' states differ, and have tensors inside of other objects than dicts, lists and tuples, so "
                "they cannot be taken for replicas: replicated=False saves each"
            )
        image.pickle = talk.share(bytes(values))

    # ---- finding ----

    def steps(self) -> list[int]:
        """The numbers of the complete steps, rising."""
        return _steps.steps(self.folder)

    def latest(self) -> int | None:
        """The number of the newest complete step."""
        found = _steps.latest(self.folder)
        return None if found is None else found[0]

    def restore(
        self, step: int | None = None, *, map_location: Any = None, rank: int | None = None
    ) -> tuple[int, Any] | None:
        """The newest complete step (or a given one) and what was saved: (step, obj); None where there is none.
        Waits for saves under way first. With several ranks, all of them call it and get the same step. `rank`
        chooses among states that were saved with replicated=False; by default this rank's."""
        self._wait_all(None, for_copy=False)
        talk = self._talk("restore")
        found = self._find(step, talk)
        talk.leave()
        if found is None:
            return None
        number, folder = found
        from penstock import torch as ours

        return number, ours.load(self._file_of(folder, rank), map_location, verify=self.verify)

    def _find(self, step: int | None, talk: Talk) -> tuple[int, str] | None:
        """What the first rank finds holds for all."""
        answer: dict[str, Any] = {}
        if self._world.rank == 0:
            try:
                answer["found"] = self._find_alone(step)
            except errors.Error as problem:
                if self._world.count == 1:
                    raise
                answer["failed"], answer["code"] = str(problem), problem.code
        answer = json.loads(talk.share(json.dumps(answer).encode()))
        if "failed" in answer:
            raise errors.make(answer["code"], answer["failed"])
        found = answer["found"]
        return None if found is None else (found[0], found[1])

    def _find_alone(self, step: int | None) -> tuple[int, str] | None:
        found = _steps.latest(self.folder)
        if step is None or (found is not None and found[0] == step):
            return found
        if step not in _steps.steps(self.folder):
            raise errors.make(-errno.ENOENT, f"there is no complete step {step}", self.folder)
        return step, os.path.join(self.folder, _steps.folder_name(step))

    def _file_of(self, folder: str, rank: int | None) -> str:
        for format in FORMATS:
            path = os.path.join(folder, _file_name(format, True, 0))
            if os.path.exists(path):
                return path
        with open(os.path.join(folder, _steps.MANIFEST), encoding="utf-8") as file:
            ranks = int(json.load(file).get("ranks", 1))
        mine = self._world.rank if rank is None else rank
        if not 0 <= mine < ranks or (rank is None and ranks != self._world.count):
            raise errors.UsageError(
                f"{folder}: it has the states of {ranks} ranks, each its own, and these are {self._world.count}: "
                "restore(rank=...) chooses one"
            )
        for format in FORMATS:
            path = os.path.join(folder, _file_name(format, False, mine))
            if os.path.exists(path):
                return path
        raise errors.make(-errno.ENOENT, "the step was not saved by a Checkpointer", folder)


def _file_name(format: str, replicated: bool, rank: int) -> str:
    return f"checkpoint.{ENDINGS[format]}" if replicated else f"rank-{rank:05d}.{ENDINGS[format]}"


def _versions(tensors: Iterable[torch.Tensor]) -> list[int]:
    """What torch counts up when a tensor is changed in place."""
    try:
        return [tensor._version for tensor in tensors]
    except RuntimeError:  # an inference tensor has none
        return [0 if tensor.is_inference() else tensor._version for tensor in tensors]


def _tensors_of(obj: Any, depth: int = 0) -> Iterable[torch.Tensor]:
    """The tensors in dicts, lists and tuples."""
    import torch

    if isinstance(obj, torch.Tensor):
        yield obj
    elif depth < 100:
        if isinstance(obj, Mapping):
            obj = obj.values()
        elif not isinstance(obj, (list, tuple, set, frozenset)):
            return
        for one in obj:
            yield from _tensors_of(one, depth + 1)


def _places_of(obj: Any, where: Any = None, depth: int = 0) -> Iterable[tuple[Any, torch.Tensor]]:
    """The tensors in dicts, lists and tuples, which have an order, with the keys that lead there."""
    import torch

    if isinstance(obj, torch.Tensor):
        yield where, obj
    elif depth < 100 and isinstance(obj, (Mapping, list, tuple)):
        for key, one in obj.items() if isinstance(obj, Mapping) else enumerate(obj):
            plain = isinstance(key, (str, int, float, bool, tuple, type(None)))
            yield from _places_of(one, (where, key if plain else type(key).__name__), depth + 1)


def _describe(places: list[tuple[Any, torch.Tensor]], storages: int) -> bytes:
    """What must be the same for storages to have the same numbers; nothing where some are not at these places."""
    numbers: dict[int, int] = {}
    digest = hashlib.sha256()
    for where, tensor in places:
        try:
            number = numbers.setdefault(tensor.untyped_storage()._cdata, len(numbers))
            seen = (where, tensor.dtype, tuple(tensor.shape), tensor.stride(), tensor.storage_offset(), number)
        except (RuntimeError, NotImplementedError):  # not of one storage
            return b""
        digest.update(repr(seen).encode())
    return digest.digest() if len(numbers) == storages else b""
