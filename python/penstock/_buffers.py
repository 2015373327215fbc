# SPDX-License-Identifier: Apache-2.0
"""Addresses of Python objects' memory, held in place for the time of a transfer.

Anything with the buffer protocol is exported (Py_buffer), so that its owner can neither free nor resize it; a PyTorch
tensor, which has none, is kept alive with its storage. Neither NumPy nor PyTorch is imported here: who passes an array
or a tensor has done so.
"""

from __future__ import annotations

import ctypes
import re
import sys
from array import array
from collections.abc import Iterable
from ctypes import POINTER, Structure, byref, c_char_p, c_int, c_ssize_t, c_void_p, py_object
from typing import Any, Protocol

from penstock.errors import UsageError

_WRITABLE, _FORMAT, _ND = 0x1, 0x4, 0x8


class _PyBuffer(Structure):
    """Py_buffer of the stable ABI"""

    _fields_ = [
        ("buf", c_void_p),
        ("obj", c_void_p),
        ("len", c_ssize_t),
        ("itemsize", c_ssize_t),
        ("readonly", c_int),
        ("ndim", c_int),
        ("format", c_char_p),
        ("shape", c_void_p),
        ("strides", c_void_p),
        ("suboffsets", c_void_p),
        ("internal", c_void_p),
    ]


# Python's own functions, not the library's: they need the interpreter lock and never wait.
_get_buffer = ctypes.pythonapi.PyObject_GetBuffer
_get_buffer.argtypes = (py_object, POINTER(_PyBuffer), c_int)
_get_buffer.restype = c_int
_release_buffer = ctypes.pythonapi.PyBuffer_Release
_release_buffer.argtypes = (POINTER(_PyBuffer),)
_release_buffer.restype = None

_FIELD_NAME = re.compile(rb":[^:]*:")


class Pin(Protocol):
    """Memory that stays where it is until `release`."""

    address: int
    nbytes: int

    def release(self) -> None: ...


class _BufferPin:
    __slots__ = ("_view", "address", "nbytes")

    def __init__(self, thing: Any, flags: int) -> None:
        view = _PyBuffer()
        _get_buffer(thing, byref(view), flags)
        self._view: _PyBuffer | None = view
        self.address: int = view.buf or 0
        self.nbytes: int = view.len

    def format(self) -> bytes:
        return (self._view.format if self._view is not None else None) or b"B"

    def release(self) -> None:
        view, self._view = self._view, None
        if view is not None:
            _release_buffer(byref(view))

    def __del__(self) -> None:
        if getattr(self, "_view", None) is not None:
            self.release()


class _TensorPin:
    __slots__ = ("_keep", "address", "nbytes")

    def __init__(self, tensor: Any, torch: Any) -> None:
        if tensor.device.type != "cpu":
            raise UsageError(f"a tensor on {tensor.device} is not in host memory")
        if tensor.layout != torch.strided or not tensor.is_contiguous():
            raise UsageError("a tensor that is not contiguous (use tensor.contiguous())")
        if tensor.is_conj() or tensor.is_neg():
            raise UsageError("a tensor whose conjugation or sign is pending (use tensor.resolve_conj().resolve_neg())")
        self._keep: Any = (tensor, tensor.untyped_storage())
        self.address: int = tensor.data_ptr()
        self.nbytes: int = tensor.numel() * tensor.element_size()

    def release(self) -> None:
        self._keep = None


def _refuse(thing: Any, writable: bool, problem: Exception) -> UsageError:
    """Says why an object with the buffer protocol was refused."""
    kind = type(thing).__name__
    if writable:
        try:
            _BufferPin(thing, _ND).release()
            return UsageError(f"the {kind} is read-only: nothing can be read into it")
        except (BufferError, ValueError):
            pass
    return UsageError(f"the {kind} cannot be used: {problem} (numpy.ascontiguousarray makes a copy that can)")


def _pin_array(thing: Any, writable: bool) -> Pin:
    """A NumPy array. Its memory matters, not its element type, which need not be one that the protocol can name."""
    if thing.dtype.hasobject:
        raise UsageError(f"an array of Python objects (dtype {thing.dtype}) has no plain bytes")
    try:
        return _BufferPin(thing, _ND | (_WRITABLE if writable else 0))
    except (BufferError, ValueError) as problem:
        if not thing.flags.c_contiguous or (writable and not thing.flags.writeable):
            raise _refuse(thing, writable, problem) from None
        return _BufferPin(thing.reshape(-1).view("u1"), _ND | (_WRITABLE if writable else 0))


def pin(thing: Any, writable: bool) -> Pin:
    """Pins an object's memory. `writable`: something will be read into it."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(thing, getattr(torch, "Tensor", ())):
        return _TensorPin(thing, torch)
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(thing, getattr(numpy, "ndarray", ())):
        return _pin_array(thing, writable)
    try:
        held = _BufferPin(thing, _ND | _FORMAT | (_WRITABLE if writable else 0))
    except (BufferError, ValueError) as problem:
        raise _refuse(thing, writable, problem) from None
    if b"O" in _FIELD_NAME.sub(b"", held.format()):
        held.release()
        raise UsageError(f"a {type(thing).__name__} of Python objects has no plain bytes")
    return held


class Memory:
    """The memory of one operation: one buffer, or several as segments."""

    __slots__ = ("_pins", "_table", "address", "nbytes", "segment_count", "segments")

    def __init__(self, buffer: Any, writable: bool) -> None:
        self._table: array[int] | None = None
        self.segment_count = self.segments = self.address = 0
        if not isinstance(buffer, (list, tuple)):
            held = pin(buffer, writable)
            self._pins: list[Pin] = [held]
            self.address = held.address
            self.nbytes = held.nbytes
            return
        self._pins = []
        try:
            for part in buffer:
                self._pins.append(pin(part, writable))
        except BaseException:
            self.release()
            raise
        self.nbytes = sum(held.nbytes for held in self._pins)
        if self._pins:
            self._table = array("Q", (n for held in self._pins for n in (held.address, held.nbytes)))
            self.segments = self._table.buffer_info()[0]
            self.segment_count = len(self._pins)

    def release(self) -> None:
        for held in self._pins:
            held.release()
        self._pins = []


def release_all(memories: Iterable[Memory]) -> None:
    for memory in memories:
        memory.release()
