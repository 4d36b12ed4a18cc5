"""Functions of pairs of elements, and of three."""

from collections.abc import Callable
from typing import Any

import numpy as np
from parity.functions_harness import ALL, FLOATS, Arguments, Draw, Row

INTEGERS = ("int64", "int32", "uint8", "bool")


def operand(draw: Draw, shape: tuple[int, ...], numbers: bool = True, **options: Any) -> Any:
    """A tensor, or a Python number."""
    if numbers and draw.rng.random() < 0.25:
        return draw.pick(2, -1, 0.5, -1.5, 2.0)
    return draw.tensor(shape, **options)


def _two(
    numbers: bool = True, dtypes: tuple[str, ...] = ALL, **options: Any
) -> Callable[[Draw], Arguments]:
    def draw_two(draw: Draw) -> Arguments:
        first, second = draw.pair()
        ties = draw.pick(True, False)
        a = draw.tensor(first, ties=ties, dtypes=dtypes, **options)
        return (a, operand(draw, second, numbers, ties=ties, dtypes=dtypes, **options)), {}

    return draw_two


def _scaled(draw: Draw) -> Arguments:
    args, _ = _two()(draw)
    return args, draw.pick(
        {}, {"alpha": 2}, {"alpha": 2} if args[0].dtype.kind != "f" else {"alpha": 0.5}
    )


def _rounding(draw: Draw) -> Arguments:
    args, _ = _two()(draw)
    return args, {"rounding_mode": draw.pick(None, "floor", "trunc")}


def _powers(draw: Draw) -> Arguments:
    first, second = draw.pair()
    exponent = draw.pick(2, 3, 0, -1, 0.5, -1.5, 1, draw.tensor(second, ties=True))
    return (draw.tensor(first, ties=draw.pick(True, False)), exponent), {}


def _where(draw: Draw) -> Arguments:
    (a, b), _ = _two()(draw)
    shape = draw.pick(np.shape(a), np.shape(b))
    return (draw.tensor(shape, dtypes=("bool",)), a, b), {}


def _clamped(draw: Draw) -> Arguments:
    x = draw.tensor(ties=draw.pick(True, False))
    if draw.rng.random() < 0.5:
        ends: list[Any] = [draw.pick(-1, -0.5, None, 1), draw.pick(1, 0.5, None, 0)]
    else:
        like = x.shape[draw.rng.integers(x.ndim + 1) :]
        ends = [draw.tensor(like, ties=True), draw.tensor(x.shape, ties=True)]
        ends[draw.rng.integers(2)] = draw.pick(None, *ends)
    return (x,), dict(zip(("min", "max"), ends, strict=True))


def _three(draw: Draw) -> Arguments:
    first, second = draw.pair()
    dtype = (draw.pick(*FLOATS),)
    values = [draw.tensor(shape, dtypes=dtype, low=0.5) for shape in (first, second, second)]
    return tuple(values), draw.pick({}, {"value": 0.5})


def _lerp(draw: Draw) -> Arguments:
    (a, b, c), _ = _three(draw)
    return (a, b, draw.pick(0.25, 0.75, c)), {}


def _close(draw: Draw) -> Arguments:
    a = draw.tensor()
    b = a.copy()
    if a.dtype.kind == "f":
        b += np.asarray(draw.rng.choice([0, 1e-9, 1e-6, 1e-2, np.nan], b.shape), b.dtype)
        a[np.isnan(b) & (draw.rng.random(b.shape) < 0.5)] = np.nan
    return (a, b), draw.pick({}, {"rtol": 0.1}, {"equal_nan": True})


_COMPARED = "eq ne not_equal lt less le less_equal gt greater ge greater_equal"
_PAIRS = "mul multiply true_divide remainder fmod floor_divide bitwise_and bitwise_or bitwise_xor"
_TENSORS = "maximum minimum fmax fmin"
ROWS = [
    *(Row(name, _two()) for name in _PAIRS.split()),
    *(Row(name, _two(numbers=False)) for name in _TENSORS.split()),
    # In place PyTorch's integers require gradients.
    *(Row(name, _two(), forms=("function", "method")) for name in _COMPARED.split()),
    *(Row(name, _two(dtypes=FLOATS), forms=("in_place",)) for name in _COMPARED.split()),
    # In place PyTorch gives the first input the gradient of the identity.
    *(
        Row(f"logical_{name}", _two(numbers=False), forms=("function", "method"))
        for name in ("and", "or", "xor")
    ),
    # With integers PyTorch's gradient of the angle overflows.
    *(Row(name, _two(numbers=False, dtypes=FLOATS)) for name in ("atan2", "hypot", "logaddexp")),
    *(Row(name, _two(dtypes=INTEGERS, low=0)) for name in ("bitwise_and", "bitwise_or")),
    Row("bitwise_left_shift", _two(dtypes=("int64", "int32"), low=0)),
    Row("bitwise_right_shift", _two(dtypes=("int64", "int32"), low=0)),
    *(Row(name, _scaled) for name in ("add", "sub", "subtract")),
    *(Row(name, _rounding) for name in ("div", "divide")),
    Row("pow", _powers),
    Row("where", _where, forms=("function",)),
    *(Row(name, _clamped) for name in ("clamp", "clip")),
    Row("addcmul", _three),
    Row("addcdiv", _three),
    Row("lerp", _lerp),
    *(Row(name, _close) for name in ("isclose", "allclose", "equal")),
]
