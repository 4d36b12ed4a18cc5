"""Dicts, lists and tuples of arrays and plain values, as named arrays.

A mapping of names to arrays is kept as it is. For everything else, an additional array holds the
structure, as JSON text that names the other arrays:

    tensor -> {"tensor": name}        dict  -> {"dict": [[key, value], ...]}
    array  -> {"array": name}         tuple -> {"tuple": [value, ...]}
    scalar -> {"scalar": name}        int   -> {"int": "0x..."} beyond 64 bits

Lists, text, other numbers, bools and None are JSON's own; Python writes and reads floats exactly,
including infinities and NaN.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from fastlayers.autograd import Tensor
from fastlayers.state.safetensors import METADATA

__all__ = ["DEEPEST", "NUMBERS", "PLAIN", "Arrays", "decode", "encode", "pack", "unpack"]

Arrays = dict[str, np.ndarray]

# Of booleans, integers and floating point numbers of up to 64 bits, in any byte order.
NUMBERS = frozenset("?bBhHiIlLqQefd")
_STRUCTURE = "__structure__"
_LONGEST_NAME = 65_000
DEEPEST = 100
PLAIN = (str, int, float, bool, type(None))


def pack(value: Any) -> Arrays:
    """Named C-contiguous little-endian arrays from which `unpack` makes an equal value.

    Raises
    ------
    TypeError
        If a part of it is neither a numeric array nor plain data.
    ValueError
        If a name cannot be stored, or the value is nested more than 100 deep, such as in itself.
    """
    arrays: Arrays = {}
    if _is_flat(value):
        for name, array in value.items():
            arrays[_checked_name("save", name)] = _array("save", (name,), array)
    else:
        arrays[_STRUCTURE] = np.empty(0, np.uint8)  # which keeps the name
        text = json.dumps(encode("save", value, arrays))
        arrays[_STRUCTURE] = np.frombuffer(text.encode(), np.uint8)
    return {n: a.astype(a.dtype.newbyteorder("<"), copy=False) for n, a in arrays.items()}


def unpack(arrays: Arrays, size: int, leaf: Callable[[np.ndarray], Any]) -> Any:
    """The value that `pack` made the arrays from; `leaf` makes the tensors.

    Raises
    ------
    ValueError, LookupError, TypeError
        If the structure is damaged.
    """
    if _STRUCTURE not in arrays:
        return {name: leaf(array) for name, array in arrays.items()}
    left = dict(arrays)
    text = left.pop(_STRUCTURE).tobytes()
    # Parsing takes 20 times the memory, and deflated text may be 1,000 times the file's size.
    if len(text) > max(1 << 20, size):
        raise ValueError(f"its structure has {len(text)} bytes in a file of {size}")
    value = decode(json.loads(text), left, leaf)
    if left:
        raise ValueError(f"its structure does not have the arrays {sorted(left)[:3]}")
    return value


def encode(op: str, value: Any, arrays: Arrays, keys: tuple[Any, ...] = ()) -> Any:
    """The JSON form of a value below some keys; arrays are set aside."""
    if len(keys) > DEEPEST:
        raise ValueError(
            f"{op}: {_place(keys[:3])} must be nested at most {DEEPEST} deep, got more, "
            f"or what contains itself"
        )
    if _is_array(value):
        name = "/".join(map(str, keys))
        while name in arrays:  # {"a/b": x, "a": {"b": y}}
            name += "'"
        arrays[_checked_name(op, name)] = _array(op, keys, value)
        is_tensor = isinstance(value, Tensor)
        kind = "scalar" if isinstance(value, np.generic) else "tensor" if is_tensor else "array"
        return {kind: name}
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, PLAIN) or isinstance(key, np.generic):
                raise TypeError(
                    f"{op}: {_place(keys)} must have text and numbers for keys, "
                    f"got {type(key).__name__} {key!r}"
                )
        pairs = [[_int(k), encode(op, v, arrays, (*keys, k))] for k, v in value.items()]
        return {"dict": pairs}
    if isinstance(value, list | tuple):
        items = [encode(op, item, arrays, (*keys, i)) for i, item in enumerate(value)]
        return {"tuple": items} if isinstance(value, tuple) else items
    if not isinstance(value, PLAIN):
        raise TypeError(
            f"{op}: {_place(keys)} must be a numeric array, a number, text, None, or a dict, list "
            f"or tuple of these, got {type(value).__name__}"
            + (", which has a state_dict()" if hasattr(value, "state_dict") else "")
        )
    return _int(value)


def decode(value: Any, arrays: Arrays, leaf: Callable[[np.ndarray], Any]) -> Any:
    """The value of an `encode` result; its arrays are removed from those given."""
    if isinstance(value, list):
        return [decode(item, arrays, leaf) for item in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    match kind:
        case "tensor":
            return leaf(arrays.pop(content))
        case "array":
            return arrays.pop(content)
        case "scalar":
            return arrays.pop(content)[()]
        case "int":
            return int(content, 16)
        case "tuple":
            return tuple(decode(item, arrays, leaf) for item in content)
        case "dict":
            found = {
                int(key["int"], 16) if isinstance(key, dict) else key: decode(item, arrays, leaf)
                for key, item in content
            }
            if len(found) == len(content):
                return found
    raise ValueError(f"its structure has an entry {kind[:80]!r} of {len(content)}")


def _int(value: Any) -> Any:
    """A plain value, as text where the time for its digits grows with their square."""
    is_large = isinstance(value, int) and value.bit_length() > 64
    return {"int": hex(value)} if is_large else value


def _is_flat(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and all(isinstance(name, str) and _is_array(item) for name, item in value.items())
        and _STRUCTURE not in value
    )


def _is_array(value: Any) -> bool:
    if isinstance(value, np.ma.MaskedArray | str):  # without its mask it is another one
        return False
    return isinstance(value, Tensor) or hasattr(value, "__array__")


def _array(op: str, keys: tuple[Any, ...], value: Any) -> np.ndarray:
    array = np.asarray(value.array() if isinstance(value, Tensor) else value, order="C")
    if array.dtype.char not in NUMBERS:
        raise TypeError(
            f"{op}: {_place(keys)} must be a numeric array, got {type(value).__name__} "
            f"({array.dtype})"
        )
    return array


def _checked_name(op: str, name: str) -> str:
    text = name.encode(errors="replace")
    if len(text) > _LONGEST_NAME or text.decode() != name or "\0" in name or name == METADATA:
        raise ValueError(
            f"{op}: names must be text of at most {_LONGEST_NAME} bytes without null characters, "
            f"other than {METADATA!r}, got {name[:80]!r}"
        )
    return name


def _place(keys: tuple[Any, ...]) -> str:
    return "state" + "".join(f"[{key!r}]" for key in keys)
