"""The gradient of a tensor, its hooks, and the backward pass from it."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import ArrayLike

from fastlayers.autograd import hooks
from fastlayers.autograd.facts import Facts
from fastlayers.autograd.hooks import RemovableHandle
from fastlayers.autograd.tape import Node, run_backward
from fastlayers.autograd.values import as_array

if TYPE_CHECKING:
    from fastlayers.autograd.tensor import Tensor

__all__ = ["Differentiable"]


class Differentiable(Facts):
    """The part of `Tensor` that is about gradients."""

    __slots__ = ("_grad", "_hooks", "_node", "requires_grad")
    # An array until `grad` is first read, which makes it a tensor.
    _grad: np.ndarray | Tensor | None
    _hooks: dict[int, Callable[[Tensor], Any]]
    _node: Node | None
    requires_grad: bool
    if TYPE_CHECKING:

        @staticmethod
        def of_own(array: np.ndarray) -> Tensor: ...  # noqa: D102
        def changed(self) -> None: ...  # noqa: D102

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
            self._grad = grad = self.of_own(grad)
        return grad  # type: ignore[return-value]

    @grad.setter
    def grad(self, grad: ArrayLike | Tensor | None) -> None:
        if grad is not None and not isinstance(grad, (np.ndarray, Differentiable)):
            raise TypeError(f"grad: must be a Tensor or None, got {type(grad).__name__}")
        if grad is not None and tuple(grad.shape) != tuple(self.shape):
            raise RuntimeError(
                f"grad: must have the tensor's shape {tuple(self.shape)}, got {tuple(grad.shape)}"
            )
        self._grad = grad  # type: ignore[assignment]

    def grad_array(self) -> np.ndarray | None:
        """The gradient as an array, for those that compute with it."""
        grad = self._grad
        return grad.settled() if isinstance(grad, Differentiable) else grad

    def add_grad(self, gradient: np.ndarray) -> None:
        """Add to the gradient; in place, as in PyTorch, if its tensor may be in use elsewhere."""
        before, held = self.grad_array(), self._grad
        if before is None:
            self._grad = np.asarray(gradient)
        elif (
            isinstance(held, Differentiable)
            and before.flags.writeable
            and before.flags.forc  # no element twice, as in an expanded tensor
            and (before.shape, before.dtype) == (gradient.shape, gradient.dtype)
        ):
            before += gradient
            held.changed()
        else:
            self._grad = np.asarray(before + gradient)

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Turn the gradient of this tensor on or off.

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
            self._node.retainer = weakref.ref(self)  # type: ignore[arg-type]

    @property
    def hooks(self) -> dict[int, Callable[[Tensor], Any]] | None:
        """The hooks of a leaf, which are called with its gradient."""
        return getattr(self, "_hooks", None)  # only set where there are any, as `base`

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
            Keep the recorded ops, so that `backward` can be called again.
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
        start: Any = self if self._node is None else self._node
        return start, seed
