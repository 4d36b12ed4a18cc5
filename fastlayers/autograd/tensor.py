"""Tensors: arrays that remember how they were made, and the recording of ops on them.

What PyTorch has as methods of a tensor is here as far as it is about the tape; all that computes
is in `fastlayers.functions`, which adds its functions to the class.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from fastlayers import lazy
from fastlayers.autograd import hooks, mode
from fastlayers.autograd.facts import Facts
from fastlayers.autograd.hooks import RemovableHandle
from fastlayers.autograd.tape import OUTPUT, Backward, Node, Storage, run_backward
from fastlayers.autograd.types import Size
from fastlayers.ops.check import plain

__all__ = ["Recording", "Tensor", "as_array", "defer", "record", "wants_grad"]

# What an op that ran is recorded by: its output, its inputs, the way back, and what of these that
# needs: inputs and `OUTPUT`.
Recording = tuple[np.ndarray, "tuple[Tensor | None, ...]", Backward, tuple[Any, ...]]
# From the array of a view's base to the view.
Look = Callable[[np.ndarray], np.ndarray]


class Tensor(Facts):
    """An array with a gradient.

    Parameters
    ----------
    data : array_like, or int or Size
        Wrapped without a copy if it is an ndarray; Python floats become float32, and lists too, as
        PyTorch's class has them (`fastlayers.tensor` keeps integers). An int or a `Size` is a size:
        the tensor has zeros of it, where PyTorch's has whatever the memory holds.
    *sizes : int
        Lengths of further axes, as in ``Tensor(2, 3)``.
    requires_grad : bool
        Whether `backward` shall add up gradients in `grad`.

    Attributes
    ----------
    data : Tensor
        The values, of the same memory, without history.
    grad : Tensor or None
        Sum of the gradients of all `backward` calls since it was last None.
    requires_grad : bool
        Whether gradients reach this tensor.

    Raises
    ------
    TypeError
        If gradients are asked for values that are not floating point, or the array is masked.

    References
    ----------
    https://docs.pytorch.org/docs/stable/tensors.html
    """

    __slots__ = (
        "__weakref__",
        "_array",
        "_base",
        "_grad",
        "_hooks",
        "_node",
        "_storage",
        "deferred",
        "is_own",
        "requires_grad",
    )
    # ndarray + Tensor is left to Tensor.__array_ufunc__.
    __array_priority__ = 1000

    def __init__(
        self, data: ArrayLike | Tensor = (), *sizes: int, requires_grad: bool = False
    ) -> None:
        if sizes and type(sizes[0]) is bool:  # as `Tensor(data, True)`
            sizes, requires_grad = sizes[1:], bool(sizes[0])
        if sizes or type(data) in (int, Size):
            data = _of_sizes(data if isinstance(data, Size) else (data, *sizes))
        array = as_array(data)
        if array.dtype.kind in "iu" and isinstance(data, (list, tuple)):
            array = array.astype(np.float32)
        if requires_grad and array.dtype.kind != "f":
            raise TypeError(
                f"Tensor: data must be floating point for requires_grad, got {array.dtype}"
            )
        self._array: np.ndarray | None = array
        # An array until somebody asks for the tensor of it.
        self._grad: np.ndarray | Tensor | None = None
        self.requires_grad = requires_grad
        self._node: Node | None = None
        # With other tensors of this memory; made when it is first needed.
        self._storage: Storage | None = data._storage if isinstance(data, Tensor) else None
        # The call that gives the values, until they are first used.
        self.deferred: lazy.Deferred | None = None
        # Whether the memory is the library's, so that nobody changes it behind the tensor's back.
        self.is_own = False

    # The values.

    def array(self) -> np.ndarray:
        """The values, for ops that only read them: other calls that wait go on waiting."""
        if self.deferred is not None:
            watcher, call = lazy.watcher, self.deferred
            recording = call.run() if watcher is None else watcher.run(call)
            self._array, inputs, backward, saved = recording
            if call.requires_grad:
                self._node = _node(self, inputs, backward, saved, True)
            self.deferred = None
        return self._array  # type: ignore[return-value]

    def settled(self) -> np.ndarray:
        """The values, for callers that may change them or hand them out: nothing waits for them."""
        if lazy.state.waiting:
            lazy.run_waiting()
        return self._array if self.deferred is None else self.array()  # type: ignore[return-value]

    def changed(self) -> None:
        """Count a change of the values: what has saved them for its gradient must know."""
        if self._storage is not None:
            self._storage.version += 1

    def twin(self) -> Tensor:
        """Another tensor of the call that this one waits for."""
        out = _output(self.requires_grad, True)
        out.deferred = self.deferred
        return out

    @property
    def storage(self) -> Storage:
        """What this tensor shares with all of its memory."""
        if self._storage is None:
            self._storage = Storage()
        return self._storage

    @property
    def base(self) -> tuple[Tensor, Look] | None:
        """Of a view, the tensor whose memory it is of, and how it is seen there."""
        return getattr(self, "_base", None)  # set for views alone: 20 ns of each tensor

    @base.setter
    def base(self, base: tuple[Tensor, Look] | None) -> None:
        self._base = base

    @property
    def data(self) -> Tensor:
        """The values, of the same memory, without history."""
        return self.detach()

    @data.setter
    def data(self, data: ArrayLike | Tensor) -> None:
        array = data.settled() if isinstance(data, Tensor) else as_array(data)
        if self.requires_grad and array.dtype.kind != "f":
            raise TypeError(
                f"Tensor: data must be floating point for requires_grad, got {array.dtype}"
            )
        self.settled()
        self.changed()
        self._array, self.deferred, self.is_own = array, None, False
        self._storage = data.storage if isinstance(data, Tensor) else None
        self.base = None

    def detach(self) -> Tensor:
        """A tensor of the same memory without history."""
        out = _output(False, False)
        out._array, out._node, out._storage = self.settled(), None, self.storage
        return out

    def detach_(self) -> Self:
        """Forget how this tensor was made.

        Raises
        ------
        RuntimeError
            If it is a view.
        """
        self.settled()
        if self.base is not None:
            raise RuntimeError("detach_: the tensor must not be a view, got one; use detach()")
        self._node, self.requires_grad = None, False
        return self

    def numpy(self, *, force: bool = False) -> np.ndarray:
        """The array itself; with `force`, also of a tensor that requires a gradient.

        Raises
        ------
        RuntimeError
            If the tensor requires a gradient: what NumPy computes would not be recorded.
        """
        if self.requires_grad and not force:
            raise RuntimeError(
                "numpy: the tensor must not require a gradient, got one that does, and NumPy is "
                "not recorded: use tensor.detach().numpy() instead"
            )
        return self.settled()

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.numpy(), dtype=dtype, copy=copy)

    def __contains__(self, value: Any) -> bool:
        return bool((self.array() == as_array(value)).any())

    @property
    def _version(self) -> int:
        """How often the values were changed in place."""
        return 0 if self._storage is None else self._storage.version

    # Gradients.

    @property
    def is_leaf(self) -> bool:
        """Whether no op made this tensor."""
        return self._node is None and not (self.deferred and self.requires_grad)

    @property
    def grad_fn(self) -> Node | None:
        """The recorded op that made this tensor, None for a leaf."""
        self.array()
        return self._node

    @property
    def grad(self) -> Tensor | None:
        """Sum of the gradients of all `backward` calls since it was last None."""
        grad = self._grad
        if type(grad) is np.ndarray:
            self._grad = grad = _wrap(grad)
        return grad  # type: ignore[return-value]

    @grad.setter
    def grad(self, grad: ArrayLike | Tensor | None) -> None:
        if grad is not None and not isinstance(grad, (np.ndarray, Tensor)):
            raise TypeError(f"grad: must be a Tensor or None, got {type(grad).__name__}")
        if grad is not None and tuple(grad.shape) != tuple(self.shape):
            raise RuntimeError(
                f"grad: must have the tensor's shape {tuple(self.shape)}, got {tuple(grad.shape)}"
            )
        self._grad = grad

    def grad_array(self) -> np.ndarray | None:
        """The gradient as an array, for those that compute with it."""
        grad = self._grad
        return grad.settled() if isinstance(grad, Tensor) else grad

    def add_grad(self, gradient: np.ndarray) -> None:
        """Add to the gradient; in place, as in PyTorch, if somebody may hold its tensor."""
        before, held = self.grad_array(), self._grad
        if before is None:
            self._grad = np.asarray(gradient)
        elif (
            isinstance(held, Tensor)
            and before.flags.writeable
            and before.flags.forc  # no element twice, as in an expanded tensor
            and (before.shape, before.dtype) == (gradient.shape, gradient.dtype)
        ):
            before += gradient
            held.changed()
        else:
            self._grad = np.asarray(before + gradient)

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Ask for gradients of this tensor, or for none.

        Raises
        ------
        RuntimeError
            If the values are not floating point, or gradients are turned off for what an op made.
        """
        if requires_grad and self.dtype.kind != "f":
            raise RuntimeError(
                f"requires_grad_: only floating point tensors can require gradients, "
                f"got {self.dtype}"
            )
        if not requires_grad and not self.is_leaf:
            raise RuntimeError(
                "requires_grad_: the tensor must be a leaf to be told not to require a gradient, "
                "got the result of an op; use detach()"
            )
        self.requires_grad = bool(requires_grad)
        return self

    def retain_grad(self) -> None:
        """Keep the gradient of this tensor, which an op made, in `grad` too."""
        if not self.requires_grad:
            raise RuntimeError("retain_grad: the tensor must require a gradient, got one without")
        self.array()
        if self._node is not None:
            self._node.retainer = weakref.ref(self)

    @property
    def hooks(self) -> dict[int, Callable[[Tensor], Any]] | None:
        """Of a leaf, what is called with its gradient."""
        return getattr(self, "_hooks", None)  # set where there are any alone, as `base`

    def register_hook(self, hook: Callable[[Tensor], Tensor | None]) -> RemovableHandle:
        """Call a function with the gradient of this tensor in each `backward`.

        Parameters
        ----------
        hook : callable
            Gets the gradient, a leaf's when it is complete; what it returns, if not None, takes
            its place. An error in it leaves all `grad` as they were.

        Returns
        -------
        RemovableHandle
            Its ``remove()`` takes the hook away.

        Raises
        ------
        RuntimeError
            If the tensor does not require a gradient.
        TypeError
            If `hook` is not callable.

        References
        ----------
        https://docs.pytorch.org/docs/stable/generated/torch.Tensor.register_hook.html
        """
        if not self.requires_grad:
            raise RuntimeError("register_hook: the tensor must require a gradient, got one without")
        self.array()
        owner: Any = self if self._node is None else self._node
        found = {} if owner.hooks is None else owner.hooks
        handle = hooks.add("register_hook", found, hook, hook)
        if self._node is None:
            self._hooks = found
        else:
            self._node.hooks = found
        return handle

    def backward(
        self,
        gradient: ArrayLike | Tensor | None = None,
        retain_graph: bool = False,
        create_graph: bool = False,
    ) -> None:
        """Add the gradient of this tensor to `grad` of every leaf that it depends on.

        Parameters
        ----------
        gradient : array_like, optional
            Gradient of this tensor, of its shape; 1 for a scalar by default.
        retain_graph : bool
            Keep what was recorded, so that `backward` can be called again.
        create_graph : bool
            Must be False: gradients are not recorded.

        Raises
        ------
        RuntimeError
            If no gradient is required, a non-scalar gets no `gradient`, what was recorded has been
            freed by an earlier `backward`, or what an op has saved was changed in place since.
        ValueError
            If `gradient` has another shape.
        NotImplementedError
            If `create_graph` is true.
        """
        root, seed = self.root("backward", gradient, create_graph)
        run_backward((root,), (seed,), bool(retain_graph))

    def root(
        self, op: str, gradient: ArrayLike | Tensor | None, create_graph: bool = False
    ) -> tuple[Node | Tensor, np.ndarray]:
        """Where the backward pass from this tensor begins, and the gradient there."""
        if create_graph:
            raise NotImplementedError(
                f"{op}: create_graph must be False, got True: gradients are not recorded, so there "
                f"are none of higher order"
            )
        if not self.requires_grad:
            raise RuntimeError(f"{op}: the tensor must require a gradient, got one without")
        values = self.settled()
        if gradient is None:
            if values.size != 1:
                raise RuntimeError(
                    f"{op}: gradient must be given for a tensor of shape {tuple(self.shape)}, "
                    f"got None (grad can be implicitly created only for scalar outputs)"
                )
            seed = np.ones_like(values)
        else:
            seed = as_array(gradient).astype(values.dtype, copy=True)
            if seed.shape != values.shape:
                raise ValueError(
                    f"{op}: gradient must have shape {tuple(self.shape)}, got {seed.shape}"
                )
        return self if self._node is None else self._node, seed

    # Copies.

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        if not self.is_leaf:
            raise RuntimeError(
                "deepcopy: only Tensors created explicitly by the user (graph leaves) support the "
                "deepcopy protocol, got the result of an op, such as an activation that a module "
                "keeps: keep x.detach() instead"
            )
        out = _output(self.requires_grad, True, type(self))
        out._array = self.array().copy(order="K")
        if type(self) is Tensor:  # a parameter's copy has no gradient, as in PyTorch
            out._grad = copy.deepcopy(self._grad, memo)
        memo[id(self)] = out
        return out  # type: ignore[return-value]

    def __copy__(self) -> Self:
        out = _output(self.requires_grad, self.is_own, type(self))
        out._array, out._node, out._grad = self.settled(), self._node, self._grad
        out._storage = self.storage
        return out  # type: ignore[return-value]

    def __reduce__(self) -> Any:
        return _unpickled, (type(self), self.settled(), self.requires_grad)


def _unpickled(kind: type[Tensor], array: np.ndarray, requires_grad: bool) -> Tensor:
    out = _output(requires_grad, True, kind)
    out._array = array
    return out


def record(
    data: np.ndarray,
    inputs: tuple[Tensor | None, ...],
    backward: Backward,
    *,
    saved: tuple[Any, ...] | None = None,
    requires_grad: bool | None = None,
    fresh: bool = False,
) -> Tensor:
    """The tensor of an op's output, with a node on the tape where a gradient is required.

    Parameters
    ----------
    data : ndarray
        The output.
    inputs : tuple of Tensor or None
    backward : callable
        From the output's gradient to one for each input, None where it isn't required.
    saved : tuple, optional
        The inputs, and `OUTPUT`, whose values `backward` reads: where they are changed in place
        before, it is not called. All inputs by default.
    requires_grad : bool, optional
        Whether the output requires a gradient, where an earlier call has found it out.
    fresh : bool
        The gradients and the output are arrays of their own, which share no memory, and the
        gradients have the shapes and dtypes of the inputs; otherwise that is checked.

    Returns
    -------
    Tensor
    """
    if (watcher := lazy.watcher) is not None:
        backward = watcher.recorded(data, inputs, backward)
    if requires_grad is None:
        requires_grad = wants_grad(inputs)
    out = _output(requires_grad, fresh)
    out._array = data
    if requires_grad:
        out._node = _node(out, inputs, backward, inputs if saved is None else saved, fresh)
    return out


def _node(
    output: Tensor,
    inputs: tuple[Tensor | None, ...],
    backward: Backward,
    saved: tuple[Any, ...],
    fresh: bool,
) -> Node:
    # Loops, as a comprehension is a call: 0.2 us.
    edges: list[Node | Tensor | None] = []
    for t in inputs:
        edges.append(None if t is None or not t.requires_grad else t._node or t)
    likes: list[Any] | None = None
    if not fresh:
        likes = [None if t is None else (t._array.shape, t._array.dtype) for t in inputs]  # type: ignore[union-attr]
    versions = []
    for t in saved:
        if t is not None:
            t = output if t is OUTPUT else t  # noqa: PLW2901
            storage = t._storage
            if storage is None:
                storage = t._storage = Storage()
            versions.append((storage, storage.version))
    return Node(edges, backward, versions, likes)


def defer(deferred: lazy.Deferred, requires_grad: bool) -> Tensor:
    """The tensor of a call that runs when its values are first used."""
    out = _output(requires_grad, True)
    out.deferred = deferred
    waiting = lazy.state.waiting
    if len(waiting) >= 64:  # of a program without modules and gradients, which never empties it
        lazy.prune(waiting)
    waiting.append(weakref.ref(out))
    if (watcher := lazy.watcher) is not None:
        watcher.deferred(deferred)
    return out


def wants_grad(inputs: Sequence[Tensor | None]) -> bool:
    """Whether an op of these inputs is to be recorded."""
    if mode.thread.enabled:
        for t in inputs:
            if t is not None and t.requires_grad:
                return True
    return False


def _output(requires_grad: bool, is_own: bool, kind: type[Tensor] = Tensor) -> Tensor:
    """A tensor to be given values."""
    out = kind.__new__(kind)
    out._array = out._node = out._grad = out._storage = out.deferred = None
    out.requires_grad, out.is_own = requires_grad, is_own
    return out


def _wrap(array: np.ndarray) -> Tensor:
    """A tensor of the library's own array."""
    out = _output(False, True)
    out._array = array
    return out


def _of_sizes(sizes: tuple[Any, ...]) -> np.ndarray:
    if any(type(size) is not int or size < 0 for size in sizes):
        raise TypeError(f"Tensor: sizes must be whole numbers >= 0, got {sizes!r}")
    return np.zeros(sizes, np.float32)


def as_array(value: Any) -> np.ndarray:
    """The values of a tensor, an array or numbers; Python floats become float32."""
    if isinstance(value, Tensor):
        return value.array()
    if type(value) is np.ndarray:
        return value
    if isinstance(value, np.ndarray):  # a subclass, such as a memory map
        return plain("Tensor", "data", value)
    if isinstance(value, (list, tuple)) and _holds_tensors(value):
        value = _values(value)
        return np.asarray(value)
    array = np.asarray(value)
    is_python = not isinstance(value, np.generic)
    return array.astype(np.float32) if is_python and array.dtype == np.float64 else array


def _holds_tensors(values: Any) -> bool:
    while isinstance(values, (list, tuple)) and values:
        values = values[0]
    return isinstance(values, Tensor)


def _values(values: Any) -> Any:
    """Nested lists of tensors, as NumPy reads them."""
    if isinstance(values, (list, tuple)):
        return [_values(value) for value in values]
    return as_array(values)
