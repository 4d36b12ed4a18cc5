"""Tensors: arrays that remember how they were made.

The methods here and in `differentiable` and `facts` are those about memory, gradients and facts;
`fastlayers.functions` adds those that compute.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from fastlayers import lazy
from fastlayers.autograd.differentiable import Differentiable
from fastlayers.autograd.tape import Node, Storage
from fastlayers.autograd.types import Size
from fastlayers.autograd.values import as_array
from fastlayers.ops import layout

__all__ = ["Look", "Tensor", "unfilled"]

# From the array of a view's base to the view.
Look = Callable[[np.ndarray], np.ndarray]


class Tensor(Differentiable):
    """An array with a gradient.

    Parameters
    ----------
    data : array_like, or int or Size
        Wrapped without a copy if it is an ndarray; Python floats become float32, and lists too, as
        PyTorch's class has them (`fastlayers.tensor` keeps integers). An int or a `Size` is a size:
        the tensor has that many zeros, where PyTorch's has whatever the memory holds.
    *sizes : int
        Lengths of further axes, as in ``Tensor(2, 3)``.
    requires_grad : bool
        Whether `backward` accumulates gradients in `grad`.

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
        If `requires_grad` is set for values that are not floating point, or the array is masked.

    References
    ----------
    https://docs.pytorch.org/docs/stable/tensors.html
    """

    __slots__ = (
        "__weakref__",
        "_array",
        "_base",
        "_images",
        "_storage",
        "deferred",
        "is_own",
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
        self._grad = None
        self.requires_grad = requires_grad
        self._node = None
        # Shared with other tensors of this memory; made when it is first needed.
        self._storage: Storage | None = data.storage if isinstance(data, Tensor) else None
        # The call that gives the values, until they are first used.
        self.deferred: lazy.Deferred | None = None
        # Whether the memory is the library's, so that only tensors change it.
        self.is_own = False

    # The values.

    def array(self) -> np.ndarray:
        """The values, for ops that only read them: other deferred calls stay deferred."""
        if self.deferred is not None:
            watcher, call = lazy.watcher, self.deferred
            recording = call.run() if watcher is None else watcher.run(call)
            self._array, inputs, backward, saved = recording
            if call.requires_grad:
                self._node = Node(inputs, backward, saved, self)
            self.deferred = None
        return self._array  # type: ignore[return-value]

    def images(self, checked: np.ndarray | None = None) -> np.ndarray:
        """The values on channels-last memory, as ops on images (N, C, ...) read them.

        Other memory is converted, once during the outermost call of a module: until the values are
        changed, or nothing uses the converted array any more, such as an op that has saved it for
        its gradient. Outside of modules each call converts, as users may change an array that a
        tensor wraps between two calls.

        Parameters
        ----------
        checked : ndarray, optional
            The values, where an op has checked them already, which may have changed the byte order.
        """
        x: Any = checked
        if x is None:
            x = self._array if self.deferred is None else self.array()
        ndim = x.ndim
        if not 3 <= ndim <= 4 or x.transpose(layout.LAST[ndim]).flags.carray:
            return x  # type: ignore[no-any-return]
        if x.dtype.char not in "fd" or not x.dtype.isnative:  # the op raises an error or converts
            return x  # type: ignore[no-any-return]
        call, storage = lazy.state.call, self._storage
        if storage is None:
            storage = self._storage = Storage()
        now, kept = (call, storage.version), getattr(self, "_images", None)
        if kept is not None and call and kept[0] == now and kept[1]() is x:
            images = kept[2]()
            if images is not None:
                return images  # type: ignore[no-any-return]
        images = layout.to_channels_last(x).transpose(layout.FIRST[ndim])
        self._images = now, weakref.ref(x), weakref.ref(images)
        return images

    def settled(self) -> np.ndarray:
        """The values, for callers that may change them or hand them out: nothing stays deferred."""
        if lazy.state.waiting:
            lazy.run_waiting()
        return self._array if self.deferred is None else self.array()  # type: ignore[return-value]

    def changed(self) -> None:
        """Count a change of the values, for ops that have saved them for their gradients."""
        if self._storage is not None:
            self._storage.version += 1

    def twin(self) -> Tensor:
        """Another tensor of the deferred call that gives this one its values."""
        out = unfilled(self.requires_grad, True)
        out.deferred = self.deferred
        return out

    @property
    def storage(self) -> Storage:
        """What this tensor shares with all others of its memory."""
        if self._storage is None:
            self._storage = Storage()
        return self._storage

    @property
    def base(self) -> tuple[Tensor, Look] | None:
        """Of a view, the tensor that it is a view of, and the function that takes the view."""
        return getattr(self, "_base", None)  # only set for views, which saves 20 ns a tensor

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

    @staticmethod
    def of_own(array: np.ndarray) -> Tensor:
        """A tensor that owns an array made by the library."""
        out = unfilled(False, True)
        out._array = array
        return out

    def detach(self) -> Tensor:
        """A tensor of the same memory without history."""
        out = unfilled(False, False)
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

    # Copies.

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        if not self.is_leaf:
            raise RuntimeError(
                "deepcopy: only Tensors created explicitly by the user (graph leaves) support the "
                "deepcopy protocol, got the result of an op, such as an activation that a module "
                "keeps: keep x.detach() instead"
            )
        out = unfilled(self.requires_grad, True, type(self))
        out._array = self.array().copy(order="K")
        if type(self) is Tensor:  # a parameter's copy has no gradient, as in PyTorch
            out._grad = copy.deepcopy(self._grad, memo)
        memo[id(self)] = out
        return out  # type: ignore[return-value]

    def __copy__(self) -> Self:
        out = unfilled(self.requires_grad, self.is_own, type(self))
        out._array, out._node, out._grad = self.settled(), self._node, self._grad
        out._storage = self.storage
        return out  # type: ignore[return-value]

    def __reduce__(self) -> Any:
        return _unpickled, (type(self), self.settled(), self.requires_grad)


def _unpickled(kind: type[Tensor], array: np.ndarray, requires_grad: bool) -> Tensor:
    out = unfilled(requires_grad, True, kind)
    out._array = array
    return out


def unfilled(requires_grad: bool, is_own: bool, kind: type[Tensor] = Tensor) -> Tensor:
    """A tensor without values, which the caller sets."""
    out = kind.__new__(kind)
    out._array = out._node = out._grad = out._storage = out.deferred = None
    out.requires_grad, out.is_own = requires_grad, is_own
    return out


def _of_sizes(sizes: tuple[Any, ...]) -> np.ndarray:
    if any(type(size) is not int or size < 0 for size in sizes):
        raise TypeError(f"Tensor: sizes must be whole numbers >= 0, got {sizes!r}")
    return np.zeros(sizes, np.float32)
