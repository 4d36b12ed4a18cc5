"""The pickles in which the CIFAR datasets are published, read without executing them.

They were written by Python 2: dicts, lists, integers, byte strings, and one uint8 array, given by
its shape and its bytes. An instruction that makes anything else is rejected, nothing is imported,
and no function is called. https://docs.python.org/3/library/pickletools.html
"""

from __future__ import annotations

import math
import struct
from typing import Any, ClassVar

import numpy as np

from fastlayers.state.unpickle import Machine

__all__ = ["read_pickled"]

_LENGTHS = {b"U": "<B", b"T": "<i", b"X": "<I"}  # how those of texts are written
_NAMES = {
    "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray._reconstruct",
    "numpy.ndarray",
    "numpy.dtype",
}


class _Name(str):
    """A global name, which stands only for itself."""

    __slots__ = ()


class _Made:
    """What a name and arguments would make: an array or a dtype, with its later state."""

    def __init__(self, name: str, arguments: tuple[Any, ...]) -> None:
        self.name, self.arguments = name, arguments
        self.state: Any = None

    def array(self) -> np.ndarray:
        """The array of uint8."""
        _, shape, dtype, is_fortran, content = self.state
        if not (self.name.endswith("_reconstruct") and isinstance(dtype, _Made)):
            raise ValueError(f"{self.name} is refused where an array is expected")
        if dtype.name != "numpy.dtype" or dtype.arguments[0] not in (b"u1", b"|u1"):
            raise ValueError(f"an array that is not uint8 is refused: {dtype.arguments}")
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
        The pickle is damaged, or holds something other than dicts, lists and tuples of integers,
        byte strings and uint8 arrays, which the message names.
    """
    try:
        value = _Machine(data).run()
        if not isinstance(value, dict):
            raise ValueError(f"the pickle is not a dict, but {type(value).__name__}")
        # Arrays are where the files have them; recursive structures can't be followed forever.
        return {k: item.array() if isinstance(item, _Made) else item for k, item in value.items()}
    except (IndexError, KeyError, TypeError, struct.error) as error:
        message = f"the pickle is damaged: {type(error).__name__}: {error}"
        raise ValueError(message) from error


class _Machine(Machine):
    """What Python 2 wrote: its strings are bytes, and an array gets its content from `build`."""

    allowed = f"an array is made of {', '.join(sorted(_NAMES))}"
    numbers: ClassVar = {b"K": "<B", b"M": "<H", b"J": "<i"}
    instructions: ClassVar = {
        code: method
        for code, method in Machine.instructions.items()
        if method not in ("long", "persist")
    } | {b"U": "text", b"T": "text"}

    def __init__(self, data: bytes) -> None:
        super().__init__(data, {name: _Name(name) for name in _NAMES}, lambda _: None)

    def text(self, code: bytes) -> None:
        self.stack.append(self.take(self.number(_LENGTHS[code])))

    def set(self, code: bytes) -> None:
        items = self.since_mark() if code == b"u" else self.popped(2)
        if len(items) % 2 or any(type(key) is not bytes for key in items[::2]):
            raise ValueError("a dict key that has no value or is not text is refused")
        self.target(dict).update(zip(items[::2], items[1::2], strict=True))

    def reduce(self, _: bytes) -> None:
        name, arguments = self.popped(2)
        if type(name) is not _Name or type(arguments) is not tuple:
            raise ValueError(f"a call of {type(name).__name__} is refused")
        self.stack.append(_Made(name, arguments))

    def build(self, _: bytes) -> None:
        (state,) = self.popped(1)
        self.target(_Made).state = state
