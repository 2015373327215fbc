# SPDX-License-Identifier: Apache-2.0
"""Storage for torch.distributed.checkpoint: sharded states (DTensor, FSDP, ...) saved and loaded at the drive's
speed.

    import torch.distributed.checkpoint as dcp
    from penstock.dcp import PenstockReader, PenstockWriter

    dcp.save(state, storage_writer=PenstockWriter(folder))
    dcp.load(state, storage_reader=PenstockReader(folder))

A checkpoint is a folder with files of each rank and `.metadata`, which names them and is published last, by a
rename, when all files are durable. The names of a save's files are new ones. So a save over an older checkpoint
leaves that one whole until the new one is, and then removes what belonged to it.

Two formats:

"safetensors"   one file per rank (and one more for each further part that a rank has of one tensor), besides one for
                values that are no tensors. Any reader of safetensors opens them, torch's HuggingFaceStorageReader
                puts the parts together. torch's FileSystemReader reads only the values.
"pt"            one file of torch.save per tensor: what torch's FileSystemReader (and dcp_to_torch_save) reads. For
                many small tensors it is slower: each file is synced.

PenstockReader reads both, and what torch's FileSystemWriter wrote.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import struct
import uuid
import warnings
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Union

import torch
from torch.distributed.checkpoint.filesystem import FileSystem, FileSystemReader, _StorageInfo
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, StorageMeta
from torch.distributed.checkpoint.planner import (
    LoadItemType,
    LoadPlan,
    LoadPlanner,
    ReadItem,
    SavePlan,
    SavePlanner,
    WriteItem,
    WriteItemType,
)
from torch.distributed.checkpoint.storage import StorageWriter, WriteResult
from torch.futures import Future

from penstock import _ckpt, _dcp_metadata, errors
from penstock._background import Image, make_folders, write_small
from penstock._torch_load import dtype_of, torch_shape

__all__ = ["PenstockReader", "PenstockWriter"]

Path = Union[str, "os.PathLike[str]"]

_METADATA = ".metadata"
_VERSION = "1.0.0"  # of what torch writes into .metadata
# Files of data; and those of a save that was killed: its data (of pst_ckpt_save) and its metadata.
_DATA_FILE = re.compile(r"__(\d+)_\d+(-[0-9a-f]{12})?\.(safetensors|distcp)(\.tmp-[A-Za-z0-9_-]{12})?")
_UNPUBLISHED = re.compile(r"(?:__(\d+))?\.metadata\.[0-9a-f]{12}\.tmp")
_TEMPORARY_BYTES = 256 << 20  # memory for parts that cannot be read to where they belong


def _done(result: Any) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(result)
    return future


class PenstockWriter(StorageWriter):
    """A storage writer for torch.distributed.checkpoint.save() and async_save(). `overwrite`: a checkpoint that is
    there is replaced; else it is refused. `bytes_per_second`: at most so many are written by this rank on
    average."""

    def __init__(
        self,
        path: Path,
        *,
        format: str = "safetensors",
        overwrite: bool = True,
        digests: bool = True,
        bytes_per_second: int | None = None,
    ) -> None:
        super().__init__()
        if format not in ("safetensors", "pt"):
            raise errors.UsageError(f'the format is "safetensors" or "pt", not {format!r}')
        self.path = os.path.abspath(path)  # async_save() writes later, wherever the program is then
        self.format = format
        self.overwrite = overwrite
        self._settings: dict[str, Any] = {"digests": digests}
        if bytes_per_second is not None:
            self._settings["bytes_per_second"] = bytes_per_second
        self._save_id = uuid.uuid4().hex
        self._rank: int | None = None  # of a save without collectives
        self._written = 0

    # ---- the interface, in the order in which it is called ----

    def reset(self, checkpoint_id: Path | None = None) -> None:
        if checkpoint_id:
            self.path = os.path.abspath(checkpoint_id)
        self._save_id = uuid.uuid4().hex

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        self._rank = None if kwargs.get("use_collectives", True) else kwargs.get("rank")
        self._written = 0

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        make_folders(self.path)
        if not self.overwrite and os.path.exists(os.path.join(self.path, self._metadata_name())):
            raise errors.make(-17, "there is a checkpoint already, and overwrite=False", self.path)
        return plan if self._rank is None else replace(plan, storage_data=self._rank)

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        return [replace(plan, storage_data=rank) for rank, plan in enumerate(plans)]

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        rank = int(plan.storage_data if self._rank is None else self._rank)
        values = [item for item in plan.items if item.type == WriteItemType.BYTE_IO]
        tensors = [item for item in plan.items if item.type != WriteItemType.BYTE_IO]
        results: list[WriteResult] = []
        if self.format == "pt":
            results += [self._write_one(rank, item, planner) for item in tensors]
        else:
            for part in _without_repeats(tensors):
                results += self._write_tensors(rank, part, planner)
        if values:
            results += self._write_values(rank, values, planner)
        return _done(results)

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        metadata.version = _VERSION
        metadata.storage_data = {one.index: one.storage_data for of_rank in results for one in of_rank}
        metadata.storage_meta = self.storage_meta()
        name = self._metadata_name()
        write_small(os.path.join(self.path, name), pickle.dumps(metadata), f"{name}.{self._save_id[:12]}.tmp")
        self._remove_others({one.relative_path for one in metadata.storage_data.values()})

    def storage_meta(self) -> StorageMeta | None:
        return StorageMeta(checkpoint_id=self.path, save_id=self._save_id)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Path) -> bool:
        return FileSystem.validate_checkpoint_id(checkpoint_id)

    # ---- files ----

    def _metadata_name(self) -> str:
        return _METADATA if self._rank is None else f"__{self._rank}{_METADATA}"

    def _new_file(self, rank: int, ending: str) -> tuple[str, str]:
        name = f"__{rank}_{self._written}-{self._save_id[:12]}.{ending}"
        self._written += 1
        return name, os.path.join(self.path, name)

    def _write(self, image: Image, path: str, **settings: Any) -> None:
        try:
            image.write(path, **self._settings, **settings)
        finally:
            image.release()

    def _write_tensors(self, rank: int, items: list[WriteItem], planner: SavePlanner) -> list[WriteResult]:
        tensors = {item.index.fqn: _plain(planner.resolve_data(item)) for item in items}
        # What HuggingFaceStorageReader looks for.
        offsets = {
            item.index.fqn: {"saved_offsets": list(item.tensor_data.chunk.offsets) if item.tensor_data else []}
            for item in items
        }
        metadata = {"format": "pt", "DCP_VERSION": "1.0", "DCP_SHARDING_INFO": json.dumps(offsets)}
        name, path = self._new_file(rank, "safetensors")
        self._write(Image.of_parts(tensors), path, metadata=metadata)
        return _results(items, name, path)

    def _write_values(self, rank: int, items: list[WriteItem], planner: SavePlanner) -> list[WriteResult]:
        values = {}
        for item in items:
            data = planner.resolve_data(item)
            assert isinstance(data, io.BytesIO)
            values[item.index.fqn] = torch.frombuffer(bytearray(data.getbuffer()), dtype=torch.uint8)
        # Not .safetensors, or other readers would take them for tensors of the state.
        name, path = self._new_file(rank, "distcp")
        self._write(Image.of_parts(values), path)
        return _results(items, name, path)

    def _write_one(self, rank: int, item: WriteItem, planner: SavePlanner) -> WriteResult:
        name, path = self._new_file(rank, "distcp")
        tensor = _plain(planner.resolve_data(item))
        if tensor.untyped_storage().nbytes() != tensor.nbytes:
            tensor = tensor.clone()  # all of a storage is saved
        self._write(Image.of(tensor, "pt", path), path)
        size = os.path.getsize(path)
        return WriteResult(index=item.index, size_in_bytes=size, storage_data=_StorageInfo(name, 0, size))

    def _remove_others(self, named: set[str]) -> None:
        """The files of saves before, finished or not. They belong to nothing any more."""
        for name in os.listdir(self.path):
            found = _DATA_FILE.fullmatch(name) or _UNPUBLISHED.fullmatch(name)
            if found and name not in named and self._rank in (None, int(found[1] or 0)):
                try:
                    os.unlink(os.path.join(self.path, name))
                except OSError as problem:
                    warnings.warn(f"{name} of an older checkpoint stays: {problem}", RuntimeWarning, stacklevel=2)


def _plain(data: Any) -> torch.Tensor:
    assert isinstance(data, torch.Tensor)
    return data.detach().contiguous()


def _without_repeats(items: Iterable[WriteItem]) -> list[list[WriteItem]]:
    """Rows of items in which each name occurs once: a rank can have several parts of one tensor."""
    rows: list[dict[str, WriteItem]] = []
    for item in items:
        for row in rows:
            if item.index.fqn not in row:
                row[item.index.fqn] = item
                break
        else:
            rows.append({item.index.fqn: item})
    return [list(row.values()) for row in rows]


def _results(items: list[WriteItem], name: str, path: str) -> list[WriteResult]:
    """Where the data lies in a safetensors file."""
    with open(path, "rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(size))
    results = []
    for item in items:
        begin, end = header[item.index.fqn]["data_offsets"]
        where = _StorageInfo(name, 8 + size + begin, end - begin)
        results.append(WriteResult(index=item.index, size_in_bytes=end - begin, storage_data=where))
    return results


class PenstockReader(FileSystemReader):
    """A storage reader for torch.distributed.checkpoint.load(): parts of tensors are read to where they belong, in
    parallel and past the page cache. `verify`: the digest of each file's part that is read whole is checked."""

    def __init__(self, path: Path, *, verify: bool = False) -> None:
        super().__init__(path)
        self.verify = verify

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        path = os.fspath(self._get_metadata_path(kwargs.get("rank")))
        metadata = _dcp_metadata.read(path)
        if metadata.storage_meta is None:
            metadata.storage_meta = StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        per_file: dict[str, list[ReadItem]] = {}
        for item in plan.items:
            per_file.setdefault(self.storage_data[item.storage_index].relative_path, []).append(item)
        theirs: list[ReadItem] = []
        for name, items in per_file.items():
            path = os.path.join(os.fspath(self.path), name)
            if self._is_ours(path, items):
                with _ckpt.Checkpoint(os.fsencode(path), verify=self.verify) as file:
                    _File(file, path).read(items, planner)
            else:
                theirs += items
        if theirs:
            super().read_data(replace(plan, items=theirs), planner)
        return _done(None)

    def _is_ours(self, path: str, items: list[ReadItem]) -> bool:
        """Whether it is one safetensors or .pt file, and not torch's row of them."""
        with open(path, "rb") as file:
            head = file.read(9)
            size = os.fstat(file.fileno()).st_size
        if head[8:] == b"{":
            return True
        where = self.storage_data[items[0].storage_index]
        whole = (where.offset, where.length) == (0, size) and not where.transform_descriptors
        return whole and all(item.type != LoadItemType.BYTE_IO for item in items)


class _File:
    """An opened file whose tensors are parts of a state."""

    def __init__(self, file: _ckpt.Checkpoint, path: str) -> None:
        self._file = file
        self._path = path
        self._tensors = {tensor.name: tensor for tensor in file.tensors()}
        self._reads: list[_ckpt.Read] = []
        # (item, where it belongs, what it is read to): the latter two are one where that is possible
        self._under_way: list[tuple[ReadItem, torch.Tensor, torch.Tensor]] = []
        self._temporary = 0

    def read(self, items: list[ReadItem], planner: LoadPlanner) -> None:
        for item in items:
            if item.type == LoadItemType.BYTE_IO:
                planner.load_bytes(item, self._value(item.storage_index))
            else:
                self._add(item, planner.resolve_tensor(item).detach())
                if self._temporary > _TEMPORARY_BYTES:
                    self._run(planner)
        self._run(planner)

    def _info(self, index: MetadataIndex) -> _ckpt.TensorInfo:
        # A file of torch.save with a tensor alone has one without a name.
        info = self._tensors.get(index.fqn) or (self._tensors.get("") if len(self._tensors) == 1 else None)
        if info is None:
            raise errors.FormatError(f"there is no {index.fqn}", errors.E_FORMAT, self._path)
        return info

    def _value(self, index: MetadataIndex) -> io.BytesIO:
        info = self._info(index)
        data = bytearray(info.nbytes)
        if data:
            memory = torch.frombuffer(data, dtype=torch.uint8)
            self._file.read([_ckpt.Read(info.index, memory.data_ptr())])
        return io.BytesIO(data)

    def _add(self, item: ReadItem, target: torch.Tensor) -> None:
        info = self._info(item.storage_index)
        name = item.storage_index.fqn
        dtype = dtype_of(info.dtype, name, self._path)
        shape = torch_shape(info, self._path)
        start = tuple(item.storage_offsets)
        stop = tuple(begin + length for begin, length in zip(start, item.lengths, strict=True))
        if len(start) != len(shape) or any(end > size for end, size in zip(stop, shape, strict=True)):
            raise errors.FormatError(
                f"{name} has the shape {list(shape)}, and the part from {list(start)} to {list(stop)} is wanted",
                errors.E_FORMAT,
                self._path,
            )
        if target.size() != torch.Size(item.lengths):
            raise errors.UsageError(f"{item.dest_index.fqn}: {list(item.lengths)} into {list(target.size())}")
        memory = target
        if target.device.type != "cpu" or target.dtype != dtype or not target.is_contiguous():
            memory = torch.empty(tuple(item.lengths), dtype=dtype)
            self._temporary += memory.nbytes
        if memory.numel():
            if stop == shape and not any(start):
                self._reads.append(_ckpt.Read(info.index, memory.data_ptr()))
            else:
                scale = info.shape[-1] // shape[-1]  # elements of the file to one of torch's
                start, stop = (*start[:-1], start[-1] * scale), (*stop[:-1], stop[-1] * scale)
                self._reads.append(_ckpt.Read(info.index, memory.data_ptr(), start, stop))
        self._under_way.append((item, target, memory))

    def _run(self, planner: LoadPlanner) -> None:
        self._file.read(self._reads)
        for item, target, memory in self._under_way:
            if memory is not target:
                target.copy_(memory)
            planner.commit_tensor(item, target)
        self._reads, self._under_way, self._temporary = [], [], 0
