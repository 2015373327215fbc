# SPDX-License-Identifier: Apache-2.0
"""Python objects as the JSON that tests/support/torch_json.c makes from a file of torch.save."""

from __future__ import annotations

import collections
import struct

import torch

DTYPES = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.int16: "I16",
    torch.uint16: "U16",
    torch.int32: "I32",
    torch.uint32: "U32",
    torch.int64: "I64",
    torch.uint64: "U64",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float32: "F32",
    torch.float64: "F64",
    torch.complex32: "C32",
    torch.complex64: "C64",
    torch.complex128: "C128",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.float8_e8m0fnu: "F8_E8M0",
    torch.float8_e4m3fnuz: "F8_E4M3FNUZ",
    torch.float8_e5m2fnuz: "F8_E5M2FNUZ",
    torch.float4_e2m1fn_x2: "F4",
}


def bits(number: float) -> str:
    """Of a float64, big-endian."""
    return struct.pack(">d", number).hex()


class Describer:
    """Numbers what has an identity, and storages, in the order in which they come."""

    def __init__(self) -> None:
        self.seen: dict[int, int] = {}
        self.storages: dict[int, int] = {}

    def tensor(self, tensor: torch.Tensor, path: list[str]) -> list:
        """["tensor", {...}]"""
        doubled = 2 if tensor.dtype == torch.float4_e2m1fn_x2 else 1
        shape, strides = list(tensor.shape), [stride * doubled for stride in tensor.stride()]
        if doubled == 2:
            shape[-1] *= 2
            strides[-1] = 1
        storage = tensor.untyped_storage()
        number = self.storages.setdefault(storage._cdata, len(self.storages))
        plain = tensor.detach()
        is_conj, is_neg = plain.is_conj(), plain.is_neg()
        plain = torch._neg_view(plain) if is_neg else plain
        plain = torch._conj(plain) if is_conj else plain
        raw = bytes(plain.contiguous().untyped_storage())[: plain.numel() * plain.element_size()]
        if plain.is_contiguous():
            begin = plain.storage_offset() * plain.element_size()
            raw = bytes(storage)[begin : begin + plain.numel() * plain.element_size()]
        described = {
            "name": ".".join(path),
            "dtype": DTYPES[tensor.dtype],
            "shape": shape,
            "strides": strides,
            "begin": tensor.storage_offset() * tensor.element_size(),
            "storage": number,
            "storage_bytes": storage.nbytes(),
            "parameter": isinstance(tensor, torch.nn.Parameter),
            "requires_grad": tensor.requires_grad,
            "conjugate": is_conj,
            "negative": is_neg,
            "contiguous": tensor.stride() == torch.empty(tensor.shape, device="meta").stride(),
            "data": raw.hex(),
        }
        if tensor.__dict__:
            described["attributes"] = self.value(tensor.__dict__, path)
        return ["tensor", described]

    def key(self, key: object, index: int) -> str:
        """What of a dict's key goes into tensors' names."""
        if isinstance(key, str):
            raw = key.replace("\0", "?").encode("utf-8", "surrogatepass")
            return "".join("???" if 0xD800 <= ord(c) < 0xE000 else c for c in raw.decode("utf-8", "surrogatepass"))
        if key is None or isinstance(key, bool) or (isinstance(key, int) and -(2**63) <= key < 2**63):
            return str(key)
        return str(index)

    def mapping(self, name: str, mapping: dict, path: list[str]) -> list:
        """A dict of some kind, with its attributes where it has some."""
        items = []
        for i, (key, value) in enumerate(mapping.items()):
            items.append(self.value(key, [*path, str(i)]))
            items.append(self.value(value, [*path, self.key(key, i)]))
        described: list = [name, items]
        if getattr(mapping, "__dict__", None):
            described.append(self.value(mapping.__dict__, path))
        return described

    def items(self, name: str, items: object, path: list[str]) -> list:
        """A sequence of some kind."""
        return [name, [self.value(item, [*path, str(i)]) for i, item in enumerate(items)]]

    def value(self, value: object, path: list[str]) -> list:
        """Any value."""
        if isinstance(value, (list, set, dict, bytearray, torch.Tensor)):
            if id(value) in self.seen:
                return ["same", self.seen[id(value)]]
            self.seen[id(value)] = len(self.seen)
        if value is None:
            return ["none"]
        if isinstance(value, torch.Tensor):
            return self.tensor(value, path)
        if isinstance(value, collections.OrderedDict):
            return self.mapping("OrderedDict", value, path)
        if isinstance(value, collections.Counter):
            return self.mapping("Counter", value, path)
        if isinstance(value, dict):
            return self.mapping("dict", value, path)
        if isinstance(value, torch.Size):
            return self.items("torch.Size", value, path)
        if isinstance(value, (list, tuple, set, frozenset)):
            return self.items(type(value).__name__, value, path)
        if isinstance(value, torch.device):
            return self.items("torch.device", value.__reduce__()[1], path)
        if isinstance(value, (torch.dtype, torch.layout, torch.memory_format, torch.qscheme)):
            return [str(value), []]
        return self.scalar(value)

    def scalar(self, value: object) -> list:
        """What holds nothing else."""
        if isinstance(value, bool):
            return ["bool", value]
        if isinstance(value, int):
            return ["int", str(value)]
        if isinstance(value, float):
            return ["float", bits(value)]
        if isinstance(value, complex):
            return ["complex", bits(value.real), bits(value.imag)]
        if isinstance(value, str):
            return ["text", value.encode("utf-8", "surrogatepass").hex()]
        if isinstance(value, (bytes, bytearray)):
            return [type(value).__name__, bytes(value).hex()]
        raise TypeError(type(value))


def describe(value: object) -> list:
    """The JSON of a value."""
    return Describer().value(value, [])
