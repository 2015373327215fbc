# SPDX-License-Identifier: Apache-2.0
"""What torch.save would write, as storages where they lie and a pickle of all the rest.

The pickle is made by Python's own pickler, with what torch's objects reduce themselves to; storages are left out of it
and named by keys, in the order of their first mention, as torch does. So data.pkl has the very bytes that torch.save
writes.
"""

from __future__ import annotations

import ctypes
import io
import os
import pickle
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from penstock import _ckpt
from penstock._taken import Mention, Other, Storages, Taken, Taker
from penstock.errors import Error, PickleError, UsageError


def torch_module() -> Any:
    """PyTorch, imported at its first use here."""
    try:
        import torch
    except ImportError as problem:
        raise ImportError(f"penstock.torch needs PyTorch: {problem}", name="torch") from problem
    return torch


class _Pickler(pickle.Pickler):
    """Python's pickler, which leaves storages out. Usual tensors are reduced here, as they would themselves, in a
    third of the time; so are those that were taken before."""

    def __init__(self, file: io.BytesIO, protocol: int, torch: Any, storages: Storages) -> None:
        super().__init__(file, protocol=protocol)
        self._torch = torch
        self._storages = storages
        self._is_storage: dict[type, bool] = {Mention: True}  # by type: asked for every object, most of which are none
        self._tensors = (torch.Tensor, torch.nn.Parameter)

    def persistent_id(self, obj: Any) -> Any:
        try:
            if not self._is_storage[type(obj)]:
                return None
        except KeyError:
            torch = self._torch
            found = isinstance(obj, torch.storage.TypedStorage) or torch.is_storage(obj)
            self._is_storage[type(obj)] = found
            if not found:
                return None
        # A tuple of its own for every mention, as torch makes it: else the pickle would refer to the first.
        return (*obj.id,) if type(obj) is Mention else self._storages.id_of(obj)

    def reducer_override(self, obj: Any) -> Any:
        kind = type(obj)
        if kind is Taken:
            return self._storages.reduce(obj)
        if kind in self._tensors:
            taken = self._storages.take(obj)
            if taken is not None:
                return self._storages.reduce(taken)
        return NotImplemented


def make_pickle(obj: Any, protocol: int, path: str) -> tuple[io.BytesIO, list[Any]]:
    """data.pkl, and the storages that it names."""
    torch = torch_module()
    if not isinstance(protocol, int) or not 2 <= protocol <= pickle.HIGHEST_PROTOCOL:
        raise UsageError(f"pickle protocol {protocol!r} cannot be (2 is what torch.load with weights_only=True reads)")
    storages = Storages(torch)
    return _dump(obj, protocol, path, storages), storages.all


def _dump(obj: Any, protocol: int, path: str, storages: Storages) -> io.BytesIO:
    file = io.BytesIO()
    pickler = _Pickler(file, protocol, torch_module(), storages)
    try:
        pickler.dump(obj)
    except Error as problem:
        raise type(problem)(problem.message, problem.code, path, problem.offset) from None
    except Exception as problem:
        raise PickleError(f"cannot be pickled: {problem}", path=path) from problem
    return file


def take(obj: Any, protocol: int, path: str) -> tuple[Callable[[], io.BytesIO], list[Any], list[Any] | None]:
    """The object as it is now: what makes data.pkl of it (once, by any thread), the storages that it names, and its
    tensors, where that is known without looking again."""
    taker = Taker(torch_module())
    try:
        taken = taker.take(obj)
    except Other:
        file, storages = make_pickle(obj, protocol, path)
        return lambda: file, storages, None
    except Error as problem:
        raise type(problem)(problem.message, problem.code, path, problem.offset) from None
    return lambda: _dump(taken, protocol, path, taker.storages), taker.storages.all, taker.tensors


def archive_name(path: str) -> str:
    """The folder inside the zip file: that of torch.save, where every system can extract it."""
    name = os.path.basename(path)
    stem = name.rpartition(".")[0] if "." in name else name
    plain = stem.isascii() and stem.isprintable() and len(stem) <= 200 and not set(stem) & set(":\\")
    return stem if plain and stem not in ("", ".", "..") else "archive"


def on_host(device: Any) -> bool:
    """Whether memory there is the host's."""
    return bool(device.type == "cpu")


def device_source(flat: Any) -> _ckpt.Source:
    """Copies bytes of a flat byte tensor on a device."""
    torch = torch_module()

    def copy(offset: int, size: int, address: int) -> None:
        window = (ctypes.c_ubyte * size).from_address(address)
        torch.frombuffer(window, dtype=torch.uint8).copy_(flat[offset : offset + size])

    return copy


def synchronize(devices: set[Any]) -> None:
    """Waits for what the devices are doing: the copies are made by another thread, on another stream."""
    torch = torch_module()
    for device in devices:
        module: Any = getattr(torch, device.type, None)
        if hasattr(module, "synchronize"):
            module.synchronize() if device.type == "mps" else module.synchronize(device)


def add_storages(tensors: _ckpt.Tensors, storages: list[Any]) -> None:
    """Storages as tensors of bytes, named by their keys."""
    torch = torch_module()
    devices = set()
    sizes = [storage.nbytes() for storage in storages]
    kinds = {storage.device for storage in storages}
    if all(on_host(device) for device in kinds):
        tensors.add_bytes(sizes, [storage.data_ptr() for storage in storages], storages)
        return
    for key, storage in enumerate(storages):
        if on_host(storage.device):
            tensors.add(str(key), _ckpt.U8, (sizes[key],), storage.data_ptr(), storage)
        else:
            devices.add(storage.device)
            flat = torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)
            tensors.add(str(key), _ckpt.U8, (sizes[key],), 0, storage, device_source(flat))
    synchronize(devices)


# ---- safetensors ----

# torch's name of each dtype of the library, by its number
TORCH_NAMES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "F8_E5M2": "float8_e5m2",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F4": "float4_e2m1fn_x2",  # two to a byte
    "I16": "int16",
    "U16": "uint16",
    "F16": "float16",
    "BF16": "bfloat16",
    "I32": "int32",
    "U32": "uint32",
    "F32": "float32",
    "F64": "float64",
    "I64": "int64",
    "U64": "uint64",
    "C32": "complex32",
    "C64": "complex64",
    "C128": "complex128",
}
F4 = _ckpt.DTYPES.index("F4")
_NOT_IN_SAFETENSORS = {"C32", "C128"}
_SAFETENSORS = {
    f"torch.{TORCH_NAMES[name]}": number
    for number, name in enumerate(_ckpt.DTYPES)
    if name in TORCH_NAMES and name not in _NOT_IN_SAFETENSORS
}


def _check_plain(name: str, tensor: Any, torch: Any) -> int:
    """Refuses what safetensors cannot hold; the dtype's number."""
    if not isinstance(name, str):
        raise UsageError(f"a tensor's name is text, not {name!r}")
    if not isinstance(tensor, torch.Tensor):
        raise UsageError(f"{name!r} is a {type(tensor).__name__}, not a tensor (penstock.torch.save takes any object)")
    if tensor.device.type == "meta":
        raise UsageError(f"tensor {name!r} is on the meta device: it has no data")
    if tensor.layout != torch.strided or tensor.is_nested:
        raise UsageError(f"tensor {name!r} is not dense (tensor.to_dense() makes one that is)")
    if not tensor.is_contiguous():
        raise UsageError(f"tensor {name!r} is not contiguous (use tensor.contiguous())")
    if tensor.is_conj() or tensor.is_neg():
        raise UsageError(f"tensor {name!r} has a conjugation or sign pending (use tensor.resolve_conj().resolve_neg())")
    number = _SAFETENSORS.get(str(tensor.dtype))
    if number is None:
        raise UsageError(f"tensor {name!r} is of {tensor.dtype}, which safetensors does not have")
    if tensor.numel() and tensor.data_ptr() == 0:
        raise UsageError(f"tensor {name!r} is a {type(tensor).__name__} without memory of its own")
    return number


def _spans(tensors: Mapping[str, Any]) -> Iterator[tuple[str, int, int, str]]:
    for name, tensor in tensors.items():
        size = tensor.numel() * tensor.element_size()
        if size:
            yield str(tensor.device), tensor.data_ptr(), tensor.data_ptr() + size, name


def _refuse_shared(tensors: Mapping[str, Any]) -> None:
    """safetensors has no views: tensors that share memory would be saved twice, and be two when they are loaded."""
    last = ("", 0, 0, "")
    for span in sorted(_spans(tensors)):
        if span[0] == last[0] and span[1] < last[2]:
            raise UsageError(
                f"tensors {last[3]!r} and {span[3]!r} share memory, which safetensors cannot express "
                "(clone one, leave one out, or use penstock.torch.save with the torch format)"
            )
        if span[0] != last[0] or span[2] > last[2]:
            last = span


def add_tensors(out: _ckpt.Tensors, tensors: Mapping[str, Any]) -> None:
    """Tensors for a safetensors file."""
    torch = torch_module()
    if not isinstance(tensors, Mapping):
        raise UsageError(f"safetensors holds a dict from name to tensor, not a {type(tensors).__name__}")
    numbers = {name: _check_plain(name, tensor, torch) for name, tensor in tensors.items()}
    _refuse_shared(tensors)
    devices = set()
    for name, tensor in tensors.items():
        shape = list(tensor.shape)
        if numbers[name] == F4 and shape:
            shape[-1] *= 2
        elif numbers[name] == F4:
            raise UsageError(f"tensor {name!r} has two values and no dimension to tell")
        plain = tensor.detach()
        if on_host(tensor.device):
            out.add(name, numbers[name], shape, tensor.data_ptr(), plain)
        else:
            devices.add(tensor.device)
            flat = plain.reshape(-1).view(torch.uint8)
            out.add(name, numbers[name], shape, 0, plain, device_source(flat))
    synchronize(devices)
