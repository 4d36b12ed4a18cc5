"""Changes of tensors in place, and tensors that are views of others.

A tensor that is changed in place keeps its memory and gets the node of the op that changed it; its
views, and the tensor that it is a view of, get nodes that follow from that one.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np

from fastlayers.autograd import mode
from fastlayers.autograd.recording import wants_grad
from fastlayers.autograd.tape import Node
from fastlayers.autograd.tensor import Look, Tensor
from fastlayers.autograd.types import RANKS

__all__ = ["apply", "check_recorded", "check_target", "make_view", "rebind", "reshape"]


def check_recorded(op: str, target: Tensor) -> None:
    """Refuse to change a leaf that requires a gradient, or a view of one, while recording."""
    if mode.thread.enabled:
        root = target if target.base is None else target.base[0]
        for what, t in (("a leaf", target), ("a view of a leaf", root)):
            if t.requires_grad and t.is_leaf:
                raise RuntimeError(
                    f"{op}: the tensor must not be a leaf while ops are recorded, got {what} that "
                    f"requires grad in an in-place operation; change it within no_grad()"
                )


def overlaps(array: np.ndarray) -> bool:
    """Whether elements may lie in the same memory, as in expanded tensors and their windows."""
    pairs = zip(map(abs, array.strides), array.shape, strict=True)
    span = array.itemsize
    for step, size in sorted((step, size) for step, size in pairs if size != 1):
        if step < span and array.size:
            return True
        span += step * (size - 1)
    return False


def check_target(op: str, target: Tensor) -> np.ndarray:
    """The array of a tensor that is about to be changed in place.

    Raises
    ------
    RuntimeError
        If it is a leaf that requires a gradient, or a view of one, and ops are recorded; if it is
        read-only or repeats its elements.
    """
    check_recorded(op, target)
    array = target.settled()
    if not array.flags.writeable or overlaps(array):
        raise RuntimeError(
            f"{op}: the tensor must be writable, got a read-only one or one that repeats its "
            f"elements (more than one element refers to a single memory location); clone() it first"
        )
    return array


def apply(
    op: str, function: Callable[..., Tensor], target: Tensor, *args: Any, **kw: Any
) -> Tensor:
    """Replace the values of `target` by ``function(target, *args, **kw)``.

    Raises
    ------
    RuntimeError
        As `check_target`; if the result has another shape, or a dtype of a higher kind.
    """
    array = check_target(op, target)
    tensors = [t for t in (target, *args, *kw.values()) if isinstance(t, Tensor)]
    before = _before(target, array.copy(order="K")) if wants_grad(tensors) else target.detach()
    result = function(before, *args, **kw)
    values = result.array()
    if values.shape != array.shape:
        raise RuntimeError(
            f"{op}: the result must have the tensor's shape {array.shape}, got {values.shape} "
            f"(output doesn't match the broadcast shape)"
        )
    if RANKS[values.dtype.kind] > RANKS[array.dtype.kind]:
        raise RuntimeError(
            f"{op}: the result must be of the tensor's kind {array.dtype}, got {values.dtype}, "
            f"which can't be cast to it"
        )
    np.copyto(array, values, casting="unsafe")
    target.changed()
    if result.requires_grad:
        rebind(target, result._node or _replaced(result, lambda dy: (dy,)))
    elif wants_grad(tensors) and array.dtype.kind == "f":  # a step function, such as x.eq_(y)
        rebind(target, _replaced(before, lambda dy: (np.zeros_like(dy),)))
    return target


def _replaced(by: Tensor, backward: Callable[[np.ndarray], Any]) -> Node:
    return Node((by,), backward)


def _before(target: Tensor, values: np.ndarray) -> Tensor:
    """`target` as it was: another tensor with these values, and its history."""
    out = Tensor(values)
    out._node, out.requires_grad = target._node, target.requires_grad
    return out


def make_view(out: Tensor, of: Tensor, look: Look) -> Tensor:
    """Register `out` as the view ``look(array)`` of the array of `of`."""
    if of.base is None:
        root = of
    else:
        root, outer = of.base
        inner, look = look, lambda array: inner(outer(array))
    storage = root.storage
    out.base, out._storage = (root, look), storage
    views = storage.views = [] if storage.views is None else storage.views
    # Dead references are removed each time that the list has doubled.
    if len(views) >= 16 and len(views) & (len(views) - 1) == 0:
        views[:] = [view for view in views if view() is not None]
    views.append(weakref.ref(out))
    return out


def reshape(op: str, target: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    """Let `target` be ``function(target)``, a view of its memory, from now on.

    Its former views become views of another tensor, which has its former shape, and so does it.

    Raises
    ------
    RuntimeError
        If it is a leaf that requires a gradient, or a view of one, and ops are recorded.
    """
    check_recorded(op, target)
    target.settled()
    alone = target.base is None and all(view() is None for view in target.storage.views or ())
    # A leaf that requires a gradient, within no_grad(), stays one.
    if target.is_leaf and (alone or target.requires_grad):
        target._array = function(target.detach()).array()
        return target
    whole = target
    if target.base is None:
        whole = copy.copy(target)
        for reference in target.storage.views or ():
            view = reference()
            if view is not None and view.base is not None and view.base[0] is target:
                view.base = whole, view.base[1]
        views = target.storage.views = target.storage.views or []
        views.append(weakref.ref(target))
    with mode.enable_grad():
        out = function(whole)
    target._array, target._node, target.base = out._array, out._node, out.base
    return target


def rebind(target: Tensor, node: Node) -> None:
    """Make `node` the op that `target`, whose memory was changed, is the output of."""
    root = target
    if target.base is not None:
        root, look = target.base
        node = _patched(root, look, node)
    root._node, root.requires_grad = node, True
    for reference in root.storage.views or ():
        view = reference()
        if view is not None and view.base is not None and view.base[0] is root:
            view._node, view.requires_grad = _seen(root, view.base[1]), True


def _patched(root: Tensor, look: Look, part: Node) -> Node:
    """The op that writes a changed view back into its base."""
    array = (
        root.array()
    )  # not `root`, which holds this op: a cycle lives until the next garbage collection

    def copy_slices(dy: np.ndarray) -> Any:
        rest = np.zeros_like(array)
        rest[...] = dy
        inside = look(rest)
        gradient = inside.copy()
        inside[...] = 0
        return rest, gradient

    return Node((root, part), copy_slices)


def _seen(root: Tensor, look: Look) -> Node:
    """The op that takes a view of `root`."""
    array = root.array()

    def as_strided(dy: np.ndarray) -> Any:
        dx = np.zeros_like(array)
        inside = look(dx)
        if overlaps(inside):  # the gradients of all repetitions of an element add up
            numbers = np.zeros_like(dx, np.int64)
            numbers[...] = np.arange(dx.size).reshape(dx.shape)
            dx[...] = np.bincount(look(numbers).ravel(), dy.ravel(), dx.size).reshape(dx.shape)
            return (dx,)
        inside[...] = dy
        return (dx,)

    return Node((root,), as_strided)
