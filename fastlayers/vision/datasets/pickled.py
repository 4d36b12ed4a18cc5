"""The pickles that the CIFAR data sets are published in, read without running them.

They were written by Python 2: dicts, lists, integers, byte strings, and one array of uint8 that is
given by its shape and its bytes. An instruction that makes anything else is refused, nothing is
imported, and no function is called.
https://docs.python.org/3/library/pickletools.html
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from typing import Any

import numpy as np

__all__ = ["read_pickled"]

_CONSTANTS = {b"N": None, b"\x88": True, b"\x89": False, b")": ()}
_EMPTY: dict[bytes, Callable[[], Any]] = {b"]": list, b"}": dict}
_NUMBERS = {b"K": "<B", b"M": "<H", b"J": "<i"}
_TUPLES = {b"\x85": 1, b"\x86": 2, b"\x87": 3}
_TEXTS = {b"U": "<B", b"T": "<i", b"X": "<I"}  # and how their lengths are written
_INDICES = {b"q": "<B", b"r": "<I", b"h": "<B", b"j": "<I"}  # of the memo
_NAMES = {
    "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray._reconstruct",
    "numpy.ndarray",
    "numpy.dtype",
}
_LONGEST_NAME = 100


class _Name(str):
    """A global name, which stands for nothing but itself."""

    __slots__ = ()


class _Made:
    """What a name and arguments would make: an array or a dtype, with the state it gets later."""

    def __init__(self, name: str, arguments: tuple[Any, ...]) -> None:
        self.name, self.arguments = name, arguments
        self.state: Any = None

    def array(self) -> np.ndarray:
        """The array of uint8."""
        _, shape, dtype, is_fortran, content = self.state
        if not (self.name.endswith("_reconstruct") and isinstance(dtype, _Made)):
            raise ValueError(f"{self.name} is refused where an array is to be")
        if dtype.name != "numpy.dtype" or dtype.arguments[0] not in (b"u1", b"|u1"):
            raise ValueError(f"an array of other numbers than uint8 is refused: {dtype.arguments}")
        if any(type(length) is not int or length < 0 for length in shape):
            raise ValueError(f"an array of shape {shape} is refused")
        if math.prod(shape) != len(content):
            raise ValueError(f"an array of shape {shape} is refused, it has {len(content)} bytes")
        order = "F" if is_fortran else "C"
        return np.frombuffer(content, np.uint8).reshape(shape, order=order)  # type: ignore[call-overload, no-any-return]


def read_pickled(data: bytes) -> dict[bytes, Any]:
    """The dict of a pickle of protocol 2, with byte strings as its keys.

    Raises
    ------
    ValueError
        The pickle is damaged, or holds something else than dicts, lists and tuples of integers,
        byte strings and arrays of uint8; the message names what.
    """
    try:
        value = _Machine(data).run()
        if not isinstance(value, dict):
            raise ValueError(f"the pickle is no dict, but {type(value).__name__}")
        # Arrays are where the files have them; what refers to itself can't be followed for ever.
        return {k: item.array() if isinstance(item, _Made) else item for k, item in value.items()}
    except (IndexError, KeyError, TypeError, struct.error) as error:
        message = f"the pickle is damaged: {type(error).__name__}: {error}"
        raise ValueError(message) from error


class _Machine:
    """A stack of values, and those of the marks below."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        while (code := self.take(1)) != b".":
            if code in _CONSTANTS:
                self.stack.append(_CONSTANTS[code])
            elif code in _EMPTY:
                self.stack.append(_EMPTY[code]())
            elif code in _NUMBERS:
                self.stack.append(self.number(_NUMBERS[code]))
            elif code in _TUPLES:
                self.stack.append(tuple(self.popped(_TUPLES[code])))
            elif code in _TEXTS:
                self.stack.append(self.take(self.number(_TEXTS[code])))
            elif code in _INSTRUCTIONS:
                _INSTRUCTIONS[code](self, code)
            else:
                raise ValueError(f"pickle instruction {code!r} is refused")
        return self.popped(1)[0]

    def take(self, count: int) -> bytes:
        content = self.data[self.at : self.at + count]
        if count < 0 or len(content) < count:
            raise ValueError(f"the pickle ends early: {len(content)} of {count} bytes")
        self.at += count
        return content

    def number(self, code: str) -> int:
        return struct.unpack(code, self.take(struct.calcsize(code)))[0]  # type: ignore[no-any-return]

    def popped(self, count: int) -> list[Any]:
        if len(self.stack) < count:
            raise ValueError("the pickle takes what it did not give")
        items = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]
        return items

    def since_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.below.pop()
        return items

    def protocol(self, _: bytes) -> None:
        if (number := self.take(1)[0]) != 2:
            raise ValueError(f"pickle protocol {number} is refused, the files are of protocol 2")

    def mark(self, _: bytes) -> None:
        self.below.append(self.stack)
        self.stack = []

    def tuple(self, _: bytes) -> None:
        items = tuple(self.since_mark())
        self.stack.append(items)

    def put(self, code: bytes) -> None:
        self.memo[self.number(_INDICES[code])] = self.stack[-1]

    def get(self, code: bytes) -> None:
        self.stack.append(self.memo[self.number(_INDICES[code])])

    def append(self, code: bytes) -> None:
        items = self.since_mark() if code == b"e" else self.popped(1)
        self.target(list).extend(items)

    def set(self, code: bytes) -> None:
        items = self.since_mark() if code == b"u" else self.popped(2)
        if len(items) % 2 or any(type(key) is not bytes for key in items[::2]):
            raise ValueError("a key of a dict that has no value or is no text is refused")
        self.target(dict).update(zip(items[::2], items[1::2], strict=True))

    def target(self, kind: Any) -> Any:
        if type(self.stack[-1]) is not kind:
            raise ValueError(f"a change of {type(self.stack[-1]).__name__} is refused")
        return self.stack[-1]

    def name(self, _: bytes) -> None:
        lines = self.data[self.at : self.at + _LONGEST_NAME].split(b"\n")
        if len(lines) < 3:
            raise ValueError(f"a global name of more than {_LONGEST_NAME} bytes is refused")
        self.at += len(lines[0]) + len(lines[1]) + 2
        name = f"{lines[0].decode('ascii', 'replace')}.{lines[1].decode('ascii', 'replace')}"
        if name not in _NAMES:
            raise ValueError(f"global {name!r} is refused, an array is made of {sorted(_NAMES)}")
        self.stack.append(_Name(name))

    def reduce(self, _: bytes) -> None:
        name, arguments = self.popped(2)
        if type(name) is not _Name or type(arguments) is not tuple:
            raise ValueError(f"a call of {type(name).__name__} is refused")
        self.stack.append(_Made(name, arguments))

    def build(self, _: bytes) -> None:
        (state,) = self.popped(1)
        self.target(_Made).state = state


_INSTRUCTIONS: dict[bytes, Callable[[_Machine, bytes], None]] = {
    b"\x80": _Machine.protocol, b"(": _Machine.mark, b"t": _Machine.tuple, b"q": _Machine.put,
    b"r": _Machine.put, b"h": _Machine.get, b"j": _Machine.get, b"a": _Machine.append,
    b"e": _Machine.append, b"s": _Machine.set, b"u": _Machine.set, b"c": _Machine.name,
    b"R": _Machine.reduce, b"b": _Machine.build,
}  # fmt: skip
