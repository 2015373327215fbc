# SPDX-License-Identifier: Apache-2.0
"""Random objects such as training code saves, and whether two are the same to the last bit."""

from __future__ import annotations

import random
import struct
from collections import Counter, OrderedDict
from typing import Any

import torch

# All that torch can save as plain tensors.
DTYPES = [
    getattr(torch, name)
    for name in (
        "bool uint8 int8 int16 int32 int64 uint16 uint32 uint64 float16 bfloat16 float32 float64 complex32 complex64 "
        "complex128 float8_e4m3fn float8_e5m2 float8_e4m3fnuz float8_e5m2fnuz float8_e8m0fnu float4_e2m1fn_x2"
    ).split()
    if hasattr(torch, name)
]
INTEGERS = (0, 1, -1, 255, 256, 65535, 65536, 2**31 - 1, 2**31, -(2**31), -(2**31) - 1, 2**63, -(2**63) - 1, 3**300)
TEXTS = ("", "weight", "layers.0.q", "é", "日本", "\U0001f600", "a\0b", "tab\t\n", "\ud800 alone", "x" * 300)
FLOATS = (0.0, -0.0, 1.5, float("inf"), -1e-310)


def storage_of(rng: random.Random, nbytes: int, dtype: torch.dtype) -> torch.UntypedStorage:
    """Random bytes; NaNs with payloads among them."""
    content = rng.randbytes(nbytes)
    if dtype == torch.bool:
        content = bytes(b & 1 for b in content)
    storage = torch.UntypedStorage(nbytes)
    flat = torch.empty(0, dtype=torch.uint8).set_(storage)
    if nbytes:
        flat.copy_(torch.frombuffer(bytearray(content), dtype=torch.uint8))
    return storage


class Maker:
    """Makes objects. `weights_only`: such alone as torch.load(weights_only=True) knows."""

    def __init__(self, rng: random.Random, weights_only: bool = True) -> None:
        self.rng = rng
        self.weights_only = weights_only
        self.storages: list[tuple[torch.UntypedStorage, torch.dtype]] = []
        self.made: list[Any] = []

    def tensor(self) -> torch.Tensor:
        """Contiguous or not, a view of a storage that others may have, 0-dimensional, empty."""
        rng = self.rng
        if self.storages and rng.random() < 0.4:
            storage, dtype = rng.choice(self.storages)
        else:
            dtype = rng.choice(DTYPES)
            size = torch.empty(0, dtype=dtype).element_size()
            largest = rng.choice((0, 1, 30, 30, 3000, 70000))
            storage = storage_of(rng, size * rng.randint(0, largest), dtype)
            self.storages.append((storage, dtype))
        out = torch.empty(0, dtype=dtype)
        room = storage.nbytes() // out.element_size()
        shape, stride, left = [], [], room
        for _ in range(rng.randint(0, 4)):
            most = max(1, min(left, 12))
            shape.append(rng.randint(0 if rng.random() < 0.1 else 1, most))
        if room == 0 and not (shape and 0 in shape):
            shape = [0, *shape]
        # Row-major, then the dimensions in another order, or with gaps, or all on one place.
        while 0 not in shape and _count(shape) > room:
            shape.remove(max(shape))
        step = 1
        for n in reversed(shape):
            stride.append(step)
            step *= max(n, 1)
        stride.reverse()
        whole_rows = str(dtype) == "torch.float4_e2m1fn_x2"  # two to a byte: others are refused where they are read
        if whole_rows and not shape:
            shape, stride = [1 if room else 0], [1]
        if shape and not whole_rows and rng.random() < 0.3:
            order = rng.sample(range(len(shape)), len(shape))
            shape, stride = [shape[i] for i in order], [stride[i] for i in order]
        if shape and not whole_rows and rng.random() < 0.1:
            stride[rng.randrange(len(stride))] = 0
        reach = 0 if 0 in shape else 1 + sum((n - 1) * s for n, s in zip(shape, stride, strict=True))
        offset = rng.randint(0, room - reach)
        out = out.set_(storage, offset, shape, stride)
        differentiable = dtype.is_floating_point or dtype.is_complex
        if rng.random() < 0.3:
            return torch.nn.Parameter(out, requires_grad=differentiable and rng.random() < 0.7)
        # torch.load itself fails on tensors of the newer dtypes that require gradients, unless they are parameters.
        differentiable = differentiable and dtype not in torch.storage._new_dtypes()
        return out.requires_grad_() if differentiable and rng.random() < 0.2 else out

    def scalar(self) -> Any:
        rng = self.rng
        kinds = [
            lambda: None,
            lambda: rng.random() < 0.5,
            lambda: rng.choice(INTEGERS),
            lambda: rng.getrandbits(rng.randint(1, 900)) - (1 << rng.randint(0, 900)),
            lambda: rng.choice(FLOATS),
            lambda: struct.unpack("<d", struct.pack("<Q", 0x7FF0_0000_0000_0001 | rng.getrandbits(51)))[0],
            lambda: rng.uniform(-1e9, 1e9),
            lambda: complex(rng.random(), rng.choice(FLOATS)),
            lambda: rng.choice(TEXTS),
            lambda: rng.randbytes(rng.choice((1 if self.weights_only else 0, 1, 300))),
            lambda: bytearray(rng.randbytes(rng.choice((0, 1, 300)))),
            lambda: rng.choice(DTYPES),
            lambda: torch.device(rng.choice(("cpu", "cuda:1", "meta"))),
            lambda: torch.Size([rng.randrange(100) for _ in range(rng.randrange(4))]),
            lambda: torch.sparse_coo,
            lambda: {rng.choice(INTEGERS) for _ in range(rng.randrange(5))},
        ]
        if not self.weights_only:
            kinds.append(lambda: frozenset({rng.choice(TEXTS) for _ in range(rng.randrange(5))}))
        return rng.choice(kinds)()

    def key(self) -> Any:
        rng = self.rng
        plain = (rng.choice(TEXTS), rng.randrange(1000), (1, rng.choice(TEXTS)), None, 1.5, f"k{rng.randrange(10**6)}")
        return rng.choice(plain)

    def anything(self, depth: int) -> Any:
        rng = self.rng
        choice = rng.random()
        if depth == 0 or choice < 0.25:
            made: Any = self.scalar()
        elif choice < 0.55:
            made = self.tensor()
        elif choice < 0.62 and self.made:
            return rng.choice(self.made)  # the same object once more
        else:
            made = self.container(depth)
        self.made.append(made)
        return made

    def container(self, depth: int) -> Any:
        rng = self.rng
        count = rng.choice((0, 1, 2, 3, 6))
        values = [self.anything(depth - 1) for _ in range(count)]
        kind = rng.randrange(6)
        if kind == 0:
            return values
        if kind == 1:
            return tuple(values)
        if kind == 2:
            made = OrderedDict((self.key(), value) for value in values)
            if rng.random() < 0.5:
                made._metadata = OrderedDict({"": {"version": rng.randrange(9)}})
            return made
        if kind == 3:
            return Counter({self.key(): rng.randrange(9) for _ in values}) if not self.weights_only else {}
        return {self.key(): value for value in values}


def _count(shape: list[int]) -> int:
    count = 1
    for n in shape:
        count *= n
    return count


def content(storage: torch.UntypedStorage) -> bytes:
    """A storage's bytes."""
    return bytes(torch.empty(0, dtype=torch.uint8).set_(storage.cpu()).numpy())


class Comparison:
    """Whether two objects are the same: types, bits, order, and what is shared with what."""

    def __init__(self, strict_storages: bool = True) -> None:
        self._objects: dict[int, Any] = {}
        self._back: dict[int, Any] = {}
        self._storages: dict[int, int] = {}
        self._storages_back: dict[int, int] = {}
        self._keep: list[Any] = []
        self._strict_storages = strict_storages  # the file has whole storages, as torch.save writes them

    def same(self, a: Any, b: Any, where: str = "") -> None:
        assert type(a) is type(b), f"{where}: {type(a)} and {type(b)}"
        self._keep += [a, b]
        if isinstance(a, (list, dict, set, bytearray, torch.Tensor)):
            if id(a) in self._objects or id(b) in self._back:
                assert self._objects.get(id(a)) is b and self._back.get(id(b)) is a, f"{where}: shared otherwise"
                return
            self._objects[id(a)], self._back[id(b)] = b, a
        if isinstance(a, torch.Tensor):
            self._tensors(a, b, where)
        elif isinstance(a, dict):
            assert len(a) == len(b), where
            for (key, value), (other_key, other) in zip(a.items(), b.items(), strict=True):
                self.same(key, other_key, f"{where}[key {key!r}]")
                self.same(value, other, f"{where}[{key!r}]")
            mine, theirs = getattr(a, "__dict__", {}), getattr(b, "__dict__", {})
            assert mine.keys() == theirs.keys(), f"{where}: attributes {list(mine)} and {list(theirs)}"
            for name in mine:
                self.same(mine[name], theirs[name], f"{where}.{name}")
        elif isinstance(a, (list, tuple)):
            assert len(a) == len(b), where
            for i, (value, other) in enumerate(zip(a, b, strict=True)):
                self.same(value, other, f"{where}[{i}]")
        elif isinstance(a, float):
            assert struct.pack("<d", a) == struct.pack("<d", b), f"{where}: {a} and {b}"
        elif isinstance(a, complex):
            self.same((a.real, a.imag), (b.real, b.imag), where)
        else:
            assert a == b, f"{where}: {a!r} and {b!r}"

    def _tensors(self, a: torch.Tensor, b: torch.Tensor, where: str) -> None:
        for what in ("dtype", "shape", "layout", "requires_grad", "device"):
            assert getattr(a, what) == getattr(b, what), f"{where}: {what}"
        assert a.is_leaf and b.is_leaf, where
        assert a.stride() == b.stride(), f"{where}: {a.stride()} and {b.stride()}"
        assert a.is_conj() == b.is_conj() and a.is_neg() == b.is_neg(), where
        if self._strict_storages:
            assert a.storage_offset() == b.storage_offset(), where
        mine, other = a.untyped_storage(), b.untyped_storage()
        if mine.nbytes() == 0:
            return  # there is no memory to share
        seen = mine._cdata in self._storages
        assert self._storages.setdefault(mine._cdata, other._cdata) == other._cdata, f"{where}: memory shared otherwise"
        assert self._storages_back.setdefault(other._cdata, mine._cdata) == mine._cdata, f"{where}: memory shared"
        if not seen and self._strict_storages:
            assert content(mine) == content(other), f"{where}: other bits"


def assert_same(a: Any, b: Any) -> None:
    Comparison().same(a, b)
