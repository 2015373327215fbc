# SPDX-License-Identifier: Apache-2.0
"""Files of torch.save as DeepSpeed writes them: with objects of DeepSpeed in them, which penstock.torch.load refuses.

Tensors' memory is read past the page cache. The pickle is read with a list of names that such files are made of:
torch's functions that put tensors together, and DeepSpeed's plain classes; nothing else is imported or called. A
file that names more (an object in client_state) is loaded by torch.load, which does whatever the file says, as
DeepSpeed always does.
"""

from __future__ import annotations

import importlib
import logging
import pickle
import struct
import zipfile
from collections.abc import Callable
from typing import IO as FileObject
from typing import Any

from penstock.io import IO, File

log = logging.getLogger("penstock")

_ALLOWED = {
    "torch._utils": {
        "_rebuild_parameter",
        "_rebuild_parameter_with_state",
        "_rebuild_tensor",
        "_rebuild_tensor_v2",
        "_rebuild_tensor_v3",
    },
    "torch": {"Size", "device"},
    "torch.serialization": {"_get_layout"},
    "collections": {"Counter", "OrderedDict"},
    "builtins": {
        "bool",
        "bytearray",
        "complex",
        "dict",
        "float",
        "frozenset",
        "int",
        "list",
        "range",
        "set",
        "slice",
        "str",
    },
    "deepspeed.runtime.fp16.loss_scaler": {"DynamicLossScaler", "LossScaler", "LossScalerBase"},
    "deepspeed.runtime.zero.config": {"ZeroStageEnum"},
    "deepspeed.utils.tensor_fragment": {"fragment_address", "tensor_fragment"},
}


def _torch() -> Any:
    """Imported when it is needed, and of any version."""
    return importlib.import_module("torch")


class _Refused(Exception):
    """The file needs more than this reads."""


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: FileObject[bytes], storage: Callable[[str, int, str], Any]) -> None:
        super().__init__(file, encoding="utf-8")
        self._storage = storage
        self._loaded: dict[str, Any] = {}

    def persistent_load(self, saved: Any) -> Any:
        torch = _torch()
        try:
            tag, kind, key, location, count = saved
            dtype = torch.uint8 if kind is torch.UntypedStorage else kind.dtype
            nbytes = int(count) * torch._utils._element_size(dtype)
        except (TypeError, ValueError, AttributeError) as problem:
            raise _Refused(f"a storage of an unknown kind: {problem}") from problem
        if tag != "storage":
            raise _Refused(f"a persistent object of kind {tag!r}")
        if key not in self._loaded:
            self._loaded[key] = torch.storage.TypedStorage(
                wrap_storage=self._storage(key, nbytes, location), dtype=dtype, _internal=True
            )
        return self._loaded[key]

    def find_class(self, module: str, name: str) -> Any:
        torch = _torch()
        if name in _ALLOWED.get(module, ()):
            try:
                return super().find_class(module, name)
            except (AttributeError, ImportError) as problem:  # of another version of DeepSpeed
                raise _Refused(str(problem)) from problem
        if module in ("torch", "torch.storage") and name == "UntypedStorage":
            return torch.UntypedStorage
        if module == "torch" and name.endswith("Storage"):
            try:
                return torch.serialization.StorageType(name)
            except KeyError:
                pass
        known = getattr(torch, name, None) if module == "torch" else None
        if isinstance(known, (torch.dtype, torch.layout, torch.memory_format)):
            return known
        raise _Refused(f"it names {module}.{name}")


class _Records:
    """The zip file's records, which are stored as they are."""

    def __init__(self, path: str) -> None:
        try:
            self._zip = zipfile.ZipFile(path)
        except zipfile.BadZipFile as problem:
            raise _Refused(f"an old format of torch: {problem}") from problem
        entries = self._zip.infolist()
        self._folder = entries[0].filename.partition("/")[0] if entries else ""
        self._by_name = {entry.filename: entry for entry in entries}
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise _Refused("compressed records")
        if self.bytes_of("byteorder", b"little") != b"little" or self._entry("constants.pkl") is not None:
            raise _Refused("not of torch.save on a little-endian machine")

    def _entry(self, name: str) -> zipfile.ZipInfo | None:
        return self._by_name.get(f"{self._folder}/{name}")

    def bytes_of(self, name: str, default: bytes | None = None) -> bytes:
        entry = self._entry(name)
        if entry is None:
            if default is None:
                raise _Refused(f"no record {name}")
            return default
        return self._zip.read(entry)

    def open(self, name: str) -> FileObject[bytes]:
        entry = self._entry(name)
        if entry is None:
            raise _Refused(f"no record {name}")
        return self._zip.open(entry)

    def place(self, name: str, nbytes: int) -> int:
        """Where a record of so many bytes begins."""
        entry = self._entry(name)
        if entry is None or entry.file_size != nbytes or self._zip.fp is None:
            raise _Refused(f"no record {name} of {nbytes} bytes")
        self._zip.fp.seek(entry.header_offset)
        header = self._zip.fp.read(30)
        if len(header) < 30 or header[:4] != b"PK\3\4":
            raise _Refused(f"no header of record {name}")
        names, extra = struct.unpack_from("<HH", header, 26)
        return entry.header_offset + 30 + int(names) + int(extra)

    def close(self) -> None:
        self._zip.close()


def load(path: str, map_location: Any = None) -> Any:
    torch = _torch()
    try:
        return _load(path, map_location)
    except _Refused as why:
        log.info("%s is loaded by torch.load, with all that its pickle says: %s", path, why)
        return torch.load(path, map_location=map_location, weights_only=False)


def _load(path: str, map_location: Any) -> Any:
    torch = _torch()
    restore: Callable[[Any, str], Any] = torch.serialization._get_restore_location(map_location)
    records = _Records(path)
    try:
        with IO() as io, io.open(path) as file:

            def storage(key: str, nbytes: int, location: str) -> Any:
                return restore(_read(file, records.place(f"data/{key}", nbytes), nbytes), location)

            with records.open("data.pkl") as pickled:
                return _Unpickler(pickled, storage).load()
    finally:
        records.close()


def _read(file: File, offset: int, nbytes: int) -> Any:
    torch = _torch()
    storage = torch.UntypedStorage(nbytes)
    if nbytes:
        file.read_into(torch.empty(0, dtype=torch.uint8).set_(storage), offset)
    return storage
