# SPDX-License-Identifier: Apache-2.0
"""Objects as they are at one moment, to be pickled later by another thread.

A training waits while its state is taken for a save. Pickling some thousand tensors takes tens of milliseconds, most
of it for what torch's tensors reduce themselves to. So only what may change is taken at once: containers are copied,
and of tensors is noted what their pickle says; the pickle itself, byte for byte the same, can be made at any time.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from penstock.errors import UnsupportedError

_DEPTH = 100


class Mention:
    """A storage, named in a pickle."""

    __slots__ = ("id",)

    def __init__(self, id: tuple[Any, ...]) -> None:
        self.id = id


class Taken:
    """What stands for a tensor: what its pickle says of it."""

    __slots__ = ("is_parameter", "mention", "offset", "requires_grad", "shape", "stride")

    def __init__(
        self,
        mention: Mention,
        offset: int,
        shape: tuple[int, ...],
        stride: tuple[int, ...],
        requires_grad: bool,
        is_parameter: bool,
    ) -> None:
        self.mention = mention
        self.offset = offset
        self.shape = shape
        self.stride = stride
        self.requires_grad = requires_grad
        self.is_parameter = is_parameter


class Other(Exception):
    """There is an object that cannot be taken apart: it has to be pickled at once."""


class Storages:
    """The storages that a pickle names, by keys in the order of their first mention, as torch numbers them. `all`: they
    stay alive, so that no other gets their place."""

    def __init__(self, torch: Any) -> None:
        self._torch = torch
        self.all: list[Any] = []
        self._keys: dict[int, str] = {}  # by the C++ object of a storage
        self._types: dict[int, Any] = {}  # by its memory: the dtype of its first mention
        self._kinds: dict[Any, tuple[Any, int] | None] = {}  # by dtype: see _kind
        self._mentions: dict[int, Mention] = {}  # by the same, of tensors
        self._is_named = getattr(torch.Tensor, "has_names", None)
        self._tensor = torch.Tensor
        self._strided = torch.strided
        self._tag = torch.serialization.location_tag
        self._rebuild = torch._utils._rebuild_tensor_v2
        self._rebuild_parameter = torch._utils._rebuild_parameter

    def id_of(self, obj: Any) -> tuple[Any, ...]:
        """What a storage of either class of torch's is in a pickle."""
        torch = self._torch
        if isinstance(obj, torch.storage.TypedStorage):
            kind = getattr(torch, obj._pickle_storage_type())
            return self._id(obj._untyped_storage, obj.dtype, kind, obj._element_size())
        return self._id(obj, torch.uint8, getattr(torch, type(obj).__name__), 1)

    def _id(self, storage: Any, dtype: Any, kind: Any, size: int, is_host: bool = False) -> tuple[Any, ...]:
        if not is_host and storage.device.type == "meta":
            raise UnsupportedError("a storage on the meta device has no data to save")
        address = storage.data_ptr()
        # A storage has one type in the file: a reader would take the first for both.
        if address != 0 and self._types.setdefault(address, dtype) != dtype:
            raise UnsupportedError(
                f"tensors that see the same memory as {self._types[address]} and as {dtype} cannot be saved together"
            )
        key = self._keys.get(storage._cdata)
        if key is None:
            key = self._keys[storage._cdata] = str(len(self.all))
            self.all.append(storage)
        return ("storage", kind, key, "cpu" if is_host else self._tag(storage), storage.nbytes() // size)

    def _kind(self, dtype: Any) -> tuple[Any, int] | None:
        """The class that stands for a storage of this type, and the bytes of an element; None where tensors of the type
        are reduced in another way than most."""
        torch = self._torch
        new_types: Any = getattr(torch.storage, "_new_dtypes", tuple)()
        found = None
        if dtype not in new_types and dtype not in _quantized(torch):
            typed = torch.storage.TypedStorage(0, dtype=dtype, device="cpu", _internal=True)
            found = getattr(torch, typed._pickle_storage_type()), typed._element_size()
        self._kinds[dtype] = found
        return found

    def take(self, tensor: Any) -> Taken | None:
        """A torch.Tensor or a Parameter as it is now; None where it is none of the usual kind."""
        dtype = tensor.dtype
        kind = self._kinds[dtype] if dtype in self._kinds else self._kind(dtype)
        is_host = tensor.is_cpu
        if kind is None or tensor.layout is not self._strided or not (is_host or tensor.is_cuda):
            return None
        if tensor.is_nested or tensor.is_conj() or tensor.is_neg() or tensor._backward_hooks or tensor.__dict__:
            return None
        if self._is_named is not None and self._is_named(tensor):
            return None
        storage = tensor.untyped_storage()
        mention = self._mentions.get(storage._cdata)
        if mention is None:
            mention = self._mentions[storage._cdata] = Mention(self._id(storage, dtype, *kind, is_host))
        elif mention.id[1] is not kind[0]:
            mention = Mention(self._id(storage, dtype, *kind))
        return Taken(
            mention,
            tensor.storage_offset(),
            tuple(tensor.shape),
            tensor.stride(),
            tensor.requires_grad,
            type(tensor) is not self._tensor,
        )

    def reduce(self, taken: Taken) -> tuple[Any, ...]:
        """What the tensor reduces itself to."""
        if taken.is_parameter:
            data = Taken(taken.mention, taken.offset, taken.shape, taken.stride, False, False)
            return self._rebuild_parameter, (data, taken.requires_grad, OrderedDict())
        return self._rebuild, (
            taken.mention,
            taken.offset,
            taken.shape,
            taken.stride,
            taken.requires_grad,
            OrderedDict(),
        )


def _quantized(torch: Any) -> tuple[Any, ...]:
    names = ("qint8", "quint8", "qint32", "quint4x2", "quint2x4")
    return tuple(getattr(torch, name) for name in names if hasattr(torch, name))


class Taker:
    """Takes one object. `tensors`: those in it."""

    def __init__(self, torch: Any) -> None:
        self.storages = Storages(torch)
        self.tensors: list[Any] = []
        self._tensor = torch.Tensor
        self._parameter = torch.nn.Parameter
        plain = (str, int, float, bool, bytes, complex, type(None), torch.Size, torch.dtype, torch.device)
        self._unchanging = frozenset(plain)
        self._taken: dict[int, Any] = {}  # what stands for each object, by its address
        self._held: list[Any] = []  # so that no other object gets the address of one

    def take(self, obj: Any, depth: int = _DEPTH) -> Any:
        """What can be pickled in its place. Raises Other."""
        kind = type(obj)
        if kind in self._unchanging:
            return obj
        taken = self._taken.get(id(obj))
        if taken is not None:
            return taken
        if depth == 0:
            raise Other
        if kind is self._tensor or kind is self._parameter:
            taken = self.storages.take(obj)
            if taken is None:
                raise Other
            self.tensors.append(obj)
            self._taken[id(obj)] = taken
            return taken
        if kind is dict or kind is OrderedDict:
            return self._take_dict(obj, kind, depth)
        if kind is list:
            taken = self._taken[id(obj)] = []
            self._held.append(obj)
            taken += [self.take(one, depth - 1) for one in obj]
            return taken
        if kind is tuple:
            if all(type(one) in self._unchanging for one in obj):
                return obj
            taken = self._taken[id(obj)] = tuple([self.take(one, depth - 1) for one in obj])
            self._held.append(obj)
            return taken
        raise Other

    def _take_dict(self, obj: Any, kind: type, depth: int) -> Any:
        taken = self._taken[id(obj)] = obj.copy()
        self._held.append(obj)
        unchanging = self._unchanging
        for key, value in taken.items():
            if type(key) not in unchanging:
                raise Other
            if type(value) not in unchanging:
                taken[key] = self.take(value, depth - 1)
        if kind is OrderedDict and obj.__dict__:  # a state dict's _metadata; it is pickled after the items
            for name, value in obj.__dict__.items():
                taken.__dict__[name] = self.take(value, depth - 1)
        return taken
