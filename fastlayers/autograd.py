"""A thin tape: tensors that remember how they were made, and reverse-mode differentiation.

An op is recorded by `record`, with a function from the output's gradient to those of the inputs.
What the ops compute is the matter of `fastlayers.ops`.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from fastlayers.ops import arithmetic
from fastlayers.ops.flatten import flatten, flatten_backward
from fastlayers.ops.layout import contiguous

__all__ = ["Tensor", "is_grad_enabled", "no_grad", "record", "tensor"]

Gradients = Sequence[np.ndarray | None]
Backward = Callable[[np.ndarray], Gradients]

_numbers = itertools.count()


class _Mode(threading.local):
    """Whether this thread records, and whether it did outside of each open `no_grad`."""

    def __init__(self) -> None:
        self.enabled = True
        self.before: list[bool] = []


_mode = _Mode()


def is_grad_enabled() -> bool:
    """Whether ops are recorded in this thread."""
    return _mode.enabled


class no_grad(contextlib.ContextDecorator):  # noqa: N801  PyTorch's name
    """Context, or decorator, in which ops of this thread are not recorded."""

    def __enter__(self) -> None:
        _mode.before.append(_mode.enabled)
        _mode.enabled = False

    def __exit__(self, *error: object) -> None:
        _mode.enabled = _mode.before.pop()


class _Node:
    """One recorded op. Numbers grow with time, so an op's inputs have smaller ones."""

    __slots__ = ("backward", "inputs", "number")

    def __init__(self, inputs: tuple[Tensor | None, ...], backward: Backward) -> None:
        self.number = next(_numbers)
        self.inputs: tuple[Tensor | None, ...] | None = inputs
        self.backward: Backward | None = backward


class Tensor:
    """An array with a gradient.

    Parameters
    ----------
    data : array_like
        Wrapped without a copy if it is an ndarray; Python floats become float32.
    requires_grad : bool
        Whether `backward` shall add up gradients in `grad`.

    Attributes
    ----------
    data : ndarray
        The values.
    grad : ndarray or None
        Sum of the gradients of all `backward` calls since it was last None.
    requires_grad : bool
        Whether gradients reach this tensor.

    Raises
    ------
    TypeError
        If gradients are asked for values that are not floating point.
    """

    __slots__ = ("__weakref__", "_node", "data", "grad", "requires_grad")
    # ndarray + Tensor is left to Tensor.__radd__.
    __array_priority__ = 1000

    def __init__(self, data: ArrayLike | Tensor, requires_grad: bool = False) -> None:
        self.data: np.ndarray = _as_array(data)
        if requires_grad and self.data.dtype.kind != "f":
            raise TypeError(
                f"Tensor: requires_grad needs floating point data, got {self.data.dtype}"
            )
        self.grad: np.ndarray | None = None
        self.requires_grad = requires_grad
        self._node: _Node | None = None

    shape = property(lambda self: self.data.shape, doc="Lengths of the axes.")
    ndim = property(lambda self: self.data.ndim, doc="Number of axes.")
    dtype = property(lambda self: self.data.dtype, doc="Type of the elements.")
    is_leaf = property(lambda self: self._node is None, doc="Whether no op made this tensor.")

    def size(self, dim: int | None = None) -> Any:
        """The shape, or the length of one axis."""
        return self.data.shape if dim is None else self.data.shape[dim]

    def dim(self) -> int:
        """Number of axes."""
        return self.data.ndim

    def numel(self) -> int:
        """Number of elements."""
        return self.data.size

    def item(self) -> Any:
        """The only element as a Python number."""
        return self.data.item()

    def tolist(self) -> Any:
        """The elements as nested lists."""
        return self.data.tolist()

    def numpy(self) -> np.ndarray:
        """The array itself, without its history."""
        return self.data

    def detach(self) -> Tensor:
        """A tensor of the same memory without history."""
        return Tensor(self.data)

    def to(self, target: Any) -> Tensor:
        """This tensor on "cpu", the only device, or converted to a dtype, without history."""
        if isinstance(target, str) and target == "cpu":
            return self
        if isinstance(target, str) and target.partition(":")[0] in ("cuda", "mps", "xpu"):
            raise ValueError(f"Tensor.to: the only device is 'cpu', got {target!r}")
        return Tensor(self.data.astype(target, copy=False))

    def argmax(self, dim: int | None = None, keepdim: bool = False) -> Tensor:
        """Index of the first maximum, over all elements or along an axis."""
        return Tensor(np.asarray(np.argmax(self.data, axis=dim, keepdims=keepdim)))

    def backward(
        self, gradient: ArrayLike | Tensor | None = None, retain_graph: bool = False
    ) -> None:
        """Add the gradient of this tensor to `grad` of every leaf that it depends on.

        Parameters
        ----------
        gradient : array_like, optional
            Gradient by this tensor, of its shape; 1 for a scalar by default.
        retain_graph : bool
            Keep what was recorded, so that `backward` can be called again.

        Raises
        ------
        RuntimeError
            If no gradient is required, a non-scalar gets no `gradient`, or what was recorded
            has been freed by an earlier `backward`.
        ValueError
            If `gradient` has another shape.
        """
        if not self.requires_grad:
            raise RuntimeError("backward: the tensor does not require a gradient")
        if gradient is None:
            if self.data.size != 1:
                raise RuntimeError(
                    f"backward: a tensor of shape {self.shape} needs the argument gradient"
                )
            seed = np.ones_like(self.data)
        else:
            seed = _as_array(gradient).astype(self.data.dtype, copy=True)
            if seed.shape != self.shape:
                raise ValueError(
                    f"backward: gradient must have shape {self.shape}, got {seed.shape}"
                )
        _run_backward(self, seed, retain_graph)

    def reshape(self, *shape: Any) -> Tensor:
        """The elements in C order of (N, C, H, W) in another shape; one length may be -1."""
        sizes = shape[0] if len(shape) == 1 and not isinstance(shape[0], int) else shape
        before = self.data.shape
        out = contiguous(self.data).reshape(sizes)
        return record(out, (self,), lambda dy: (contiguous(dy).reshape(before),))

    view = reshape

    def flatten(self, start_dim: int = 0, end_dim: int = -1) -> Tensor:
        """Join the axes from `start_dim` to `end_dim` into one; see `fastlayers.ops.flatten`."""
        before = self.data.shape
        out = flatten(self.data, start_dim, end_dim)
        return record(out, (self,), lambda dy: (flatten_backward(dy, before),))

    def sum(self, dim: Any = None, keepdim: bool = False) -> Tensor:
        """Sum over one, several or all axes."""
        x = self.data
        out = arithmetic.sum(x, dim, keepdim)
        return record(out, (self,), lambda dy: (arithmetic.sum_backward(dy, x, dim, keepdim),))

    def mean(self, dim: Any = None, keepdim: bool = False) -> Tensor:
        """Mean over one, several or all axes."""
        x = self.data
        out = arithmetic.mean(x, dim, keepdim)
        return record(out, (self,), lambda dy: (arithmetic.mean_backward(dy, x, dim, keepdim),))

    def __getitem__(self, index: Any) -> Tensor:
        index = index.data if isinstance(index, Tensor) else index
        x = self.data
        out = arithmetic.getitem(x, index)
        return record(out, (self,), lambda dy: (arithmetic.getitem_backward(dy, x, index),))

    def __add__(self, other: Any) -> Tensor:
        return _binary(arithmetic.add, arithmetic.add_backward, self, other)

    __radd__ = __add__

    def __sub__(self, other: Any) -> Tensor:
        return _binary(arithmetic.sub, arithmetic.sub_backward, self, other)

    def __rsub__(self, other: Any) -> Tensor:
        return _binary(arithmetic.sub, arithmetic.sub_backward, other, self)

    def __mul__(self, other: Any) -> Tensor:
        return _binary(arithmetic.mul, arithmetic.mul_backward, self, other)

    __rmul__ = __mul__

    def __truediv__(self, other: Any) -> Tensor:
        return _binary(arithmetic.div, arithmetic.div_backward, self, other)

    def __rtruediv__(self, other: Any) -> Tensor:
        return _binary(arithmetic.div, arithmetic.div_backward, other, self)

    def __matmul__(self, other: Any) -> Tensor:
        return _binary(arithmetic.matmul, arithmetic.matmul_backward, self, other)

    def __rmatmul__(self, other: Any) -> Tensor:
        return _binary(arithmetic.matmul, arithmetic.matmul_backward, other, self)

    def __neg__(self) -> Tensor:
        return self * -1

    def __eq__(self, other: object) -> Tensor:  # type: ignore[override]
        return Tensor(np.asarray(self.data == _as_array(other)))

    def __ne__(self, other: object) -> Tensor:  # type: ignore[override]
        return Tensor(np.asarray(self.data != _as_array(other)))

    __hash__ = object.__hash__

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.data, dtype=dtype, copy=copy)

    def __len__(self) -> int:
        return len(self.data)

    def __bool__(self) -> bool:
        return bool(self.data)

    def __float__(self) -> float:
        return float(self.data.item())

    def __int__(self) -> int:
        return int(self.data.item())

    def __repr__(self) -> str:
        body = np.array2string(self.data, separator=", ", prefix="tensor(")
        return f"tensor({body}{', requires_grad=True' if self.requires_grad else ''})"


def tensor(array: ArrayLike | Tensor, requires_grad: bool = False) -> Tensor:
    """A tensor of a copy of `array`; Python floats become float32."""
    return Tensor(np.array(_as_array(array)), requires_grad)


def record(data: np.ndarray, inputs: tuple[Tensor | None, ...], backward: Backward) -> Tensor:
    """The tensor of an op's output, with a node on the tape where a gradient may be asked for.

    `backward` maps the output's gradient to one for each input, None where it isn't required.
    """
    out = Tensor(data)
    if _mode.enabled and any(t is not None and t.requires_grad for t in inputs):
        out.requires_grad = True
        out._node = _Node(inputs, backward)
    return out


def _as_array(value: Any) -> np.ndarray:
    if isinstance(value, Tensor):
        return value.data
    if isinstance(value, np.ndarray):
        return value
    array = np.asarray(value)
    is_python = not isinstance(value, np.generic)
    return array.astype(np.float32) if is_python and array.dtype == np.float64 else array


def _binary(
    forward: Callable[[np.ndarray, np.ndarray], np.ndarray],
    backward: Callable[..., Gradients],
    left: Any,
    right: Any,
) -> Tensor:
    """Record an op of two operands, of which one may be an array or a number."""
    a, b = (t if isinstance(t, Tensor) else None for t in (left, right))
    dtype = (a if a is not None else b).data.dtype  # type: ignore[union-attr]
    x, y = (
        np.asarray(t, dtype) if isinstance(t, (int, float)) and dtype.kind == "f" else _as_array(t)
        for t in (left, right)
    )
    needs = tuple(t is not None and t.requires_grad for t in (a, b))
    out = forward(x, y)
    if out.dtype == np.float64 and np.float64 not in (x.dtype, y.dtype):
        out = out.astype(np.float32)  # of integers: PyTorch's default type, not NumPy's
    return record(out, (a, b), lambda dy: backward(dy, x, y, needs))


def _run_backward(root: Tensor, seed: np.ndarray, retain_graph: bool) -> None:
    """Visit the nodes from the newest to the oldest; each has then got all of its gradient."""
    nodes: dict[int, _Node] = {}
    gradients: dict[int, np.ndarray] = {}
    order: list[int] = []  # a heap of negative numbers: the newest node first
    # Leaves get their gradients when all went well: an error leaves them as they were.
    leaves: dict[int, tuple[Tensor, np.ndarray]] = {}

    def give(target: Tensor, gradient: np.ndarray, shared: Gradients) -> None:
        node = target._node
        if gradient.dtype != target.data.dtype:  # of an op of float32 and float64
            gradient = gradient.astype(target.data.dtype)
        if node is None:
            if id(target) in leaves:
                gradient = leaves[id(target)][1] + gradient
            elif any(o is not None and np.may_share_memory(gradient, o) for o in shared):
                gradient = gradient.copy()  # another leaf may be given the same memory
            leaves[id(target)] = target, gradient
        elif node.number in nodes:
            gradients[node.number] = gradients[node.number] + gradient
        else:
            nodes[node.number], gradients[node.number] = node, gradient
            heapq.heappush(order, -node.number)

    give(root, seed, ())
    while order:
        number = -heapq.heappop(order)
        node, gradient = nodes.pop(number), gradients.pop(number)
        if node.backward is None or node.inputs is None:
            raise RuntimeError(
                "backward: what was recorded has been freed by an earlier backward; "
                "pass retain_graph=True to the first one to call it twice"
            )
        parts = node.backward(gradient)
        for i, (target, part) in enumerate(zip(node.inputs, parts, strict=True)):
            if target is not None and target.requires_grad and part is not None:
                give(target, part, (gradient, *parts[:i]))
        if not retain_graph:
            node.backward = node.inputs = None
    for leaf, gradient in leaves.values():
        leaf.grad = gradient if leaf.grad is None else leaf.grad + gradient
