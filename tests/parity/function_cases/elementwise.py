"""Functions of elements."""

from collections.abc import Callable

import numpy as np
from parity.functions_harness import Arguments, Draw, Row


def _one(low: float = -3, high: float = 3) -> Callable[[Draw], Arguments]:
    return lambda draw: ((draw.tensor(low=low, high=high),), {})


def _rounded(draw: Draw) -> Arguments:
    return (draw.tensor(low=-300, high=300),), draw.pick({}, {"decimals": draw.pick(1, 2, -1)})


def _cleaned(draw: Draw) -> Arguments:
    x = draw.tensor()
    if x.dtype.kind == "f":
        edges = draw.rng.choice([0, 0, np.inf, -np.inf, np.nan], x.shape)
        x = draw.layout(np.asarray(x + edges, x.dtype))
    return (x,), draw.pick({}, {"nan": 2.5, "posinf": 9.0}, {"neginf": -1.0})


def _softmax(draw: Draw) -> Arguments:
    x = draw.tensor(dtypes=("float32", "float64"), shape=draw.shape(least=1, empty=False))
    return (x, draw.dim(x.ndim)), {}


# The inputs at which functions have edges are among those drawn as integers.
_ANY = "abs absolute neg negative positive sign square exp exp2 expm1 sin cos tan atan sinh cosh"
_ANY += " asinh deg2rad rad2deg floor ceil trunc frac sigmoid tanh relu erf erfc"
_ANY += " isnan isinf isfinite bitwise_not"
_ABOVE = "log log2 log10 log1p sqrt rsqrt reciprocal acosh"
ROWS = [
    *(Row(name, _one()) for name in _ANY.split()),
    *(Row(name, _one(-0.5)) for name in _ABOVE.split()),
    *(Row(name, _one(-1, 1)) for name in ("asin", "acos", "atanh")),
    # In place PyTorch gives it the gradient of the identity.
    Row("logical_not", _one(), forms=("function", "method")),
    Row("round", _rounded),
    Row("nan_to_num", _cleaned),
    Row("softmax", _softmax),
    Row("log_softmax", _softmax),
]
