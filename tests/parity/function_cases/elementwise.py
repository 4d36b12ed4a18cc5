"""Functions of elements."""

from collections.abc import Callable

from parity.functions_harness import ALL, Arguments, Draw, Row


def _one(low: float = -3, high: float = 3, dtypes: tuple[str, ...] = ALL) -> Callable[[Draw], Arguments]:
    return lambda draw: ((draw.tensor(low=low, high=high, dtypes=dtypes),), {})


def _rounded(draw: Draw) -> Arguments:
    return (draw.tensor(low=-300, high=300),), draw.pick({}, {"decimals": draw.pick(1, 2, -1)})


def _cleaned(draw: Draw) -> Arguments:
    x = draw.tensor()
    if x.dtype.kind == "f":
        x = draw.layout(x / (x > 1) - 1 / (x < -1).astype(x.dtype) * 0 + 0 * x)
    return (x,), draw.pick({}, {"nan": 2.5, "posinf": 9.0}, {"neginf": -1.0})


def _softmax(draw: Draw) -> Arguments:
    x = draw.tensor(dtypes=("float32", "float64"), shape=draw.shape(least=1, empty=False))
    return (x, draw.dim(x.ndim)), {}


# The inputs at which functions have edges are among those drawn as integers.
_ANY = "abs absolute neg negative positive sign square exp exp2 expm1 sin cos tan atan sinh cosh"
_ANY += " asinh deg2rad rad2deg floor ceil trunc frac sigmoid tanh relu erf erfc"
_ANY += " isnan isinf isfinite logical_not bitwise_not"
_ABOVE = "log log2 log10 log1p sqrt rsqrt reciprocal acosh"
ROWS = [
    *(Row(name, _one()) for name in _ANY.split()),
    *(Row(name, _one(-0.5)) for name in _ABOVE.split()),
    *(Row(name, _one(-1, 1)) for name in ("asin", "acos", "atanh")),
    Row("round", _rounded),
    Row("nan_to_num", _cleaned),
    Row("softmax", _softmax),
    Row("log_softmax", _softmax),
]
