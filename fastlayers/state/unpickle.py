"""The part of pickle that data needs: nothing is imported, looked up or called except what the
caller lists.

https://docs.python.org/3/library/pickletools.html, https://peps.python.org/pep-0307/

The time of every instruction is bounded by its length and by what it takes from the stack, its
memory by 100 times its length.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from fastlayers.state.nested import DEEPEST, PLAIN

__all__ = ["Function", "Leaf", "Machine", "call", "plain", "unpickle"]

_CONSTANTS = {b"N": None, b"\x88": True, b"\x89": False, b")": ()}
_EMPTY: dict[bytes, Callable[[], Any]] = {b"]": list, b"}": dict}
_TUPLES = {b"\x85": 1, b"\x86": 2, b"\x87": 3}
_LENGTHS = {b"q": 1, b"r": 4, b"h": 1, b"j": 4}  # of the memo's indices
_LONGEST_NAME = 200
_MOST_ARGUMENTS = 8


@dataclass(frozen=True)
class Function:
    """What a pickle may call, under a global name."""

    run: Callable[..., Any]


@dataclass(frozen=True)
class Leaf:
    """A part of the data that a function made, or that a global name stands for."""

    value: Any


def unpickle(data: bytes, names: Mapping[str, Any], persistent: Callable[[Any], Any]) -> Any:
    """The value of a pickle of protocol 2.

    Parameters
    ----------
    data : bytes
        The pickle.
    names : mapping of str to object
        What global names, such as ``"collections.OrderedDict"``, stand for.
    persistent : callable
        What a persistent identifier stands for.

    Raises
    ------
    ValueError
        If a name or an instruction is not one of those listed.
    LookupError, TypeError, struct.error
        If the pickle is damaged.
    """
    return Machine(data, names, persistent).run()


def call(function: Any, arguments: Any) -> Any:
    """The result of a listed function; others are never called."""
    if type(function) is not Function or type(arguments) is not tuple:
        raise ValueError(f"a call of {type(function).__name__} is refused")
    # So that the time of a call does not depend on a tuple made earlier.
    if len(arguments) > _MOST_ARGUMENTS:
        raise ValueError(f"a call with {len(arguments)} arguments is refused")
    return function.run(*arguments)


class Machine:
    """A stack of values, and those of the marks below.

    A subclass may list other instructions and numbers, and do some otherwise.
    """

    # What an error says about other global names.
    allowed = (
        "dicts, lists and tuples of numbers, text and tensors of bools, integers, bfloat16 and "
        "float16 to float64 can be loaded, but no pickled objects; of a model, save "
        "model.state_dict()"
    )
    numbers: ClassVar = {b"K": "<B", b"M": "<H", b"J": "<i", b"G": ">d"}
    # The method of each instruction, which is called with its code.
    instructions: ClassVar = {
        b"\x80": "protocol", b"(": "mark", b"t": "tuple", b"\x8a": "long", b"X": "text",
        b"q": "put", b"r": "put", b"h": "get", b"j": "get", b"a": "append", b"e": "append",
        b"s": "set", b"u": "set", b"b": "build", b"c": "name", b"R": "reduce", b"Q": "persist",
    }  # fmt: skip

    def __init__(
        self, data: bytes, names: Mapping[str, Any], persistent: Callable[[Any], Any]
    ) -> None:
        self.data, self.at = data, 0
        self.names, self.persistent = names, persistent
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        """Go through the pickle, and return its value."""
        while (code := self.take(1)) != b".":
            if code in _CONSTANTS:
                self.stack.append(_CONSTANTS[code])
            elif code in _EMPTY:
                self.stack.append(_EMPTY[code]())
            elif code in self.numbers:
                self.stack.append(self.number(self.numbers[code]))
            elif code in _TUPLES:
                self.stack.append(tuple(self.popped(_TUPLES[code])))
            elif code in self.instructions:
                getattr(self, self.instructions[code])(code)
            else:
                raise ValueError(f"pickle instruction {code!r} is refused")
        (value,) = self.stack
        return value

    def take(self, count: int) -> bytes:
        """The next bytes."""
        content = self.data[self.at : self.at + count]
        if count < 0 or len(content) < count:
            raise ValueError(f"its pickle ends early: {len(content)} of {count} bytes")
        self.at += count
        return content

    def number(self, code: str) -> Any:
        """The next number, in `struct`'s notation."""
        return struct.unpack(code, self.take(struct.calcsize(code)))[0]

    def popped(self, count: int) -> list[Any]:
        """Take items from the top of the stack."""
        if len(self.stack) < count:
            raise ValueError("its pickle pops more than it pushed")
        items = self.stack[-count:]
        del self.stack[-count:]
        return items

    def since_mark(self) -> list[Any]:
        """Take all items since the last mark."""
        items, self.stack = self.stack, self.below.pop()
        return items

    def protocol(self, _: bytes) -> None:
        """PROTO: only the one that PyTorch and Python 2 write."""
        if (number := self.take(1)[0]) != 2:
            raise ValueError(f"pickle protocol {number} is refused, only 2 is read")

    def mark(self, _: bytes) -> None:
        """MARK: what follows belongs together."""
        self.below.append(self.stack)
        self.stack = []

    def tuple(self, _: bytes) -> None:
        """TUPLE, of what followed the mark."""
        items = tuple(self.since_mark())
        self.stack.append(items)

    def long(self, _: bytes) -> None:
        """LONG1: an integer of any size."""
        self.stack.append(int.from_bytes(self.take(self.take(1)[0]), "little", signed=True))

    def text(self, _: bytes) -> None:
        """BINUNICODE."""
        self.stack.append(self.take(self.number("<I")).decode("utf-8", "surrogatepass"))

    def put(self, code: bytes) -> None:
        """BINPUT: remember the top of the stack."""
        self.memo[int.from_bytes(self.take(_LENGTHS[code]), "little")] = self.stack[-1]

    def get(self, code: bytes) -> None:
        """BINGET: return what was remembered."""
        self.stack.append(self.memo[int.from_bytes(self.take(_LENGTHS[code]), "little")])

    def append(self, code: bytes) -> None:
        """APPEND and APPENDS."""
        items = self.since_mark() if code == b"e" else self.popped(1)
        self.target(list).extend(items)

    def set(self, code: bytes) -> None:
        """SETITEM and SETITEMS."""
        items = self.since_mark() if code == b"u" else self.popped(2)
        keys = items[::2]
        if any(type(key) not in PLAIN for key in keys):  # whose hashes do not recurse
            raise ValueError("a key of a dict is neither text nor a number")
        self.target(dict).update(zip(keys, items[1::2], strict=True))

    def target(self, kind: type) -> Any:
        """The top of the stack, which is about to change."""
        if type(self.stack[-1]) is not kind:
            raise ValueError(
                f"its pickle takes {type(self.stack[-1]).__name__} for {kind.__name__.strip('_')}"
            )
        return self.stack[-1]

    def build(self, _: bytes) -> None:
        """Attributes of an OrderedDict, such as _metadata, which do not affect its items."""
        self.popped(1)
        self.target(dict)

    def name(self, _: bytes) -> None:
        """GLOBAL: what a listed name stands for."""
        lines = self.data[self.at : self.at + _LONGEST_NAME].split(b"\n")
        if len(lines) < 3:
            raise ValueError(f"a global name of more than {_LONGEST_NAME} bytes is refused")
        self.at += len(lines[0]) + len(lines[1]) + 2
        name = f"{lines[0].decode('ascii', 'replace')}.{lines[1].decode('ascii', 'replace')}"
        if name not in self.names:
            raise ValueError(f"global {name!r} is refused: {self.allowed}")
        self.stack.append(self.names[name])

    def reduce(self, _: bytes) -> None:
        """REDUCE: call a listed function."""
        function, arguments = self.popped(2)
        self.stack.append(call(function, arguments))

    def persist(self, _: bytes) -> None:
        """BINPERSID: what the caller returns for an identifier."""
        (identifier,) = self.popped(1)
        self.stack.append(self.persistent(identifier))


def plain(value: Any, most: int) -> Any:
    """A copy of a value made of dicts, lists and tuples of plain values and of leaves' values.

    An object that occurs in several places is one object in the copy too.

    Raises
    ------
    ValueError
        If it is anything else, nested more than 100 deep, or has more than `most` parts, counting
        the parts of repeated objects each time: such a value can grow exponentially with its
        pickle.
    """
    done: dict[int, tuple[Any, int]] = {}

    def copied(value: Any, depth: int) -> tuple[Any, int]:
        kind = type(value)
        if isinstance(value, Leaf):
            return value.value, 1
        if kind in PLAIN:
            return value, 1
        if kind not in (dict, list, tuple):
            raise ValueError(f"a {kind.__name__.strip('_')} is refused where data is expected")
        if id(value) not in done:
            if depth > DEEPEST:
                raise ValueError(f"it is nested more than {DEEPEST} deep, or contains itself")
            parts = [copied(p, depth + 1) for p in (value.values() if kind is dict else value)]
            items = [item for item, _ in parts]
            count = 1 + sum(count for _, count in parts)
            if count > most:
                raise ValueError("it repeats its parts too often")
            done[id(value)] = (
                dict(zip(value, items, strict=True)) if kind is dict else kind(items),
                count,
            )
        return done[id(value)]

    return copied(value, 0)[0]
