"""Names for what `fastlayers.runtime.facts.plain` has made nested tuples of."""

from __future__ import annotations

from typing import Any, get_type_hints

from numba import types
from numba.extending import intrinsic

__all__ = ["named"]


@intrinsic
def named(typingctx: Any, kind: Any, values: Any) -> Any:
    """The tuple `values` as a NamedTuple of the class `kind`, with the fields that are such alike.

    No code comes of it: optimisation sees through the copies.
    """
    target = _named_type(kind.instance_class, values)

    def codegen(cgctx: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _rebuild(cgctx, builder, values, target, args[1])

    return target(kind, values), codegen


def _named_type(kind: type, values: Any) -> Any:
    hints = get_type_hints(kind)
    if len(hints) != len(values):
        raise TypeError(f"{kind.__name__} has {len(hints)} fields, got {len(values)}")
    pairs = zip(hints.values(), values, strict=True)
    fields = [_named_type(hint, t) if hasattr(hint, "_fields") else t for hint, t in pairs]
    return types.BaseTuple.from_types(fields, kind)


def _rebuild(cgctx: Any, builder: Any, source: Any, target: Any, value: Any) -> Any:
    """The value in the layout of its named type; tuples of equal types are arrays in LLVM."""
    if not isinstance(target, types.BaseTuple):
        return value
    items = [
        _rebuild(cgctx, builder, old, new, builder.extract_value(value, i))
        for i, (old, new) in enumerate(zip(source, target, strict=True))
    ]
    return cgctx.make_tuple(builder, target, items)
