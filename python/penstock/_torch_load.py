# SPDX-License-Identifier: Apache-2.0
"""Objects from an opened checkpoint: its tree of values, and tensors in fresh storages. No pickle is ever executed.

Everything is built before the first byte of a tensor is read, so that what cannot be built is refused at once; then
all storages are read together, to where they shall be. A node of the tree is one object, however often it occurs;
tensors of one storage are views of one storage, as they were saved.
"""

from __future__ import annotations

import ctypes
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable, Iterable, Sequence
from ctypes import byref
from typing import Any

from penstock import _ckpt
from penstock import _native as native
from penstock._native import lib
from penstock._torch_save import F4, TORCH_NAMES, on_host, torch_module
from penstock.errors import E_UNSUPPORTED, FormatError, UnsupportedError, UsageError

STAGING_BYTES = 512 << 20  # host memory for tensors on their way to a device, unless one storage alone is larger

# A key of a dict or a member of a set is hashed whole, tuples in tuples each time anew and by recursion.
KEY_NODES, KEY_DEPTH = 100_000, 100


def dtype_of(number: int, what: str, path: str) -> Any:
    """The torch dtype of a number of the library's."""
    torch = torch_module()
    name = _ckpt.DTYPES[number] if 0 <= number < len(_ckpt.DTYPES) else f"number {number}"
    dtype = getattr(torch, TORCH_NAMES.get(name, ""), None)
    if not isinstance(dtype, torch.dtype):
        raise UnsupportedError(f"{what} is of dtype {name}, which this torch does not have", E_UNSUPPORTED, path)
    return dtype


def torch_shape(info: _ckpt.TensorInfo, path: str) -> tuple[int, ...]:
    """The shape in torch's elements, of which one of F4 holds two of the file's."""
    if info.dtype != F4:
        return info.shape
    if not info.shape or info.shape[-1] % 2:
        raise UnsupportedError(f"tensor {info.name!r} of F4 has an odd row, which torch cannot hold", path=path)
    return (*info.shape[:-1], info.shape[-1] // 2)


def device_of(map_location: Any) -> Any:
    """The device that map_location names."""
    torch = torch_module()
    if map_location is None:
        return torch.device("cpu")
    if isinstance(map_location, torch.device):
        return map_location
    if isinstance(map_location, (str, bytes)):
        try:
            return torch.device(map_location.decode() if isinstance(map_location, bytes) else map_location)
        except RuntimeError as problem:
            raise UsageError(f"map_location {map_location!r}: {problem}") from problem
    raise UsageError(
        f"map_location is a device or its name, not a {type(map_location).__name__}: "
        "tensors are read straight to one device (load to the CPU and move them, or use torch.load)"
    )


class Storages:
    """Fresh storages on one device, that are filled together."""

    def __init__(self, ckpt: _ckpt.Checkpoint, device: Any) -> None:
        self._ckpt = ckpt
        self._device = device
        self._made: list[tuple[_ckpt.Read, int, Any]] = []  # what to read, bytes, the storage

    def make(self, number: int, nbytes: int, is_storage: bool) -> Any:
        """The storage of a storage of the file's, or of one of its tensors."""
        torch = torch_module()
        try:
            storage = torch.UntypedStorage(nbytes, device=self._device)
        except RuntimeError as problem:
            raise MemoryError(f"{self._ckpt.path}: {nbytes} bytes on {self._device}: {problem}") from problem
        self._made.append((_ckpt.Read(number, 0, is_storage=is_storage), nbytes, storage))
        return storage

    def fill(self) -> None:
        if self._device.type == "meta":
            return
        if on_host(self._device):
            self._read([(read, nbytes, storage) for read, nbytes, storage in self._made])
            return
        for group in self._groups():
            self._fill_through_host(group)

    def _groups(self) -> Iterable[list[tuple[_ckpt.Read, int, Any]]]:
        group: list[tuple[_ckpt.Read, int, Any]] = []
        held = 0
        for entry in self._made:
            if group and held + entry[1] > STAGING_BYTES:
                yield group
                group, held = [], 0
            group.append(entry)
            held += entry[1]
        if group:
            yield group

    def _fill_through_host(self, group: Sequence[tuple[_ckpt.Read, int, Any]]) -> None:
        torch = torch_module()
        staged = [(read, nbytes, torch.UntypedStorage(nbytes)) for read, nbytes, _ in group]
        self._read(staged)
        for (_, _, host), (_, _, final) in zip(staged, group, strict=True):
            final.copy_(host)

    def _read(self, group: Sequence[tuple[_ckpt.Read, int, Any]]) -> None:
        self._ckpt.read(
            [
                _ckpt.Read(read.number, storage.data_ptr(), is_storage=read.is_storage)
                for read, nbytes, storage in group
                if nbytes > 0
            ]
        )


def view(info: _ckpt.TensorInfo, storage: Any, path: str) -> Any:
    """A tensor in its storage, checked once more: torch would enlarge a storage that is too small."""
    torch = torch_module()
    dtype = dtype_of(info.dtype, f"tensor {info.name!r}", path)
    shape = torch_shape(info, path)
    strides = info.strides
    out = torch.empty((0,), dtype=dtype, device=storage.device)
    size = out.element_size()
    if strides is None:
        strides = tuple(torch.empty(shape, device="meta").stride())
    elif info.dtype == F4:  # two to a byte, side by side in the last dimension
        strides = (*(stride // 2 for stride in strides[:-1]), 1)
    last = -1 if 0 in shape else sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    fits = info.storage_begin % size == 0 and min(strides, default=0) >= 0
    if not fits or (last >= 0 and info.storage_begin + (last + 1) * size > storage.nbytes()):
        raise FormatError(f"tensor {info.name!r} reaches outside of its storage", path=path)
    return out.set_(storage, info.storage_begin // size, shape, strides)


class Builder:
    """Builds the objects of a .pt file's values."""

    def __init__(self, ckpt: _ckpt.Checkpoint, device: Any) -> None:
        torch = torch_module()
        self._torch = torch
        self._ckpt = ckpt
        self._path = ckpt.path
        self.storages = Storages(ckpt, device)
        self._by_number: dict[int, Any] = {}
        self._record = _ckpt.ValueRecord()
        self._weights: dict[int, tuple[int, int]] = {}  # of tuples: nodes in them, counted each time, and depth
        self._done: list[Any] = []
        self._state = bytearray()
        self._makers: dict[int, Callable[[int, _ckpt.ValueRecord, list[int]], Any]] = {
            _ckpt.NONE: lambda *_: None,
            _ckpt.BOOL: lambda _node, value, _children: value.integer != 0,
            _ckpt.INT: self._int,
            _ckpt.FLOAT: lambda _node, value, _children: value.number,
            _ckpt.COMPLEX: lambda _node, value, _children: complex(value.number, value.imaginary),
            _ckpt.TEXT: lambda _node, value, _children: self._bytes(value).decode("utf-8", "surrogatepass"),
            _ckpt.BYTES: lambda _node, value, _children: self._bytes(value),
            _ckpt.BYTEARRAY: lambda _node, value, _children: bytearray(self._bytes(value)),
            _ckpt.LIST: lambda _node, _value, children: [self._done[child] for child in children],
            _ckpt.TUPLE: self._tuple,
            _ckpt.SET: self._set,
            _ckpt.DICT: self._dict,
            _ckpt.TENSOR: lambda _node, value, _children: self._tensor(value),
            _ckpt.NAMED: self._named,
        }

    def build(self) -> Any:
        """The whole: node 0. Its tensors' storages are not filled yet."""
        count = self._ckpt.value_count()
        if count == 0:
            raise self._ckpt.wrong("has no values")
        self._done = [None] * count
        self._state = bytearray(count)  # 0: new, 1: its children are being built, 2: built
        with self._ckpt.using() as handle:
            stack = [0]
            while stack:
                node = stack[-1]
                if self._state[node] == 2:
                    stack.pop()
                    continue
                children = self._look(handle, node)
                missing = [child for child in children if self._state[child] != 2]
                if not missing:
                    self._done[node] = self._make(node, children)
                    self._state[node] = 2
                    stack.pop()
                    continue
                if any(self._state[child] == 1 for child in missing) or self._state[node] == 1:
                    raise self._ckpt.wrong("has a value that holds itself")
                self._state[node] = 1
                stack.extend(reversed(missing))
        return self._done[0]

    def _look(self, handle: int, node: int) -> list[int]:
        """Reads a node into the record; its children, and what its attributes are."""
        record = self._record
        native.check(lib.pst_ckpt_value_at(handle, node, byref(record)), native.ErrorRecord())
        children: list[int] = record.children[: record.child_count] if record.child_count else []
        if record.attributes:
            children = [*children, record.attributes]
        if children and max(children) >= len(self._state):
            raise self._ckpt.wrong("has a value that is not there")
        return children

    def _make(self, node: int, children: list[int]) -> Any:
        value = self._record
        maker = self._makers.get(value.kind)
        if maker is None:
            raise UnsupportedError(f"has a value of kind {value.kind}, unknown to this package", path=self._path)
        if not value.attributes:
            return maker(node, value, children)
        made = maker(node, value, children[:-1])
        self._set_attributes(made, self._done[children[-1]])
        return made

    # ---- plain values ----

    @staticmethod
    def _bytes(value: _ckpt.ValueRecord) -> bytes:
        return ctypes.string_at(value.text, value.text_bytes) if value.text_bytes else b""

    def _name(self, value: _ckpt.ValueRecord) -> str:
        return self._bytes(value).decode("utf-8", "replace") if value.text else ""

    def _int(self, _node: int, value: _ckpt.ValueRecord, _children: list[int]) -> int:
        if value.text:
            return int.from_bytes(self._bytes(value), "little", signed=True)
        return int(value.integer)

    # ---- containers ----

    def _tuple(self, node: int, value: _ckpt.ValueRecord, children: list[int]) -> Any:
        self._weigh(node, children)
        made = tuple(self._done[child] for child in children)
        name = self._name(value)
        if name == "torch.Size":
            try:
                return self._torch.Size(made)
            except (TypeError, ValueError, RuntimeError, OverflowError) as problem:
                raise self._ckpt.wrong(f"has a torch.Size that cannot be: {problem}") from None
        return self._only(name, "tuple", made)

    def _set(self, node: int, value: _ckpt.ValueRecord, children: list[int]) -> Any:
        self._weigh(node, children)
        for child in children:
            self._check_key(child)
        name = self._name(value)
        try:
            made = {self._done[child] for child in children}
        except TypeError as problem:
            raise self._ckpt.wrong(f"has a set with a member that cannot be in one: {problem}") from None
        return frozenset(made) if name == "frozenset" else self._only(name, "set", made)

    def _dict(self, _node: int, value: _ckpt.ValueRecord, children: list[int]) -> Any:
        if len(children) % 2:
            raise self._ckpt.wrong("has a dict with a key and no value")
        name = self._name(value)
        made: dict[Hashable, Any]
        if name == "OrderedDict":
            made = OrderedDict()
        elif name == "Counter":
            made = Counter()
        else:
            made = self._only(name, "dict", {})
        done = self._done
        keys = iter(children)
        for key, held in zip(keys, keys, strict=True):
            if key in self._weights:
                self._check_key(key)
            try:
                made[done[key]] = done[held]
            except TypeError as problem:
                raise self._ckpt.wrong(f"has a dict with a key that cannot be one: {problem}") from None
        return made

    def _only(self, name: str, plain: str, made: Any) -> Any:
        if name in ("", plain):
            return made
        raise UnsupportedError(f"has a {plain} of the kind {name}, unknown to this package", path=self._path)

    def _weigh(self, node: int, children: list[int]) -> None:
        weights = [self._weights.get(child, (1, 0)) for child in children]
        self._weights[node] = (
            min(1 + sum(weight for weight, _ in weights), 1 << 40),
            1 + max((depth for _, depth in weights), default=0),
        )

    def _check_key(self, node: int) -> None:
        weight, depth = self._weights.get(node, (1, 0))
        if weight > KEY_NODES or depth > KEY_DEPTH:
            raise UnsupportedError("has a key of nested tuples that are too large to be one", path=self._path)

    # ---- torch's ----

    def _named(self, _node: int, value: _ckpt.ValueRecord, children: list[int]) -> Any:
        torch = self._torch
        name = self._name(value)
        if name == "torch.device":
            try:
                return torch.device(*(self._done[child] for child in children))
            except (TypeError, RuntimeError) as problem:
                raise self._ckpt.wrong(f"has a torch.device that cannot be: {problem}") from None
        known = getattr(torch, name.removeprefix("torch."), None)
        if name.startswith("torch.") and isinstance(known, (torch.dtype, torch.layout, torch.memory_format)):
            return known
        if name.startswith("torch.") and isinstance(known, torch.qscheme):
            return known
        raise UnsupportedError(f"has {name}, which this torch does not have", path=self._path)

    def _tensor(self, value: _ckpt.ValueRecord) -> Any:
        torch = self._torch
        info = self._ckpt.tensor(value.integer)
        storage = self._by_number.get(info.storage)
        if storage is None:
            storage = self.storages.make(info.storage, self._ckpt.storage_bytes(info.storage), is_storage=True)
            self._by_number[info.storage] = storage
        tensor = view(info, storage, self._path)
        with torch.no_grad():
            if value.conjugate:
                tensor = tensor.conj()
            if value.negative:
                tensor = torch._neg_view(tensor)
        name = self._name(value)
        try:
            if name == "Parameter":
                return torch.nn.Parameter(tensor, value.requires_grad)
            if value.requires_grad:
                tensor.requires_grad_(True)
        except RuntimeError as problem:  # only floating point and complex numbers have gradients
            raise self._ckpt.wrong(f"has a tensor that cannot be: {problem}") from None
        return self._only(name, "tensor", tensor)

    def _set_attributes(self, made: Any, attributes: Any) -> None:
        """A state dict's _metadata, and what training code hangs on parameters. Never what the class defines itself."""
        if type(attributes) not in (dict, OrderedDict) or not hasattr(made, "__dict__"):
            raise self._ckpt.wrong(f"has attributes that a {type(made).__name__} cannot have")
        for name, held in attributes.items():
            if not isinstance(name, str) or hasattr(type(made), name):
                raise UnsupportedError(
                    f"sets {name!r} of a {type(made).__name__}, which is no attribute to be set by a file",
                    path=self._path,
                )
            made.__dict__[name] = held
