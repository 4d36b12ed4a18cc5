"""NumPy's functions on tensors: all of them, with tensors that require a gradient and without."""

import types
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from functions.numeric import check_gradients, flat

from fastlayers.autograd import Tensor, no_grad
from fastlayers.functions import tensor

# Of these nothing of the values is left in the result.
SHAPES_ONLY = {"zeros_like", "ones_like", "empty_like", "full_like"}
# They are steps: their gradient is 0.
STEPS = {"floor", "ceil", "trunc", "rint", "sign", "floor_divide", "round", "around", "fix"}


def functions() -> Iterator[tuple[str, Callable[..., Any]]]:
    for module in (np, np.linalg, np.fft):
        for name, value in sorted(vars(module).items()):
            if name.startswith("_") or not callable(value) or isinstance(value, type):
                continue
            if isinstance(value, (types.FunctionType, types.BuiltinFunctionType, np.ufunc)) or (
                type(value).__name__ == "_ArrayFunctionDispatcher"
            ):
                prefix = "" if module is np else f"{module.__name__.split('.')[-1]}."
                yield prefix + name, value


FUNCTIONS = dict(functions())
# They write files, read what they are given, or tell about NumPy.
OTHER = {
    *("save", "savez", "savez_compressed", "savetxt", "load", "loadtxt", "genfromtxt", "fromfile"),
    *("fromregex", "info", "show_config", "show_runtime", "test", "linalg.test", "fft.test"),
    *("get_include", "setbufsize", "seterr", "seterrcall", "set_printoptions", "frompyfunc"),
}


VALUES = np.array([[0.31, 0.87, 0.62], [0.23, 0.71, 0.46], [0.79, 0.17, 0.53]])


def arguments(x: np.ndarray) -> list[tuple[Any, ...]]:
    """Ways to call a function that nobody has written a case for."""
    y = x * 0.47 + 0.113
    calls = [(x,), (x, y), (x, 1), (1, x), ([x, y],), (x, (0, 1)), (x, 0, 1), (x > 1, x, y)]
    return [*calls, (x, y, x * 1.1), (x, 0.4, 0.6), ("ij,jk", x, y)]


def recorded_calls(name: str) -> Iterator[tuple[Any, ...]]:
    """The ways to call it that work on arrays."""
    for args in arguments(VALUES.copy()):
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            try:
                FUNCTIONS[name](*args)
            except Exception:
                continue
        yield args


def given(args: Any, make: Callable[[np.ndarray], Any]) -> Any:
    if isinstance(args, np.ndarray):
        return make(args.copy()) if args.dtype.kind == "f" else args
    if isinstance(args, (list, tuple)):
        return type(args)(given(part, make) for part in args)
    return args


def floats(result: Any) -> list[Any]:
    """Where in a result a gradient might have been lost: arrays of floats, and tensors."""
    if isinstance(result, (tuple, list)):
        return [found for part in result for found in floats(part)]
    if isinstance(result, (np.ndarray, np.generic, float, complex, Tensor)):
        return [result] if np.dtype(getattr(result, "dtype", float)).kind in "fc" else []
    return []


@pytest.mark.parametrize("name", sorted(FUNCTIONS.keys() - OTHER))
def test_no_function_of_numpys_loses_a_gradient_in_silence(name: str) -> None:
    function = FUNCTIONS[name]
    for args in recorded_calls(name):
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            try:
                result = function(*given(args, lambda a: Tensor(a, requires_grad=True)))
            except (RuntimeError, TypeError, AttributeError, BufferError):
                continue
            expected = function(*args)
        is_condition = name == "where" and isinstance(args[-1], float)
        if name in SHAPES_ONLY or is_condition or not floats(result):
            continue
        for part, right in zip(floats(result), floats(expected), strict=True):
            assert isinstance(part, Tensor) and part.requires_grad, (args, result)
            np.testing.assert_allclose(part.detach().numpy(), right, rtol=1e-12, atol=1e-12)
        if name not in STEPS and np.isfinite(floats(expected)[0]).all():
            arrays: list[np.ndarray] = []
            given(args, arrays.append)
            check_gradients(lambda *xs, args=args: call(function, args, list(xs)), *arrays)


def call(function: Callable[..., Any], args: Any, tensors: list[Tensor]) -> Any:
    return function(*given(args, lambda a: tensors.pop(0)))


def test_known_functions_are_recorded() -> None:
    """Else the test above would be content with refusals alone."""
    t = Tensor(VALUES.copy(), requires_grad=True)
    recorded = set()
    for name in FUNCTIONS.keys() - OTHER:
        for args in recorded_calls(name):
            with warnings.catch_warnings(), np.errstate(all="ignore"):
                warnings.simplefilter("ignore")
                try:
                    result = FUNCTIONS[name](*given(args, lambda a: t))
                except (RuntimeError, TypeError, AttributeError, BufferError):
                    continue
            if any(part.requires_grad for part in flat(result)):
                recorded.add(name)
    known = "add subtract multiply divide power exp log sqrt sin tanh abs maximum hypot matmul sum"
    known += " mean var std max min amax prod cumsum sort clip where round linalg.norm nansum"
    assert not set(known.split()) - recorded
    assert len(recorded) > 70


def test_sums_have_numpys_arguments() -> None:
    t = tensor([[1.0, 2.0], [3.0, 5.0]], requires_grad=True)
    a = t.detach().numpy()
    assert np.sum(t, 0).tolist() == [4, 7]
    assert np.sum(t, axis=1, keepdims=True).shape == (2, 1)
    assert np.sum(t, 0, np.float64).dtype == np.float64
    assert np.max(t, axis=1).tolist() == [2, 5] and np.max(t, axis=1).requires_grad
    assert np.var(t).item() == np.var(a) and np.var(t, ddof=1).item() == t.var().item()
    assert np.std(t, axis=0, ddof=1).tolist() == np.std(a, axis=0, ddof=1).tolist()
    assert np.clip(t, 2, None).tolist() == [[2, 2], [3, 5]]
    with pytest.raises(RuntimeError, match="must not require a gradient"):
        np.sum(t, where=a > 1)
    with pytest.raises(RuntimeError, match="must not require a gradient"):
        np.cumsum(t)
    assert np.cumsum(t.detach()).tolist() == [1, 3, 6, 11]


def test_methods_of_ufuncs_are_refused_where_a_gradient_is_required() -> None:
    t = tensor([1.0, 2.0], requires_grad=True)
    for call in (
        lambda: np.add.reduce(t),
        lambda: np.add.accumulate(t),
        lambda: np.multiply.outer(t, t),
        lambda: np.add(t, 1, dtype=np.float64),
        lambda: np.add(np.ones(2), t, out=np.ones(2)),
    ):
        with pytest.raises(RuntimeError, match="must not require a gradient"):
            call()
    assert np.add.reduce(t.detach()) == 3
    with no_grad():
        assert np.add.reduce(t) == 3


def test_arrays_on_either_side_of_an_operator() -> None:
    t = tensor([1.0, 2.0], requires_grad=True)
    a = np.array([3.0, 4.0], np.float32)
    for y in (a * t, t * a, np.float64(2) * t, t * np.float64(2), a - t, a / t, a @ t, a**t):
        assert isinstance(y, Tensor) and y.requires_grad and y.dtype == np.float32
    assert isinstance(a > t, Tensor) and isinstance(a == t, Tensor)
    with pytest.raises(RuntimeError, match="must not require a gradient"):
        a += t
    assert a.tolist() == [3, 4]
    a += t.detach()
    assert type(a) is np.ndarray and a.tolist() == [4, 6]


def test_out_may_be_a_tensor_and_its_change_is_counted() -> None:
    x = tensor([1.0, 2.0], requires_grad=True)
    t = tensor([1.0, 2.0])
    y = x * t
    assert np.add(t, 1, out=t) is t and t.tolist() == [2, 3]
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()
    for write in (
        lambda: np.copyto(t, 5.0),
        lambda: np.add.at(t, [0], 1.0),
        lambda: np.fill_diagonal(t.reshape(1, 2), 2.0),
    ):
        y = x * t
        write()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()


def test_arrays_of_tensors_that_require_a_gradient_are_refused() -> None:
    t = tensor([1.0, 2.0], requires_grad=True)
    for call in (
        lambda: np.asarray(t),
        lambda: np.array([t, t]),
        lambda: np.array([t[0], t[1]]),
        lambda: np.testing.assert_allclose(t, t),
        lambda: np.copyto(np.ones(2), t),
    ):
        with pytest.raises(RuntimeError, match="must not require a gradient|detach"):
            call()
    np.testing.assert_allclose(t.detach(), tensor([1.0, 2.0]))
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(t.detach(), [1.0, 3.0])
