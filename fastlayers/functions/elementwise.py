"""Functions of single elements.

References
----------
https://docs.pytorch.org/docs/stable/torch.html#pointwise-ops
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from fastlayers.autograd.recording import record, tensor
from fastlayers.autograd.tensor import Tensor
from fastlayers.functions.reduction import axis
from fastlayers.functions.registry import alias, method, register
from fastlayers.functions.table import recorded, unary
from fastlayers.ops import activation

__all__ = [
    "abs",
    "absolute",
    "acos",
    "acosh",
    "asin",
    "asinh",
    "atan",
    "atanh",
    "ceil",
    "cos",
    "cosh",
    "deg2rad",
    "erf",
    "erfc",
    "exp",
    "exp2",
    "expm1",
    "floor",
    "frac",
    "isfinite",
    "isinf",
    "isnan",
    "log",
    "log1p",
    "log2",
    "log10",
    "log_softmax",
    "nan_to_num",
    "neg",
    "negative",
    "positive",
    "rad2deg",
    "reciprocal",
    "relu",
    "round",
    "rsqrt",
    "sigmoid",
    "sign",
    "sin",
    "sinh",
    "softmax",
    "sqrt",
    "square",
    "tan",
    "tanh",
    "trunc",
]

_LN2, _LN10 = math.log(2), math.log(10)


def _each(function: Callable[[float], float]) -> Callable[[np.ndarray], np.ndarray]:
    """A function of Python numbers, applied to each element."""
    of_objects = np.frompyfunc(function, 1, 1)
    return lambda x: np.asarray(of_objects(x), x.dtype)


def _step(ufunc: Any) -> Callable[[np.ndarray], np.ndarray]:
    """A rounding function, which leaves integers as they are."""
    return lambda x: np.asarray(ufunc(x)) if x.dtype.kind == "f" else x.copy()


def _sign(x: np.ndarray) -> np.ndarray:
    return x.copy() if x.dtype == np.bool_ else np.asarray(np.sign(x))


def _square(x: np.ndarray) -> np.ndarray:
    return np.asarray(np.square(x.astype(np.int64) if x.dtype == np.bool_ else x))


def _gaussian(dy: np.ndarray, x: np.ndarray) -> np.ndarray:
    return np.asarray(dy * (2 / math.sqrt(math.pi)) * np.exp(-x * x))


def _compiled(op: str, doc: str, numpy: Any = None) -> Callable[..., Tensor]:
    """A function, and its gradient from the output, by kernels, in the input's memory layout.

    For arrays with channels, kernels would return channels-last memory.
    """
    forward, backward = getattr(activation, op), getattr(activation, f"{op}_backward")

    def flat(function: Any, *arrays: np.ndarray) -> np.ndarray:
        if not all(a.flags.c_contiguous for a in arrays):
            return np.asarray(function(*arrays))
        return np.asarray(function(*(a.reshape(-1) for a in arrays))).reshape(arrays[-1].shape)

    return unary(
        op, lambda x: flat(forward, x), lambda dy, y: flat(backward, dy, y), doc, numpy=numpy
    )


abs = unary("abs", np.abs, lambda dy, x: dy * np.sign(x), "``|x|``.", keeps_integers=True)
neg = unary("neg", np.negative, lambda dy: -dy, "``-x``.", keeps_integers=True)
sign = unary("sign", _sign, None, "-1, 0 or 1.", keeps_integers=True, numpy=np.sign)
square = unary(
    "square", _square, lambda dy, x: dy * 2 * x, "``x^2``.", keeps_integers=True, numpy=np.square
)
reciprocal = unary("reciprocal", np.reciprocal, lambda dy, y: -dy * y * y, "``1 / x``.")
sqrt = unary("sqrt", np.sqrt, lambda dy, y: dy / (2 * y), "Square root.")
rsqrt = unary("rsqrt", lambda x: 1 / np.sqrt(x), lambda dy, y: dy * -0.5 * y**3, "``1 / sqrt(x)``.")

exp = unary("exp", np.exp, lambda dy, y: dy * y, "``e^x``.")
exp2 = unary("exp2", np.exp2, lambda dy, y: dy * y * _LN2, "``2^x``.")
expm1 = unary("expm1", np.expm1, lambda dy, y: dy * (y + 1), "``e^x - 1``, exact near 0.")
log = unary("log", np.log, lambda dy, x: dy / x, "Natural logarithm.")
log2 = unary("log2", np.log2, lambda dy, x: dy / (x * _LN2), "Logarithm to the base 2.")
log10 = unary("log10", np.log10, lambda dy, x: dy / (x * _LN10), "Logarithm to the base 10.")
log1p = unary("log1p", np.log1p, lambda dy, x: dy / (x + 1), "``log(1 + x)``, exact near 0.")
erf = unary("erf", _each(math.erf), _gaussian, "Error function.")
erfc = unary("erfc", _each(math.erfc), lambda dy, x: -_gaussian(dy, x), "``1 - erf(x)``.")

sin = unary("sin", np.sin, lambda dy, x: dy * np.cos(x), "Sine.")
cos = unary("cos", np.cos, lambda dy, x: -dy * np.sin(x), "Cosine.")
tan = unary("tan", np.tan, lambda dy, y: dy * (1 + y * y), "Tangent.")
asin = unary("asin", np.arcsin, lambda dy, x: dy / np.sqrt(1 - x * x), "Inverse sine.")
acos = unary("acos", np.arccos, lambda dy, x: -dy / np.sqrt(1 - x * x), "Inverse cosine.")
atan = unary("atan", np.arctan, lambda dy, x: dy / (x * x + 1), "Inverse tangent.")
sinh = unary("sinh", np.sinh, lambda dy, x: dy * np.cosh(x), "Hyperbolic sine.")
cosh = unary("cosh", np.cosh, lambda dy, x: dy * np.sinh(x), "Hyperbolic cosine.")
asinh = unary(
    "asinh", np.arcsinh, lambda dy, x: dy / np.sqrt(x * x + 1), "Inverse hyperbolic sine."
)
acosh = unary(
    "acosh", np.arccosh, lambda dy, x: dy / np.sqrt(x * x - 1), "Inverse hyperbolic cosine."
)
atanh = unary("atanh", np.arctanh, lambda dy, x: dy / (1 - x * x), "Inverse hyperbolic tangent.")
deg2rad = unary("deg2rad", np.deg2rad, lambda dy: dy * (math.pi / 180), "From degrees to radians.")
rad2deg = unary("rad2deg", np.rad2deg, lambda dy: dy * (180 / math.pi), "From radians to degrees.")

floor = unary("floor", _step(np.floor), None, "Round down.", keeps_integers=True, numpy=np.floor)
ceil = unary("ceil", _step(np.ceil), None, "Round up.", keeps_integers=True, numpy=np.ceil)
trunc = unary(
    "trunc", _step(np.trunc), None, "Round towards 0.", keeps_integers=True, numpy=np.trunc
)
_rounded = unary("round", _step(np.rint), None, "Round.", keeps_integers=True, numpy=np.rint)
frac = unary("frac", lambda x: x - np.trunc(x), lambda dy: dy, "``x - trunc(x)``.")
positive = unary(
    "positive",
    np.copy,
    lambda dy: dy,
    "``x``.",
    keeps_integers=True,
    in_place=False,
    numpy=np.positive,
)

sigmoid = _compiled("sigmoid", "``1 / (1 + e^-x)``.")
tanh = _compiled("tanh", "Hyperbolic tangent.", numpy=np.tanh)
absolute, negative = abs, neg
alias("abs", "absolute")
alias("neg", "negative")
method(abs, "__abs__")
method(neg, "__neg__")
method(positive, "__pos__")


def round(input: Any, *, decimals: int = 0) -> Tensor:
    """Round to `decimals` digits, half to even."""
    if decimals == 0:
        return _rounded(input)
    x = tensor(input)
    out = np.asarray(np.round(x.array(), decimals))
    return record(out, (x,), lambda dy: (np.zeros_like(dy),), saved=())


register("round", round)


def relu(input: Any) -> Tensor:
    """``max(x, 0)``; see `fastlayers.nn.functional.relu`."""
    x = tensor(input)
    if x.dtype.kind != "f":
        return Tensor(np.maximum(x.array(), x.dtype.type(0)))
    from fastlayers.nn import functional

    return functional.relu(x)


register("relu", relu)


def softmax(input: Any, dim: int, dtype: Any = None) -> Tensor:
    """Softmax along `dim`; see `fastlayers.nn.functional.softmax`."""
    from fastlayers.nn import functional

    x = _converted(input, dtype)
    return functional.softmax(x, axis("softmax", x.ndim, dim))


def log_softmax(input: Any, dim: int, dtype: Any = None) -> Tensor:
    """Logarithm of `softmax`; see `fastlayers.nn.functional.log_softmax`."""
    from fastlayers.nn import functional

    x = _converted(input, dtype)
    return functional.log_softmax(x, axis("log_softmax", x.ndim, dim))


def _converted(input: Any, dtype: Any) -> Tensor:
    x = tensor(input)
    return x if dtype is None or x.dtype == np.dtype(dtype) else x.to(dtype)


register("softmax", softmax, in_place=False)
register("log_softmax", log_softmax, in_place=False)


@recorded(saves=(0,))
def nan_to_num(x: np.ndarray, nan: Any = None, posinf: Any = None, neginf: Any = None) -> Any:
    """Numbers instead of NaN, inf and -inf: 0, and the largest and smallest finite ones."""
    if x.dtype.kind != "f":
        return x.copy(), lambda dy: dy
    y = np.nan_to_num(x, nan=0.0 if nan is None else nan, posinf=posinf, neginf=neginf)
    return y, lambda dy: dy * np.isfinite(x)


register("nan_to_num", nan_to_num)


def _fact(name: str, find: Any, doc: str) -> Callable[[Any], Tensor]:
    def function(input: Any) -> Tensor:
        return Tensor(np.asarray(find(tensor(input).array())))

    function.__doc__ = doc
    return register(name, function, find, in_place=False)


isnan = _fact("isnan", np.isnan, "Whether it is NaN.")
isinf = _fact("isinf", np.isinf, "Whether it is inf or -inf.")
isfinite = _fact("isfinite", np.isfinite, "Whether it is neither NaN nor infinite.")
