"""A thin tape: tensors that remember how they were made, and reverse-mode differentiation.

An op is recorded by `record`, with a function from the output's gradient to those of the inputs.
What the ops compute is the matter of `fastlayers.ops`.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import math
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from fastlayers import lazy
from fastlayers.ops import arithmetic
from fastlayers.ops._check import plain
from fastlayers.ops.flatten import flatten, flatten_backward
from fastlayers.ops.layout import contiguous

__all__ = [
    "Listener",
    "Recording",
    "Tensor",
    "defer",
    "is_grad_enabled",
    "listen",
    "no_grad",
    "record",
    "tensor",
    "wants_grad",
]

Gradients = Sequence[np.ndarray | None]
Backward = Callable[[np.ndarray], Gradients]
# What an op that ran is recorded by: its output, its inputs and the way back.
Recording = tuple[np.ndarray, "tuple[Tensor | None, ...]", Backward]

_numbers = itertools.count()


class Listener(Protocol):
    """Who is told of leaves as their gradients are complete (`fastlayers.distributed`)."""

    def begin(self, leaves: Collection[int]) -> bool:
        """Whether to be told of a `backward` that may reach the leaves of these `id`s."""

    def ready(self, leaf: Tensor, gradient: np.ndarray) -> None:
        """The gradient of a leaf, which is added to its `grad` at the end."""

    def finish(self) -> None:
        """All gradients are in place."""


_listeners: list[weakref.ref[Listener]] = []


def listen(listener: Listener) -> None:
    """Tell `listener` of every `backward` from now on, as long as it is alive."""
    _listeners.append(weakref.ref(listener, _listeners.remove))


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

    __slots__ = ("backward", "fresh", "inputs", "number")

    def __init__(
        self, inputs: tuple[Tensor | None, ...], backward: Backward, fresh: bool = False
    ) -> None:
        self.number = next(_numbers)
        self.inputs: tuple[Tensor | None, ...] | None = inputs
        self.backward: Backward | None = backward
        self.fresh = fresh


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
        If gradients are asked for values that are not floating point, or the array is masked.
    """

    __slots__ = ("__weakref__", "_array", "_node", "deferred", "grad", "is_own", "requires_grad")
    # ndarray + Tensor is left to Tensor.__radd__.
    __array_priority__ = 1000

    def __init__(self, data: ArrayLike | Tensor, requires_grad: bool = False) -> None:
        self._array: np.ndarray | None = _as_array(data)
        if requires_grad and self._array.dtype.kind != "f":
            raise TypeError(
                f"Tensor: data must be floating point for requires_grad, got {self._array.dtype}"
            )
        self.grad: np.ndarray | None = None
        self.requires_grad = requires_grad
        self._node: _Node | None = None
        # The call that gives the values, until they are first used.
        self.deferred: lazy.Deferred | None = None
        # Whether the memory is the library's, so that nobody changes it behind the tensor's back.
        self.is_own = False

    @property
    def data(self) -> np.ndarray:
        """The values."""
        if lazy.state.waiting:  # whoever holds the array may change what waiting ops read
            lazy.run_waiting()
        return self._array if self.deferred is None else self.array()  # type: ignore[return-value]

    @data.setter
    def data(self, data: np.ndarray) -> None:
        if lazy.state.waiting:
            lazy.run_waiting()
        if type(data) is not np.ndarray:
            data = plain("Tensor", "data", data)
        self._array, self.deferred, self.is_own = data, None, False

    def array(self) -> np.ndarray:
        """The values, for ops that only read them: other calls that wait go on waiting."""
        if self.deferred is not None:
            watcher, call = lazy.watcher, self.deferred
            self._array, inputs, backward = call.run() if watcher is None else watcher.run(call)
            if self.deferred.requires_grad:
                self._node = _Node(inputs, backward, fresh=True)
            self.deferred = None
        return self._array  # type: ignore[return-value]

    @property
    def shape(self) -> tuple[int, ...]:
        """Lengths of the axes."""
        return (self._array if self.deferred is None else self.deferred).shape  # type: ignore[union-attr]

    @property
    def dtype(self) -> np.dtype:
        """Type of the elements."""
        return (self._array if self.deferred is None else self.deferred).dtype  # type: ignore[union-attr]

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def is_leaf(self) -> bool:
        """Whether no op made this tensor."""
        return self._node is None and not (self.deferred and self.requires_grad)

    def size(self, dim: int | None = None) -> Any:
        """The shape, or the length of one axis."""
        return self.shape if dim is None else self.shape[dim]

    def dim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

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
        """This tensor on "cpu", the only device, or converted to a dtype."""
        if isinstance(target, str) and target == "cpu":
            return self
        if isinstance(target, str) and target.partition(":")[0] in ("cuda", "mps", "xpu"):
            raise ValueError(f"Tensor.to: target must be 'cpu', the only device, got {target!r}")
        x = self.array()
        out = x.astype(target, copy=False)
        if out is x:
            return self
        if out.dtype.kind != "f":
            return Tensor(out)
        return record(out, (self,), lambda dy: (dy.astype(x.dtype),))

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
            raise RuntimeError("backward: the tensor must require a gradient, got one without")
        values = self.data
        if gradient is None:
            if values.size != 1:
                raise RuntimeError(
                    f"backward: gradient must be given for a tensor of shape {self.shape}, got None"
                )
            seed = np.ones_like(values)
        else:
            seed = _as_array(gradient).astype(values.dtype, copy=True)
            if seed.shape != self.shape:
                raise ValueError(
                    f"backward: gradient must have shape {self.shape}, got {seed.shape}"
                )
        _run_backward(self, seed, retain_graph)

    def reshape(self, *shape: Any) -> Tensor:
        """The elements in C order of (N, C, H, W) in another shape; one length may be -1."""
        sizes = shape[0] if len(shape) == 1 and not isinstance(shape[0], int) else shape
        before = self.shape
        out = contiguous(self.array()).reshape(sizes)
        return record(out, (self,), lambda dy: (contiguous(dy).reshape(before),))

    view = reshape

    def flatten(self, start_dim: int = 0, end_dim: int = -1) -> Tensor:
        """Join the axes from `start_dim` to `end_dim` into one; see `fastlayers.ops.flatten`."""
        before = self.shape
        out = flatten(self.array(), start_dim, end_dim)
        return record(out, (self,), lambda dy: (flatten_backward(dy, before),))

    def sum(self, dim: Any = None, keepdim: bool = False) -> Tensor:
        """Sum over one, several or all axes."""
        x = self.array()
        out = arithmetic.sum(x, dim, keepdim)
        return record(out, (self,), lambda dy: (arithmetic.sum_backward(dy, x, dim, keepdim),))

    def mean(self, dim: Any = None, keepdim: bool = False) -> Tensor:
        """Mean over one, several or all axes."""
        x = self.array()
        out = arithmetic.mean(x, dim, keepdim)
        return record(out, (self,), lambda dy: (arithmetic.mean_backward(dy, x, dim, keepdim),))

    def __getitem__(self, index: Any) -> Tensor:
        index = index.array() if isinstance(index, Tensor) else index
        x = self.array()
        out = arithmetic.getitem(x, index)
        return record(out, (self,), lambda dy: (arithmetic.getitem_backward(dy, x, index),))

    def __add__(self, other: Any) -> Tensor:
        if isinstance(other, Tensor):
            for a, b in ((self, other), (other, self)):
                if a.deferred is not None and (out := a.deferred.add(a, b)) is not None:
                    return out
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
    out = Tensor(np.array(_as_array(array)), requires_grad)
    out.is_own = True
    return out


def record(
    data: np.ndarray,
    inputs: tuple[Tensor | None, ...],
    backward: Backward,
    *,
    requires_grad: bool | None = None,
    fresh: bool = False,
) -> Tensor:
    """The tensor of an op's output, with a node on the tape where a gradient may be asked for.

    `backward` maps the output's gradient to one for each input, None where it isn't required;
    `fresh` says that these and the output are arrays of their own, which share no memory, and that
    the gradients have the shapes and dtypes of the inputs, which is checked otherwise. Whether
    the output requires a gradient follows from the inputs, unless an earlier call has found it out.
    """
    if (watcher := lazy.watcher) is not None:
        backward = watcher.recorded(data, inputs, backward)
    if requires_grad is None:
        requires_grad = wants_grad(inputs)
    out = _output(requires_grad, fresh)
    out._array = data
    out._node = _Node(inputs, backward, fresh) if requires_grad else None
    return out


def defer(deferred: lazy.Deferred, requires_grad: bool) -> Tensor:
    """The tensor of a call that runs when its values are first used."""
    out = _output(requires_grad, True)
    out._array, out._node, out.deferred = None, None, deferred
    lazy.state.waiting.append(weakref.ref(out))
    if (watcher := lazy.watcher) is not None:
        watcher.deferred(deferred)
    return out


def wants_grad(inputs: tuple[Tensor | None, ...]) -> bool:
    """Whether an op of these inputs is to be recorded."""
    if _mode.enabled:
        for t in inputs:
            if t is not None and t.requires_grad:
                return True
    return False


def _output(requires_grad: bool, is_own: bool) -> Tensor:
    """A tensor that an op made, to be given values."""
    out = Tensor.__new__(Tensor)
    out.grad = out.deferred = None
    out.requires_grad, out.is_own = requires_grad, is_own
    return out


def _as_array(value: Any) -> np.ndarray:
    if isinstance(value, Tensor):
        return value.array()
    if type(value) is np.ndarray:
        return value
    if isinstance(value, np.ndarray):  # a subclass, such as a memory map
        return plain("Tensor", "data", value)
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
    dtype = (a if a is not None else b).dtype  # type: ignore[union-attr]
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
    # By the node's number: the node and its gradient so far. The heap holds negative numbers.
    nodes: dict[int, tuple[_Node, np.ndarray]] = {}
    order: list[int] = []
    # Leaves get their gradients when all went well: an error leaves them as they were.
    leaves: dict[int, tuple[Tensor, np.ndarray]] = {}
    targets: tuple[Tensor | None, ...] = (root,)
    parts: Gradients = (seed,)
    # Of an op whose gradients may be of another shape, or share memory: the latter's owners.
    shared: Gradients | None = ()
    progress = _Progress(root) if _listeners else None
    while True:
        for i, target in enumerate(targets):
            part = parts[i]
            if part is None or target is None or not target.requires_grad:
                continue
            if shared is not None:
                part = _fitting(target, part)
            below = target._node
            if below is None:
                key = id(target)
                if key in leaves:
                    part = leaves[key][1] + part
                elif shared and _meets(part, shared[: i + 1]):
                    part = part.copy()
                leaves[key] = target, part
            elif below.number in nodes:
                # By a kernel, into memory of the pool: NumPy's sums took 10 of ResNet-20's 106 ms.
                watcher = lazy.watcher
                add = arithmetic.add if watcher is None else watcher.summed
                nodes[below.number] = below, add(nodes[below.number][1], part)
            else:
                nodes[below.number] = below, part
                heapq.heappush(order, -below.number)
        if progress is not None:
            progress.reached(targets, leaves)
        if not order:
            break
        node, gradient = nodes.pop(-heapq.heappop(order))
        if node.backward is None or node.inputs is None:
            raise RuntimeError(
                "backward: retain_graph must be True in all calls but the last, got a second call "
                "for what the first has freed"
            )
        targets, parts = node.inputs, node.backward(gradient)
        if len(parts) != len(targets):
            raise ValueError(
                f"backward: an op of {len(targets)} inputs must give as many gradients, "
                f"got {len(parts)}"
            )
        shared = None if node.fresh else (gradient, *parts)
        if not retain_graph:
            node.backward = node.inputs = None
    for leaf, gradient in leaves.values():
        leaf.grad = gradient if leaf.grad is None else leaf.grad + gradient
    if progress is not None:
        progress.finish()


class _Progress:
    """Tells listeners of each leaf when nothing is left that may add to its gradient."""

    def __init__(self, root: Tensor) -> None:
        self._uses: Counter[int] = Counter()
        seen, stack = set(), [root]
        while stack:
            target = stack.pop()
            if target._node is None:
                self._uses[id(target)] += 1
            elif target._node.number not in seen:
                seen.add(target._node.number)
                inputs = target._node.inputs or ()  # freed: the way back will say so
                stack += [t for t in inputs if t is not None and t.requires_grad]
        known = [listener for reference in _listeners if (listener := reference()) is not None]
        self._listeners = [listener for listener in known if listener.begin(self._uses)]

    def reached(
        self,
        targets: tuple[Tensor | None, ...],
        leaves: dict[int, tuple[Tensor, np.ndarray]],
    ) -> None:
        """The way back through an op has given these tensors their part."""
        for target in targets if self._listeners else ():
            key = id(target)
            if key in self._uses:
                self._uses[key] -= 1
                if not self._uses[key] and key in leaves:
                    for listener in self._listeners:
                        listener.ready(*leaves[key])

    def finish(self) -> None:
        """The gradients are in place."""
        for listener in self._listeners:
            listener.finish()


def _fitting(target: Tensor, part: np.ndarray) -> np.ndarray:
    """A gradient as its kernels, which check nothing, expect it."""
    values: np.ndarray = target._array  # type: ignore[assignment]  # its op has run
    if part.shape != values.shape:
        raise ValueError(
            f"backward: an op's gradient must have its input's shape {values.shape}, "
            f"got {part.shape}"
        )
    if part.dtype is values.dtype or part.dtype == values.dtype:
        return part
    return part.astype(values.dtype)  # of an op of float32 and float64


def _meets(part: np.ndarray, others: Gradients) -> bool:
    """Whether a gradient is in memory that another leaf may be given too."""
    return any(other is not None and np.may_share_memory(part, other) for other in others)
