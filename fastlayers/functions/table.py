"""Makes tensor functions from array functions and their gradients, in one or a few lines each.

`unary` and `binary` make element-wise functions, `recorded` any other. Each becomes a function of
`fastlayers`, a method of `Tensor` and, if NumPy has such a function, its implementation for
tensors.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import numpy as np

from fastlayers.autograd import inplace
from fastlayers.autograd.recording import record, tensor, wants_grad
from fastlayers.autograd.tape import OUTPUT
from fastlayers.autograd.tensor import Tensor
from fastlayers.functions.promotion import common, floating, number, operand
from fastlayers.functions.registry import (
    Function,
    by_torch_names,
    method,
    numpy_names,
    operator,
    register,
)

__all__ = [
    "binary",
    "comparison",
    "operands",
    "recorded",
    "result",
    "unary",
    "unbroadcast",
    "view",
]


def _asks(gradient: Callable[..., Any]) -> tuple[str, ...]:
    """What a gradient needs: the names of its parameters except the first, dy."""
    return tuple(inspect.signature(gradient).parameters)[1:]


def unary(
    name: str,
    forward: Callable[[np.ndarray], np.ndarray],
    gradient: Callable[..., np.ndarray] | None,
    doc: str,
    *,
    keeps_integers: bool = False,
    in_place: bool = True,
    numpy: Any = None,
) -> Function:
    """A function of each element.

    Parameters
    ----------
    name : str
    forward : callable
        From an array to one of its shape; a ufunc is taken to be NumPy's counterpart.
    gradient : callable or None
        From dy, and the input if it has a parameter x, and the output if it has one y, to dx;
        None if the function is piecewise constant: the gradient is 0.
    doc : str
        The docstring: a sentence or a formula.
    keeps_integers : bool
        Otherwise integers are converted to float32.
    in_place : bool
        Whether there is a method `name_` too.
    numpy : ufunc, optional
        NumPy's function; `forward` by default, if that is a ufunc.
    """
    asks = () if gradient is None else _asks(gradient)
    saves_input, saves_output = "x" in asks, "y" in asks

    def function(input: Any) -> Tensor:
        x = tensor(input)
        a = x.array() if keeps_integers else floating(x.array())
        with np.errstate(all="ignore"):
            b = np.asarray(forward(a))
        if not wants_grad((x,)):
            return record(b, (x,), _nothing, requires_grad=False)
        kept = {"x": a} if saves_input else {}
        kept |= {"y": b} if saves_output else {}

        def backward(dy: np.ndarray) -> Any:
            if gradient is None:
                return (np.zeros_like(dy),)
            with np.errstate(all="ignore"):
                return (gradient(dy, **kept),)

        backward.__qualname__ = f"{name}.<locals>.backward"
        saved = ((x,) if saves_input else ()) + ((OUTPUT,) if saves_output else ())
        return record(b, (x,), backward, saved=saved)

    function.__doc__ = doc
    if numpy is None and isinstance(forward, np.ufunc):
        numpy = forward
    return register(name, function, numpy, in_place=in_place)


def _nothing(dy: np.ndarray) -> Any:  # pragma: no cover  of what is not recorded
    return ()


def unbroadcast(dy: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Sum a gradient over the axes along which its array was repeated."""
    if dy.shape == shape:
        return dy
    extra = dy.ndim - len(shape)
    if extra < 0:  # an assigned value may have more axes of length 1 than its target
        dy, extra = dy.reshape((1,) * -extra + dy.shape), 0
    dy = dy.sum(axis=tuple(range(extra))) if extra else dy
    repeated = tuple(i for i, size in enumerate(shape) if size == 1 and dy.shape[i] != 1)
    return dy.sum(axis=repeated, keepdims=True) if repeated else dy


def operands(op: str, left: Any, right: Any, real: bool = False) -> tuple[Any, Any, Any, Any]:
    """Two operands as tensors, None for numbers, and their arrays in the common dtype."""
    a, b = left, right
    if type(a) is not Tensor:
        a = operand(op, "input", left)
    if type(b) is not Tensor:
        b = operand(op, "other", right)
    a_tensor = a if isinstance(a, Tensor) else None
    b_tensor = b if isinstance(b, Tensor) else None
    if a_tensor is not None and b_tensor is not None and a_tensor.dtype is b_tensor.dtype:
        dtype = a_tensor.dtype
    else:
        dtype = common((a, b))
    if real and dtype.kind != "f":
        dtype = np.dtype(np.float32)
    x = number(a, dtype) if a_tensor is None else np.asarray(a_tensor.array(), dtype)
    y = number(b, dtype) if b_tensor is None else np.asarray(b_tensor.array(), dtype)
    return a_tensor, b_tensor, x, y


def _unmatched(op: str, x: np.ndarray, y: np.ndarray, error: ValueError) -> Exception:
    """PyTorch's error for shapes that do not broadcast, or the one that was raised."""
    try:
        np.broadcast_shapes(x.shape, y.shape)
    except ValueError:
        return RuntimeError(
            f"{op}: input and other must have shapes that broadcast, got {x.shape} and {y.shape} "
            f"(the size of tensor a must match the size of tensor b)"
        )
    return error


def binary(
    name: str,
    forward: Callable[..., np.ndarray],
    gradients: tuple[Callable[..., np.ndarray] | None, Callable[..., np.ndarray] | None],
    doc: str,
    *,
    symbol: str = "",
    real: bool = False,
    numpy: Any = None,
    in_place: bool = True,
) -> Function:
    """An element-wise function of two tensors, with broadcasting.

    Parameters
    ----------
    name : str
    forward : callable
        From two arrays of one dtype to the result.
    gradients : pair of callables or None
        Of the first and of the second input, from dy and what their parameters name: a and b, the
        inputs, and y, the output; None where the gradient is 0.
    doc : str
    symbol : str
        The operator's method without underscores, such as "add".
    real : bool
        Whether integers are converted to float32.
    numpy : ufunc, optional
        NumPy's function; `forward` by default, if that is a ufunc.
    in_place : bool
    """
    asks = [() if g is None else _asks(g) for g in gradients]

    def function(input: Any, other: Any) -> Tensor:
        a, b, x, y = operands(name, input, other, real)
        try:
            with np.errstate(all="ignore"):
                out = np.asarray(forward(x, y))
        except ValueError as error:
            raise _unmatched(name, x, y, error) from None
        if not wants_grad((a, b)):
            return record(out, (a, b), _nothing, requires_grad=False)
        values = {"a": x, "b": y, "y": out}
        needs = [t is not None and t.requires_grad for t in (a, b)]

        def backward(dy: np.ndarray) -> Any:
            return tuple(
                _part(gradient, dy, {key: values[key] for key in ask}, like) if need else None
                for gradient, need, ask, like in zip(gradients, needs, asks, (x, y), strict=True)
            )

        backward.__qualname__ = f"{name}.<locals>.backward"
        kept = {key for need, ask in zip(needs, asks, strict=True) if need for key in ask}
        saved = (a if "a" in kept else None, b if "b" in kept else None)
        return record(out, (a, b), backward, saved=(*saved, OUTPUT if "y" in kept else None))

    function.__doc__ = doc
    if numpy is None and isinstance(forward, np.ufunc):
        numpy = forward
    return register(name, function, numpy, in_place=in_place, symbol=symbol)


def _part(
    gradient: Callable[..., np.ndarray] | None,
    dy: np.ndarray,
    kept: dict[str, np.ndarray],
    like: np.ndarray,
) -> np.ndarray:
    if gradient is None:
        return np.zeros_like(like)
    with np.errstate(all="ignore"):
        return unbroadcast(gradient(dy, **kept), like.shape)


def comparison(name: str, forward: Any, doc: str, symbol: str = "") -> Function:
    """An element-wise comparison of two tensors."""

    def function(input: Any, other: Any) -> Tensor:
        *_, x, y = operands(name, input, other)
        try:
            return Tensor(np.asarray(forward(x, y)))
        except ValueError as error:
            raise _unmatched(name, x, y, error) from None

    function.__doc__ = doc
    function = register(name, function, forward)
    if symbol:
        method(operator(function), f"__{symbol}__")
    return function


def recorded(
    *,
    tensors: int = 1,
    saves: tuple[int, ...] = (),
    saves_output: bool = False,
    numpy: Any = None,
    in_place: bool = False,
) -> Callable[[Callable[..., Any]], Function]:
    """Make a tensor function from an array function.

    Parameters
    ----------
    tensors : int
        How many of the first arguments are tensors; the function gets their arrays.
    saves : tuple of int
        Which of them the gradient reads.
    saves_output : bool
        Whether the gradient reads the output.
    numpy : callable, optional
        NumPy's counterpart.
    in_place : bool
        Whether there is a method `name_` too.

    Returns
    -------
    callable
        A decorator of functions that return the output, and a function from dy to the gradient of
        the input, or a tuple of those of all, None where there is none.
    """

    def decorate(function: Callable[..., Any]) -> Function:
        @numpy_names
        @functools.wraps(function)
        def call(*args: Any, **options: Any) -> Tensor:
            if len(args) < tensors:
                args, options = _by_name(function, args, options, tensors)
            inputs = tuple(tensor(value) for value in args[:tensors])
            arrays = [t.array() for t in inputs]
            with np.errstate(all="ignore"):
                out, gradient = function(*arrays, *args[tensors:], **options)
            saved = tuple(inputs[i] for i in saves) + ((OUTPUT,) if saves_output else ())
            return result(function.__name__, out, inputs, gradient, saved)

        return register(function.__name__, call, numpy, in_place=in_place)

    return decorate


def result(
    name: str,
    out: Any,
    inputs: tuple[Tensor | None, ...],
    gradient: Callable[[np.ndarray], Any],
    saved: tuple[Any, ...] = (),
) -> Tensor:
    """The tensor of a function's output; `gradient` gives dx of one input, or a tuple of all."""

    def backward(dy: np.ndarray) -> Any:
        with np.errstate(all="ignore"):
            parts = gradient(dy)
        return parts if isinstance(parts, tuple) else (parts,)

    backward.__qualname__ = f"{name}.<locals>.backward"
    out = np.asarray(out)
    known = None if out.dtype.kind == "f" else False  # integers have no gradient
    return record(out, inputs, backward, saved=saved, requires_grad=known)


def _by_name(
    function: Callable[..., Any], args: tuple[Any, ...], options: dict[str, Any], tensors: int
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional arguments, including those given by name; the first one also as `input`."""
    names = list(inspect.signature(function).parameters)[:tensors]
    options = dict(options)
    for name in names[len(args) :]:
        key = "input" if name == names[0] and "input" in options else name
        if key not in options:
            raise TypeError(f"{function.__name__}: {name} must be given, got none")
        args = (*args, options.pop(key))
    return args, options


def view(
    function: Callable[..., tuple[Callable[[np.ndarray], np.ndarray], Callable[..., Any]]],
) -> Function:
    """Make a function that returns a view of a tensor's memory, or a copy if that is impossible.

    The function gets the array and the options, and returns what makes the view of an array, and
    a function from dy to dx.
    """
    name = f"{function.__name__}.<locals>.backward"

    @functools.wraps(function)
    def call(input: Any, *args: Any, **options: Any) -> Tensor:
        if options:
            options = by_torch_names(options)
        x = tensor(input)
        array = x.array()
        look, gradient = function(array, *args, **options)
        out = look(array)

        def backward(dy: np.ndarray) -> Any:
            return (gradient(dy),)

        backward.__qualname__ = name
        result = record(out, (x,), backward, saved=())
        # Most of NumPy's views have the array as their base; comparing the memory takes 0.3 us.
        if out.base is array or np.may_share_memory(out, array):
            inplace.make_view(result, x, look)
        return result

    return register(function.__name__, call, in_place=False)
