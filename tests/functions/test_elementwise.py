"""Functions of elements and of pairs: gradients by differences, edges, dtypes, in place."""

import gc
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from functions.numeric import check_gradients

from fastlayers import functions as F
from fastlayers.autograd import Tensor, no_grad
from fastlayers.functions import tensor

RNG = np.random.default_rng(0)
X = RNG.uniform(-0.9, 0.9, (3, 4))
Y = RNG.uniform(0.2, 0.9, (4,))
UNARY = "abs neg square exp exp2 expm1 sin cos tan asin acos atan sinh cosh tanh asinh atanh"
UNARY += " sigmoid frac deg2rad rad2deg erf erfc positive nan_to_num"
ABOVE_0 = "log log2 log10 log1p sqrt rsqrt reciprocal"
BINARY = "add sub mul div atan2 hypot logaddexp maximum minimum fmax fmin pow remainder fmod"


@pytest.mark.parametrize("name", UNARY.split())
def test_gradients_of_functions_of_elements(name: str) -> None:
    check_gradients(getattr(F, name), X)


@pytest.mark.parametrize("name", ABOVE_0.split())
def test_gradients_of_functions_of_positive_elements(name: str) -> None:
    check_gradients(getattr(F, name), Y)
    check_gradients(F.acosh, Y + 1)


@pytest.mark.parametrize("name", BINARY.split())
def test_gradients_of_functions_of_pairs(name: str) -> None:
    check_gradients(getattr(F, name), np.abs(X), Y)
    check_gradients(lambda x: getattr(F, name)(x, 0.7), np.abs(X))
    check_gradients(lambda y: getattr(F, name)(0.7, y), Y)


def test_gradients_of_functions_of_three() -> None:
    check_gradients(F.lerp, X, Y, Y * 0.3)
    check_gradients(lambda a, b, c: F.addcmul(a, b, c, value=0.5), X, X + 0.1, Y)
    check_gradients(lambda a, b, c: F.addcdiv(a, b, c, value=0.5), X, X + 0.1, Y)
    check_gradients(F.clamp, X, Y - 0.9, Y)
    check_gradients(lambda a, b: F.where(a.detach() > 0, a, b), X, Y)


def gradient(function: Callable[[Tensor], Tensor], *values: float) -> list[float]:
    x = tensor(values, dtype=np.float32, requires_grad=True)
    function(x).sum().backward()
    return x.grad.tolist()  # type: ignore[union-attr]


def test_gradients_at_edges_are_pytorchs() -> None:
    nan, inf = float("nan"), float("inf")
    zeros = tensor([0.0, 0.0])
    assert gradient(F.abs, -2, 0, 2) == [-1, 0, 1]
    assert gradient(F.sqrt, 0) == [inf]
    assert gradient(lambda x: F.maximum(x, zeros), 0, 1) == [0.5, 1]
    assert gradient(lambda x: F.fmax(x, zeros), 0, -1) == [1, 0]
    assert gradient(lambda x: F.clamp(x, 0, 1), 0, 1, -0.1, 1.1) == [1, 1, 0, 0]
    assert gradient(lambda x: x**0, 0, 2) == [0, 0]
    assert gradient(lambda x: 0**x, 1, 2) == [0, 0]
    assert gradient(lambda x: F.atan2(x, zeros), 0, 0) == [0, 0]
    assert gradient(F.nan_to_num, nan, inf, 1) == [0, 0, 1]
    for steps in (F.sign, F.floor, F.ceil, F.round, F.trunc, lambda x: x // 2):
        assert gradient(steps, 0.5, 1.5) == [0, 0]


@pytest.mark.parametrize(
    ("function", "dtype"),
    [
        (lambda i, b: F.exp(i), "float32"),
        (lambda i, b: F.abs(i), "int64"),
        (lambda i, b: F.floor(i), "int64"),
        (lambda i, b: F.square(b), "int64"),
        (lambda i, b: i / 2, "float32"),
        (lambda i, b: i // 2, "int64"),
        (lambda i, b: i * 0.5, "float32"),
        (lambda i, b: i + b, "int64"),
        (lambda i, b: b + 1, "int64"),
        (lambda i, b: i**2, "int64"),
        (lambda i, b: i**0.5, "float32"),
        (lambda i, b: i + tensor(1.0, dtype=np.float64), "float64"),
        (lambda i, b: tensor([1.0]) + tensor(1.0, dtype=np.float64), "float32"),
        (lambda i, b: tensor([1], dtype=np.uint8) + tensor(300), "uint8"),
        (lambda i, b: F.clamp(i, min=0.5), "float32"),
        (lambda i, b: F.where(b, i, 0.5), "float32"),
        (lambda i, b: (i > 0) & b, "bool"),
        (lambda i, b: ~b, "bool"),
    ],
)
def test_dtypes_of_results(function: Callable[..., Tensor], dtype: str) -> None:
    assert function(tensor([1, 2]), tensor([True, False])).dtype == dtype


def test_masks_are_made_with_operators() -> None:
    x = tensor([-1.0, 0.5, 2.0])
    mask = (x > 0) & (x < 1)
    assert mask.tolist() == [False, True, False]
    assert (~mask | (x > 1)).tolist() == [True, False, True]
    mask ^= tensor([True, True, False])
    assert mask.tolist() == [True, False, False]
    assert [i.tolist() for i in F.where(x > 0)] == [[1, 2]]
    assert x.isfinite().all().item() and (x > 1).any().item()


def test_whole_numbers_are_divided_exactly() -> None:
    big = tensor([2**60 + 1, -7])
    assert F.div(big, 2, rounding_mode="trunc").tolist() == [2**59, -3]
    assert (big // 2).tolist() == [2**59, -4] and (big % 2).tolist() == [1, 1]
    assert F.fmod(big, 2).tolist() == [1, -1]
    for function in (F.floor_divide, F.remainder, F.fmod):
        with pytest.raises(RuntimeError, match="ZeroDivisionError"):
            function(big, 0)


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda t: t**-1, RuntimeError, "negative integer powers"),
        (lambda t: F.clamp(t), RuntimeError, "at least one of min and max"),
        (lambda t: F.where(t > 1, t), TypeError, "both or neither"),
        (lambda t: F.where(t, t, t), RuntimeError, "condition must be booleans"),
        (lambda t: F.bitwise_and(t * 0.5, t), RuntimeError, "integers or booleans"),
        (lambda t: F.bitwise_not(t * 0.5), RuntimeError, "integers or booleans"),
        (lambda t: F.add(t, t, alpha=0.5), RuntimeError, "alpha must be an integer"),
        (lambda t: F.div(t, t, rounding_mode="up"), ValueError, "rounding_mode"),
        (lambda t: F.mul(t, "a"), TypeError, "must be a tensor or a number"),
        (lambda t: t.exp_(), RuntimeError, "can't be cast"),
        (lambda t: t.add_(tensor([[1, 2], [3, 4]])), RuntimeError, "broadcast shape"),
    ],
)
def test_errors(call: Callable[[Tensor], Any], kind: type[Exception], message: str) -> None:
    t = tensor([1, 2])
    with pytest.raises(kind, match=message):
        call(t)
    assert t.tolist() == [1, 2]


def test_views_are_changed_with_what_they_are_views_of() -> None:
    w = tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True)
    x = w * 1
    y = x.reshape(-1)
    x[0] += 1
    y.mul_(2)
    assert x.tolist() == [[4, 6], [6, 8]] and y.tolist() == [4, 6, 6, 8]
    (x * tensor([[1.0, 2.0], [3.0, 4.0]])).sum().backward()
    assert w.grad.tolist() == [[2, 4], [6, 8]]  # type: ignore[union-attr]


def test_a_step_function_in_place_cuts_the_gradient_off() -> None:
    w = tensor([1.0, 2.0], requires_grad=True)
    y = w * 1
    y.eq_(1)
    assert y.tolist() == [1, 0] and y.requires_grad
    y.sum().backward()
    assert w.grad.tolist() == [0, 0]  # type: ignore[union-attr]


def test_what_was_saved_must_not_have_changed() -> None:
    w = tensor([1.0, 2.0], requires_grad=True)
    x = w * 1
    y = x * x
    x.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()
    x = w * 1
    y = x + x  # needs no values
    x.add_(1)
    y.sum().backward()
    for leaf in (w, w.reshape(2, 1), w[0]):
        with pytest.raises(RuntimeError, match="leaf"):
            leaf.mul_(2)
    with no_grad():
        w.mul_(2)
    assert w.tolist() == [2, 4] and w.is_leaf


def test_a_leaf_whose_gradient_was_turned_off_gets_none() -> None:
    w = tensor([1.0], requires_grad=True)
    y = w * 2
    w.requires_grad_(False)
    y.backward()
    assert w.grad is None
    with pytest.raises(RuntimeError, match="view"):
        y[0].detach_()


def test_results_keep_the_memory_layout_that_views_need() -> None:
    x = tensor(np.ones((2, 3, 2), np.float32))
    for y in (x.tanh(), x.sigmoid()):
        y.reshape(-1).mul_(0)
        assert not y.array().any()


@pytest.mark.parametrize("backward", [False, True])
def test_changes_in_place_leave_no_cycle_of_references(backward: bool) -> None:
    changes: list[Callable[[Tensor], Any]] = [
        lambda x: x.mul_(2),
        lambda x: x[0].mul_(2),
        lambda x: x.reshape(-1).exp_(),
        lambda x: x.__setitem__(0, x[1]),
    ]
    gc.disable()
    try:
        for change in changes:
            x = tensor(np.ones((2, 3)), requires_grad=True) * 1
            memory = weakref.ref(x.array())
            change(x)
            if backward:
                x.sum().backward()
            del x
            assert memory() is None
    finally:
        gc.enable()
