# SPDX-License-Identifier: Apache-2.0
"""Reads a pickle without executing it.

A pickle is a program for a small stack machine, and Python's runs whatever it names. This one knows the opcodes that
plain values are written with, and a table of names that its user gives. What a name stands for is in that table alone:
nothing is imported, looked up or called because a file says so. Everything else is refused by its name.

Time and memory are bounded by the pickle's size: what would copy a value once more for a few bytes is counted, and
keys, whose hash would be computed recursively, are small.
"""

from __future__ import annotations

import pickletools
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["Callee", "Named", "Refused", "Walker"]

_KEY_DEPTH = 4  # of tuples in tuples
_KEY_VALUES = 1000
_PLAIN_KEYS = (str, int, float, bool, bytes, complex, type(None))


class Refused(Exception):
    """The pickle needs more than is read here. `name`: the class or function that it names, where that is why."""

    def __init__(self, message: str, name: str = "") -> None:
        super().__init__(message)
        self.name = name


class Named:
    """What a name stands for that is a value: it cannot be called."""

    def __init__(self, value: Any) -> None:
        self.value = value


class Callee:
    """What a name stands for that can be called. `call`: what is made of arguments; `new`: the same for a class whose
    object is made first and gets its state later. Both get the arguments as the pickle has them, unchecked.
    `is_argument`: it can be given to others."""

    def __init__(
        self,
        name: str,
        call: Callable[..., Any] | None = None,
        new: Callable[..., Any] | None = None,
        *,
        is_argument: bool = False,
    ) -> None:
        self.name = name
        self.call = call
        self.new = new
        self.is_argument = is_argument


class Walker:
    """`find`: what a name (module, name) stands for, or None. `set_state`: by type, what puts a state into an object.
    `persistent`: what a persistent identifier stands for. `check_key`: by type, what refuses a key of it that is not
    fit. A function of these that finds something wrong raises Refused; TypeError and ValueError are taken for it."""

    def __init__(
        self,
        find: Callable[[str, str], Named | Callee | None],
        set_state: Mapping[type, Callable[[Any, Any], None]],
        *,
        persistent: Callable[[Any], Any] | None = None,
        check_key: Mapping[type, Callable[[Any], None]] | None = None,
    ) -> None:
        self._find = find
        self._set_state = set_state
        self._persistent = persistent
        self._check_key = check_key or {}
        self._names: dict[tuple[str, str], Any] = {}
        self._stack: list[Any] = []
        self._below: list[list[Any]] = []  # the stacks under the marks
        self._memo: dict[int, Any] = {}
        self._room = 0
        self._steps: dict[str, Callable[[Any], None]] = {
            name.removeprefix("_op_"): getattr(self, name) for name in dir(self) if name.startswith("_op_")
        }

    def walk(self, data: bytes) -> Any:
        """The value that the pickle describes."""
        self._room = 4 * len(data) + 4096
        steps = self._steps
        self._stack = []
        self._below, self._memo = [], {}
        try:
            for opcode, argument, _ in pickletools.genops(data):
                name = opcode.name
                if name in _VALUES:
                    self._stack.append(argument)
                elif name == "STOP":
                    if len(self._stack) != 1 or self._below:
                        raise Refused("it ends with values left over")
                    if type(self._stack[0]) is Callee:
                        raise Refused(f"it names {self._stack[0].name} as a value", self._stack[0].name)
                    return self._stack[0]
                elif name in steps:
                    steps[name](argument)
                elif name not in _NOTHING:
                    raise Refused(f"it has the opcode {name}")
        except IndexError as problem:
            raise Refused("it takes values that are not there") from problem
        except (TypeError, ValueError, KeyError, OverflowError, AttributeError, RuntimeError) as problem:
            raise Refused(str(problem)) from problem
        raise Refused("it has no end")

    def copies(self, count: int) -> None:
        """To be called before so many values are copied once more."""
        self._room -= count
        if self._room < 0:
            raise Refused("it repeats values too often")

    # ---- the stack ----

    def _plain(self, value: Any) -> Any:
        """A value that may become part of others."""
        if type(value) is Callee and not value.is_argument:
            raise Refused(f"it names {value.name} as a value", value.name)
        return value

    def _pop(self) -> Any:
        return self._plain(self._stack.pop())

    def _mark(self) -> list[Any]:
        """All above the mark."""
        above, self._stack = self._stack, self._below.pop()
        for value in above:
            if type(value) is Callee:
                self._plain(value)
        return above

    def _op_MARK(self, _: Any) -> None:
        self._below.append(self._stack)
        self._stack = []

    def _op_POP(self, _: Any) -> None:
        if self._stack:
            self._stack.pop()
        else:
            self._mark()

    def _op_POP_MARK(self, _: Any) -> None:
        self._mark()

    def _op_DUP(self, _: Any) -> None:
        self._stack.append(self._stack[-1])

    # ---- what was there before ----

    def _op_MEMOIZE(self, _: Any) -> None:
        self._memo[len(self._memo)] = self._stack[-1]

    def _op_PUT(self, number: Any) -> None:
        self._memo[number] = self._stack[-1]

    _op_BINPUT = _op_LONG_BINPUT = _op_PUT

    def _op_GET(self, number: Any) -> None:
        if number not in self._memo:
            raise Refused(f"it takes value {number}, which is not there")
        self._stack.append(self._memo[number])

    _op_BINGET = _op_LONG_BINGET = _op_GET

    # ---- plain values and containers ----

    def _op_NONE(self, _: Any) -> None:
        self._stack.append(None)

    def _op_NEWTRUE(self, _: Any) -> None:
        self._stack.append(True)

    def _op_NEWFALSE(self, _: Any) -> None:
        self._stack.append(False)

    def _op_BYTEARRAY8(self, data: Any) -> None:
        self._stack.append(bytearray(data))

    def _op_EMPTY_TUPLE(self, _: Any) -> None:
        self._stack.append(())

    def _op_TUPLE1(self, _: Any) -> None:
        self._stack.append((self._pop(),))

    def _op_TUPLE2(self, _: Any) -> None:
        second, first = self._pop(), self._pop()
        self._stack.append((first, second))

    def _op_TUPLE3(self, _: Any) -> None:
        third, second, first = self._pop(), self._pop(), self._pop()
        self._stack.append((first, second, third))

    def _op_TUPLE(self, _: Any) -> None:
        above = self._mark()
        self._stack.append(tuple(above))

    def _op_EMPTY_LIST(self, _: Any) -> None:
        self._stack.append([])

    def _op_LIST(self, _: Any) -> None:
        above = self._mark()
        self._stack.append(above)

    def _op_APPEND(self, _: Any) -> None:
        value = self._pop()
        self._list().append(value)

    def _op_APPENDS(self, _: Any) -> None:
        values = self._mark()
        self._list().extend(values)

    def _list(self) -> list[Any]:
        found = self._stack[-1]
        if type(found) is not list:
            raise Refused(f"it appends to a {type(found).__name__}")
        return found

    def _op_EMPTY_DICT(self, _: Any) -> None:
        self._stack.append({})

    def _op_DICT(self, _: Any) -> None:
        above = self._mark()
        self._stack.append({})
        self._fill(above)

    def _op_SETITEM(self, _: Any) -> None:
        value, key = self._pop(), self._pop()
        self._fill([key, value])

    def _op_SETITEMS(self, _: Any) -> None:
        self._fill(self._mark())

    def _fill(self, pairs: list[Any]) -> None:
        found = self._stack[-1]
        if type(found) not in (dict, OrderedDict, Counter):
            raise Refused(f"it sets an item of a {type(found).__name__}")
        if len(pairs) % 2:
            raise Refused("it has a key without a value")
        keys = iter(pairs)
        for key, value in zip(keys, keys, strict=True):
            self.check_key(key)
            found[key] = value

    def _op_EMPTY_SET(self, _: Any) -> None:
        self._stack.append(set())

    def _op_ADDITEMS(self, _: Any) -> None:
        values = self._mark()
        found = self._stack[-1]
        if type(found) is not set:
            raise Refused(f"it adds to a {type(found).__name__}")
        found.update(self.keys(values))

    def _op_FROZENSET(self, _: Any) -> None:
        above = self._mark()
        self._stack.append(frozenset(self.keys(above)))

    def keys(self, values: Any) -> list[Any]:
        """Values that become members of a set."""
        if not isinstance(values, (list, tuple, set, frozenset)):
            raise Refused(f"it makes a set of a {type(values).__name__}")
        self.copies(len(values))
        for value in values:
            self.check_key(value)
        return list(values)

    def check_key(self, key: Any) -> None:
        if type(key) in _PLAIN_KEYS:
            return
        checks = self._check_key.get(type(key))
        if checks is not None:
            checks(key)
        else:
            self._check_tuple(key)

    @staticmethod
    def _check_tuple(key: Any) -> None:
        level, count = [key], 0
        for _ in range(_KEY_DEPTH + 1):
            below: list[Any] = []
            for value in level:
                if isinstance(value, tuple):
                    count += len(value)
                    if count > _KEY_VALUES:
                        raise Refused("it has a key of too many values")
                    below += value
                elif type(value) not in _PLAIN_KEYS:
                    raise Refused(f"it has a {type(value).__name__} as a key")
            level = below
        if level:
            raise Refused("it has a key of tuples in tuples")

    # ---- names ----

    def _op_GLOBAL(self, argument: Any) -> None:
        module, _, name = argument.partition(" ")
        self._name(module, name)

    def _op_STACK_GLOBAL(self, _: Any) -> None:
        name, module = self._pop(), self._pop()
        if type(name) is not str or type(module) is not str:
            raise Refused("it has a name that is no text")
        self._name(module, name)

    def _name(self, module: str, name: str) -> None:
        if (module, name) not in self._names:
            found = self._find(module, name)
            if found is None:
                raise Refused(f"it names {module}.{name}"[:300], f"{module}.{name}"[:200])
            self._names[module, name] = found.value if isinstance(found, Named) else found
        self._stack.append(self._names[module, name])

    def _op_REDUCE(self, _: Any) -> None:
        arguments, callee = self._pop(), self._stack.pop()
        if not isinstance(callee, Callee) or callee.call is None:
            raise Refused(f"it calls {callee.name if isinstance(callee, Callee) else type(callee).__name__}")
        if type(arguments) is not tuple:
            raise Refused(f"it calls {callee.name} with a {type(arguments).__name__}")
        self._stack.append(callee.call(*arguments))

    def _op_NEWOBJ(self, _: Any) -> None:
        arguments, callee = self._pop(), self._stack.pop()
        if not isinstance(callee, Callee) or callee.new is None:
            name = callee.name if isinstance(callee, Callee) else type(callee).__name__
            raise Refused(f"it makes an object of {name}")
        if type(arguments) is not tuple:
            raise Refused(f"it makes an object of {callee.name} with a {type(arguments).__name__}")
        self._stack.append(callee.new(*arguments))

    def _op_BUILD(self, _: Any) -> None:
        state = self._pop()
        found = self._stack[-1]
        set_state = self._set_state.get(type(found))
        if set_state is None:
            raise Refused(f"it sets the state of a {type(found).__name__}")
        set_state(found, state)

    def _op_BINPERSID(self, _: Any) -> None:
        if self._persistent is None:
            raise Refused("it names a persistent object")
        self._stack.append(self._persistent(self._stack.pop()))


# Opcodes whose argument is the value.
_VALUES = frozenset(
    "INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 "
    "BINBYTES SHORT_BINBYTES BINBYTES8".split()
)
_NOTHING = frozenset(("PROTO", "FRAME"))
