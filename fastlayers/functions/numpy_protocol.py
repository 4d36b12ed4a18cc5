"""NumPy's functions on tensors: recorded if this library has such a function, else an error.

`NUMPY` lists these. Other NumPy functions compute with the arrays, unless a gradient is required;
so do listed ones if called with arguments that this library's function does not have.

References
----------
https://numpy.org/neps/nep-0013-ufunc-overrides.html,
https://numpy.org/neps/nep-0018-array-function-protocol.html
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fastlayers.autograd.recording import tensor, wants_grad
from fastlayers.autograd.tensor import Tensor
from fastlayers.functions import (
    compare,
    elementwise,
    norms,
    order,
    pairs,
    reduction,
    running,
    variance,
)
from fastlayers.functions.registry import NUMPY, method

__all__: list[str] = []

# Functions that inspect a tensor, or make another one of its shape.
_FACTS = (
    *(np.shape, np.ndim, np.size, np.result_type, np.can_cast, np.may_share_memory),
    *(np.shares_memory, np.zeros_like, np.ones_like, np.empty_like, np.full_like),
)
# Functions that write into their first argument.
_WRITERS: tuple[Any, ...] = (np.copyto, np.put, np.place, np.putmask, np.fill_diagonal)
_WRITERS += (np.put_along_axis, np.nan_to_num)
_NAMES = {"axis": "dim", "keepdims": "keepdim", "ddof": "correction", "a2": "other"}


def _tensors(values: Any) -> list[Tensor]:
    """All tensors among arguments."""
    if isinstance(values, Tensor):
        return [values]
    if isinstance(values, dict):
        values = list(values.values())
    if isinstance(values, (list, tuple)):
        return [t for value in values for t in _tensors(value)]
    return []


def _arrays(values: Any) -> Any:
    """The arguments, with arrays in place of tensors."""
    if isinstance(values, Tensor):
        return values.settled()
    if isinstance(values, dict):
        return {key: _arrays(value) for key, value in values.items()}
    if type(values) in (list, tuple):
        return type(values)(_arrays(value) for value in values)
    return values


def _refuse(name: str, arguments: Any) -> None:
    if wants_grad(_tensors(arguments)):
        raise RuntimeError(
            f"numpy.{name}: its tensors must not require a gradient, which is not recorded by "
            f"this function of NumPy; use tensor.detach().numpy() instead, or fastlayers' function"
        )


def array_ufunc(self: Tensor, ufunc: Any, how: str, *inputs: Any, **options: Any) -> Any:
    """What a ufunc, such as ``np.sqrt``, does to tensors."""
    known = NUMPY.get(ufunc)
    if known is not None and how == "__call__" and not options:
        return known(*inputs)
    _refuse(ufunc.__name__, (inputs, options))
    results = getattr(ufunc, how)(*_arrays(inputs), **_arrays(options))
    outputs = options.get("out", ())
    for written in _tensors((outputs, inputs[:1] if how == "at" else ())):
        written.changed()
    return outputs[0] if len(outputs) == 1 else outputs or results


def array_function(self: Tensor, function: Any, kinds: Any, args: Any, options: Any) -> Any:
    """What another function, such as ``np.concatenate``, does to tensors."""
    if function not in _FACTS:
        known = NUMPY.get(function)
        if known is not None:
            named = {_NAMES.get(key, key): value for key, value in options.items()}
            result = known(*args, **named)
            if result is not NotImplemented:
                return result
        _refuse(function.__name__, (args, options))
    result = function(*_arrays(args), **_arrays(options))
    if function in _WRITERS:
        for written in _tensors(args[:1]):
            written.changed()
    return result


method(array_ufunc, "__array_ufunc__")
method(array_function, "__array_function__")


def adapted(
    function: Callable[..., Any], names: str, *, real: bool = False, **defaults: Any
) -> Callable[..., Any]:
    """A function that is called with NumPy's arguments.

    Parameters
    ----------
    function : callable
        The library's, called with its own argument names; the first one by position.
    names : str
        NumPy's arguments in order; the function does not have those in brackets.
    real : bool
        Whether NumPy should handle integers, for which the function has other results.
    defaults : object
        NumPy's defaults, where they differ.

    Returns
    -------
    callable
        Returns NotImplemented where the function can't do what NumPy's does.
    """
    listed = names.split()
    known = {_NAMES.get(name, name) for name in listed if not name.startswith("[")}

    def call(*args: Any, **options: Any) -> Any:
        if len(args) > len(listed):
            return NotImplemented
        named = {_NAMES.get(name, name): value for name, value in zip(listed, args, strict=False)}
        given = {**defaults, **named, **options}
        given = {key: v for key, v in given.items() if not (v is None or v is np._NoValue)}
        if listed[0] not in given or not given.keys() <= known or given.get("dim") == ():
            return NotImplemented
        x = tensor(given.pop(listed[0]))
        return NotImplemented if real and x.dtype.kind != "f" else function(x, **given)

    return call


def _along(function: Callable[..., Any]) -> Callable[..., Any]:
    """For functions of one axis: NumPy's flatten the array for None."""

    def call(x: Tensor, dim: Any = None, **options: Any) -> Any:
        return NotImplemented if dim is None else function(x, dim, **options)

    return call


def _norm(x: Tensor, ord: Any = None, dim: Any = None, keepdim: bool = False) -> Any:
    """``np.linalg.norm`` of vectors, and of all elements."""
    axes = x.ndim if dim is None else len(dim) if isinstance(dim, tuple) else 1
    if ord is not None and (axes != 1 or isinstance(ord, str)):
        return NotImplemented
    return norms.norm(x, 2 if ord is None else ord, dim, keepdim)


def _clip(x: Tensor, a_min: Any = None, a_max: Any = None, min: Any = None, max: Any = None) -> Any:
    low, high = a_min if min is None else min, a_max if max is None else max
    return NotImplemented if low is None and high is None else pairs.clamp(x, low, high)


def _where(condition: Any, *values: Any) -> Any:
    return pairs.where(tensor(condition).array() != 0, *values)


_OVER = "a axis [out] keepdims [initial] [where]"
_SUMMED = "a axis dtype [out] keepdims [initial] [where]"
_MEAN = "a axis dtype [out] keepdims [where]"
_SPREAD = "a axis [dtype] [out] ddof keepdims [where] [mean] correction"
_INDEX = "a axis [out] keepdims"
_QUANTIFIED = "a axis [out] keepdims [where]"
_ROUND = adapted(elementwise.round, "a decimals")
_MOST, _LEAST = adapted(reduction.amax, _OVER), adapted(reduction.amin, _OVER)
NUMPY |= {
    np.sum: adapted(reduction.sum, _SUMMED),
    np.prod: adapted(_along(running.prod), _SUMMED),
    np.nansum: adapted(reduction.nansum, _SUMMED),
    np.mean: adapted(reduction.mean, _MEAN, real=True),
    np.nanmean: adapted(reduction.nanmean, _MEAN, real=True),
    np.var: adapted(variance.var, _SPREAD, real=True, correction=0),
    np.std: adapted(variance.std, _SPREAD, real=True, correction=0),
    np.max: _MOST,
    np.amax: _MOST,
    np.min: _LEAST,
    np.amin: _LEAST,
    np.argmax: adapted(reduction.argmax, _INDEX),
    np.argmin: adapted(reduction.argmin, _INDEX),
    np.any: adapted(compare.any, _QUANTIFIED),
    np.all: adapted(compare.all, _QUANTIFIED),
    np.count_nonzero: adapted(reduction.count_nonzero, "a axis"),
    np.cumsum: adapted(_along(running.cumsum), "a axis dtype"),
    np.cumprod: adapted(_along(running.cumprod), "a axis dtype"),
    np.sort: adapted(lambda x, dim=-1: order.sort(x, dim).values, "a axis"),
    np.argsort: adapted(order.argsort, "a axis"),
    np.clip: adapted(_clip, "a a_min a_max [out] min max"),
    np.round: _ROUND,
    np.around: _ROUND,
    np.nan_to_num: adapted(elementwise.nan_to_num, "x [copy] nan posinf neginf"),
    np.linalg.norm: adapted(_norm, "x ord axis keepdims", real=True),
    np.isclose: compare.isclose,
    np.allclose: compare.allclose,
    np.array_equal: adapted(compare.equal, "a1 other [equal_nan]"),
    np.where: _where,
    np.fabs: elementwise.abs,
    np.radians: elementwise.deg2rad,
    np.degrees: elementwise.rad2deg,
}
