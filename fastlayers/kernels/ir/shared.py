"""Kernels that are compiled once for each type of element, and called by address."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, get_type_hints

from numba import types
from numba.extending import intrinsic

from fastlayers.kernels.ir.named import convert, type_of
from fastlayers.runtime.cache import kernel
from fastlayers.runtime.linkage import SharedKernel

__all__ = ["shared_kernel"]


def shared_kernel(function: Callable[..., Any] | None = None, /, **options):
    """Compile `function` apart from its callers, with the signature that its annotations say.

    What compiled code calls in its place takes the same arguments, and casts numbers. The first
    array of floats, by itself or in a NamedTuple, chooses between float32 and float64. Attributes,
    of which compiled code sees none: `prepare`, an intrinsic that compiles or loads the kernel for
    the type of an array, to be called before a parallel region that uses it; `body`, the function
    to be compiled; `signature(element)`, its types; `kernels[element]`, what is linked.
    """
    if function is None:
        return lambda function: shared_kernel(function, **options)
    name = function.__name__
    body = kernel(function, shared=True, **options)
    parameters = inspect.signature(function).parameters

    def signature(element) -> tuple[Any, ...]:
        hints = get_type_hints(function, include_extras=True)
        return tuple(type_of(hints[parameter], element) for parameter in parameters)

    kernels = {
        element: SharedKernel(f"fastlayers_{name}_{element}", body, signature(element))
        for element in (types.float32, types.float64)
    }

    def define(typingctx, *given):
        chosen = kernels[_element(given)]

        def codegen(cgctx, builder, sig, values):
            chosen.emit_call(cgctx, builder, convert(cgctx, builder, given, chosen.args, values))
            return cgctx.get_dummy_value()

        return types.void(*given), codegen

    define.__name__, define.__doc__ = name, function.__doc__
    context = inspect.Parameter("typingctx", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    define.__signature__ = inspect.Signature([context, *parameters.values()])  # type: ignore[attr-defined]

    @intrinsic
    def prepare(typingctx, array):
        """Compile or load the kernel for the type of `array`."""
        chosen = kernels[array.dtype]

        def codegen(cgctx, builder, sig, values):
            chosen.emit_prepare(cgctx, builder)
            return cgctx.get_dummy_value()

        return types.void(array), codegen

    call: Any = intrinsic(define)
    call.prepare, call.body, call.signature, call.kernels = prepare, body, signature, kernels
    return call


def _element(given: tuple[Any, ...]):
    """The type of the first array's elements."""
    for kind in given:
        for part in kind if isinstance(kind, types.BaseNamedTuple) else (kind,):
            if isinstance(part, types.Array) and isinstance(part.dtype, types.Float):
                return part.dtype
    raise TypeError("no argument has elements")
