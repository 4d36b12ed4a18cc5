"""The tape: what ops recorded, and reverse-mode differentiation of it.

A `Node` is one recorded op. Its edges lead to the nodes that made its inputs, or to the leaves, as
they were when it was recorded: a tensor that is changed in place later on gets a node of its own,
and earlier ops keep theirs. What an op has saved for its gradient is watched by version counters.
"""

from __future__ import annotations

import heapq
import itertools
import weakref
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from fastlayers import lazy
from fastlayers.autograd.hooks import hooked
from fastlayers.ops import arithmetic

if TYPE_CHECKING:
    from fastlayers.autograd.tensor import Tensor

__all__ = [
    "OUTPUT",
    "Backward",
    "Gradients",
    "Listener",
    "Node",
    "Storage",
    "listen",
    "run_backward",
]

Gradients = Sequence[np.ndarray | None]
Backward = Callable[[np.ndarray], Gradients]
Likes = Sequence[tuple[tuple[int, ...], np.dtype] | None]
# Among the tensors that an op has saved: its own output.
OUTPUT: Any = object()

_numbers = itertools.count()


class Storage:
    """What tensors of one memory share: how often it was changed, and its views."""

    # Of the class until they are set: one is made for most ops, and few are ever changed.
    version = 0
    views: list[weakref.ref[Tensor]] | None = None


class Node:
    """One recorded op. Numbers grow with time, so what an op depends on has smaller ones."""

    # Of the class until they are set.
    # The tensor of this op's output that keeps its gradient (`Tensor.retain_grad`).
    retainer: weakref.ref[Tensor] | None = None
    # What is called with the gradient of the output (`Tensor.register_hook`).
    hooks: dict[int, Callable[[Tensor], Any]] | None = None

    # So that a node can stand for the input that its op has made.
    requires_grad = True
    _node = None

    def __init__(
        self,
        inputs: Sequence[Tensor | Node | None],
        backward: Backward,
        saved: Sequence[Any] = (),
        output: Tensor | None = None,
        *,
        is_fresh: bool = True,
    ) -> None:
        """Record an op; `saved` are the inputs, and `OUTPUT`, whose values `backward` reads."""
        self.number = next(_numbers)
        # Loops, as a comprehension is a call: 0.2 us.
        edges: list[Node | Tensor | None] = []
        for t in inputs:
            edges.append(None if t is None or not t.requires_grad else t._node or t)
        self.edges: Sequence[Node | Tensor | None] | None = edges
        self.backward: Backward | None = backward
        # The shapes and dtypes of the inputs, which the gradients must have. None if they have them
        # for certain, and share no memory.
        self.likes: Likes | None = None
        if not is_fresh:
            arrays: list[Any] = [None if t is None else t._array for t in inputs]  # type: ignore[union-attr]
            self.likes = [None if array is None else (array.shape, array.dtype) for array in arrays]
        # The memory that it has saved, and the version of it.
        self.saved: list[tuple[Storage, int]] = []
        for t in saved:
            if t is not None:
                source: Any = output if t is OUTPUT else t
                storage = source._storage
                if storage is None:
                    storage = source._storage = Storage()
                self.saved.append((storage, storage.version))

    def name(self) -> str:
        """Name as PyTorch has it, such as MulBackward0."""
        op = _op_of(self.backward)
        return "".join(word.capitalize() for word in op.strip("_").split("_")) + "Backward0"

    def __repr__(self) -> str:
        return f"<{self.name()} object>"


def _op_of(backward: Any) -> str:
    """Name of the op of a backward function: that of the function or class that recorded it."""
    free = getattr(getattr(backward, "__code__", None), "co_freevars", ())
    if "backward" in free:  # of several ops that are recorded in one place
        inner = backward.__closure__[free.index("backward")].cell_contents
        return str(getattr(inner, "__name__", "op")).removesuffix("_backward")
    path = getattr(backward, "__qualname__", "op").partition(".<locals>")[0].split(".")
    return path[-2] if len(path) > 1 else path[-1]  # a head or a step of a chain is a class


class Listener(Protocol):
    """Is notified of leaves as their gradients become complete (`fastlayers.distributed`)."""

    def begin(self, leaves: Collection[int]) -> bool:
        """Whether to be notified of a `backward` that may reach the leaves of these `id`s."""

    def ready(self, leaf: Tensor, gradient: np.ndarray) -> None:
        """The gradient of a leaf, which is added to its `grad` at the end."""

    def finish(self) -> None:
        """All gradients are in place."""


_listeners: list[weakref.ref[Listener]] = []


def listen(listener: Listener) -> None:
    """Notify `listener` of every `backward` from now on, as long as it is alive."""
    _listeners.append(weakref.ref(listener, _listeners.remove))


class _Pass:
    """A backward pass: the gradients of nodes and leaves so far."""

    __slots__ = ("leaves", "nodes", "order")

    def __init__(self) -> None:
        # By the node's number: the node and its gradient so far. The heap holds negative numbers.
        self.nodes: dict[int, tuple[Node, np.ndarray]] = {}
        self.order: list[int] = []
        # Leaves get their gradients at the end, so that an error leaves them as they were.
        self.leaves: dict[int, tuple[Tensor, np.ndarray]] = {}

    def add(
        self,
        edges: Sequence[Any],
        parts: Gradients,
        likes: Likes | None = None,
        shared: Gradients = (),
    ) -> None:
        """Pass on the gradients of an op's inputs.

        `likes` are the shapes and dtypes that they must have, None where they do, and `shared` the
        arrays whose memory they may be in.
        """
        nodes, leaves = self.nodes, self.leaves
        for i, edge in enumerate(edges):
            part = parts[i]
            if part is None or edge is None:
                continue
            if likes is not None:
                part = _fitting(likes[i], part)
            if type(edge) is not Node:
                key = id(edge)
                if key in leaves:
                    part = leaves[key][1] + part
                elif shared and _meets(part, shared[: i + 1]):
                    part = part.copy()
                # NumPy's sums and products of arrays without axes are scalars.
                leaves[key] = edge, part if type(part) is np.ndarray else np.asarray(part)
            elif edge.number in nodes:
                # By a kernel, into memory of the pool: NumPy's sums took 10 of ResNet-20's 106 ms.
                watcher = lazy.watcher
                total = arithmetic.add if watcher is None else watcher.summed
                nodes[edge.number] = edge, total(nodes[edge.number][1], part)
            else:
                nodes[edge.number] = edge, part
                heapq.heappush(self.order, -edge.number)


def run_backward(
    roots: Sequence[Node | Tensor],
    seeds: Gradients,
    retain_graph: bool,
    wanted: Collection[int] | None = None,
) -> dict[int, np.ndarray]:
    """Visit the nodes from the newest to the oldest, each when its gradient is complete.

    The gradients go into the leaves. With `wanted`, the `id`s of nodes and leaves, they are
    returned instead.
    """
    way, found = _Pass(), dict[int, np.ndarray]()
    progress = _Progress(roots) if _listeners and wanted is None else None
    way.add(roots, seeds)
    if progress is not None:
        progress.reached(roots, way.leaves)
    while way.order:
        node, gradient = way.nodes.pop(-heapq.heappop(way.order))
        if node.hooks:
            gradient = hooked(node.hooks, gradient)
        if wanted is not None and id(node) in wanted:
            found[id(node)] = gradient
        if node.retainer is not None and wanted is None:
            _retain(node.retainer(), gradient)
        if node.backward is None or node.edges is None:
            raise RuntimeError(
                "backward: retain_graph must be True in all calls but the last, got a second call "
                "for what the first has freed (trying to backward through the graph a second time)"
            )
        for storage, version in node.saved:
            if storage.version != version:
                _fail_changed(node, storage.version, version)
        edges, parts = node.edges, node.backward(gradient)
        if len(parts) != len(edges):
            raise ValueError(
                f"backward: an op of {len(edges)} inputs must give as many gradients, "
                f"got {len(parts)}"
            )
        if not retain_graph:
            node.backward = node.edges = None
            node.saved = []
        if node.likes is None:
            way.add(edges, parts)
        else:
            way.add(edges, parts, node.likes, (gradient, *parts))
        if progress is not None:
            progress.reached(edges, way.leaves)
    told = () if progress is None else progress.told
    for key, (leaf, _) in way.leaves.items():
        if getattr(leaf, "_hooks", None) and key not in told:  # `hooks`, without its 0.1 us
            _call_hooks(way.leaves, key)
    if wanted is not None:
        return found | {key: way.leaves[key][1] for key in wanted if key in way.leaves}
    for leaf, gradient in way.leaves.values():
        if not leaf.requires_grad:
            continue  # it was turned off in the meantime
        if leaf._grad is None:
            leaf._grad = gradient
        else:
            leaf.add_grad(gradient)
    if progress is not None:
        progress.finish()
    return found


def _call_hooks(leaves: dict[int, tuple[Tensor, np.ndarray]], key: int) -> None:
    """Let the hooks of a leaf see its gradient, which is complete."""
    leaf, gradient = leaves[key]
    if leaf.hooks:
        leaves[key] = leaf, hooked(leaf.hooks, gradient)


def _fail_changed(node: Node, version: int, expected: int) -> None:
    raise RuntimeError(
        f"backward: what {node.name()} has saved must be unchanged, got a tensor at version "
        f"{version}, expected version {expected}: one of the variables needed for gradient "
        f"computation has been modified by an inplace operation (an optimizer's step, x += y, "
        f"x[...] = y, x.data), so call backward before it, or change a clone"
    )


def _retain(tensor: Tensor | None, gradient: np.ndarray) -> None:
    if tensor is not None:
        tensor.add_grad(gradient.copy())


class _Progress:
    """Notifies listeners of each leaf once nothing more can add to its gradient."""

    def __init__(self, roots: Sequence[Node | Tensor]) -> None:
        self._uses: Counter[int] = Counter()
        self.told: set[int] = set()
        seen: set[int] = set()
        stack: list[Node | Tensor] = list(roots)
        while stack:
            edge = stack.pop()
            if not isinstance(edge, Node):
                self._uses[id(edge)] += 1
            elif edge.number not in seen:
                seen.add(edge.number)
                # A freed node has none, and the backward pass raises an error.
                stack += [below for below in edge.edges or () if below is not None]
        known = [listener for reference in _listeners if (listener := reference()) is not None]
        self._listeners = [listener for listener in known if listener.begin(self._uses)]

    def reached(
        self,
        edges: Sequence[Node | Tensor | None],
        leaves: dict[int, tuple[Tensor, np.ndarray]],
    ) -> None:
        """The backward pass has given these edges their part."""
        for edge in edges:
            key = id(edge)
            if key in self._uses:
                self._uses[key] -= 1
                if not self._uses[key] and key in leaves:
                    self.told.add(key)
                    _call_hooks(leaves, key)
                    for listener in self._listeners:
                        listener.ready(*leaves[key])

    def finish(self) -> None:
        """The gradients are in place."""
        for listener in self._listeners:
            listener.finish()


def _fitting(like: Any, part: np.ndarray) -> np.ndarray:
    """A gradient as its kernels, which check nothing, expect it."""
    shape, dtype = like
    if part.shape != shape:
        raise ValueError(
            f"backward: an op's gradient must have its input's shape {shape}, got {part.shape}"
        )
    if part.dtype is dtype or part.dtype == dtype:
        return part
    return part.astype(dtype)  # of an op of float32 and float64


def _meets(part: np.ndarray, others: Gradients) -> bool:
    """Whether a gradient shares memory with one that another leaf may get."""
    return any(other is not None and np.may_share_memory(part, other) for other in others)
