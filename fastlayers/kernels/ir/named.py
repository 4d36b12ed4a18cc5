"""Tuples with names: facts of a plan, operands, and the types of both.

`fastlayers.runtime.facts.plain` makes nested tuples of facts for a call from Python; `named` gives
the names back. Between compiled functions NamedTuples are passed as they are, at no cost.
"""

from __future__ import annotations

from typing import Annotated, Any, get_args, get_type_hints

import numpy as np
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

__all__ = [
    "Element",
    "Elements",
    "Offsets",
    "convert",
    "fields",
    "named",
    "type_of",
]

# What annotations of operands and of shared kernels say beside `int` and NamedTuples of such.
Element = Annotated[float, "of the arrays' type"]
Elements = Annotated[np.ndarray, "flat"]
Offsets = Annotated[np.ndarray, "a table of integers; an empty one stands for zeros"]


def type_of(hint, element):
    """Numba's type of what is annotated so, where elements are of the type `element`."""
    if hint == Elements:
        return types.Array(element, 1, "C")
    if hint == Element:
        return element
    if hint == Offsets:
        return types.Array(types.int64, 1, "C")
    if hint is int:
        return types.int64
    named = hasattr(hint, "_fields")
    hints = get_type_hints(hint, include_extras=True).values() if named else get_args(hint)
    inner = [type_of(each, element) for each in hints]
    return types.BaseTuple.from_types(inner, hint if named else None)


@intrinsic
def named(typingctx, kind, values):
    """The tuple `values` as a NamedTuple of the class `kind`, with the fields that are such alike.

    No code comes of it: optimisation sees through the copies.
    """
    target = _named_type(kind.instance_class, values)

    def codegen(cgctx, builder, sig, args):
        return _convert(cgctx, builder, values, target, args[1])

    return target(kind, values), codegen


def _named_type(kind: type, values):
    hints = get_type_hints(kind)
    if len(hints) != len(values):
        raise TypeError(f"{kind.__name__} has {len(hints)} fields, got {len(values)}")
    pairs = zip(hints.values(), values, strict=True)
    inner = [_named_type(hint, t) if hasattr(hint, "_fields") else t for hint, t in pairs]
    return types.BaseTuple.from_types(inner, kind)


def convert(cgctx, builder, given, wanted, values) -> list[Any]:
    """Values of the types `given` as those of `wanted`: named as there, numbers cast.

    Numba itself converts no NamedTuple, and tuples of equal types are arrays in LLVM.
    """
    pairs = zip(given, wanted, values, strict=True)
    return [_convert(cgctx, builder, *each) for each in pairs]


def _convert(cgctx, builder, source, target, value):
    if not isinstance(target, types.BaseTuple):
        return cgctx.cast(builder, value, source, target)
    kinds = [getattr(kind, "instance_class", None) for kind in (source, target)]
    if kinds[0] and kinds[0] is not kinds[1]:
        raise TypeError(f"{source} was given for {target}")
    items = cgutils.unpack_tuple(builder, value)
    return cgctx.make_tuple(builder, target, convert(cgctx, builder, source, target, items))


def fields(cgctx, builder, kinds, values) -> list[Any]:
    """NamedTuples of LLVM values as such in Python, their arrays as structures."""
    found = []
    for kind, value in zip(kinds, values, strict=True):
        items = [
            cgctx.make_array(t)(cgctx, builder, item) if isinstance(t, types.Array) else item
            for t, item in zip(kind, cgutils.unpack_tuple(builder, value), strict=True)
        ]
        found.append(kind.instance_class(*items))
    return found
