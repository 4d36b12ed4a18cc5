"""Attributes the time of a training step to its layers, for `fastlayers.profile`.

A watcher (`fastlayers.lazy.Watcher`) is notified of every op that runs, is recorded or waits, and
of every module that is entered and left, and charges each moment of a step to one account.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from fastlayers import lazy, nn
from fastlayers.autograd import Backward, Gradients, Recording, Tensor
from fastlayers.nn.fuse import heads
from fastlayers.ops import arithmetic

__all__ = ["LOSS", "REST", "SUMS", "Line", "Watch", "Work"]

# Rows that do not belong to a layer; a module cannot have such names.
LOSS, SUMS, REST = "(loss)", "(sums of gradients)", "(rest)"
# Functions by the kinds of heads and steps, and by the classes of steps that run alone.
_FUNCTIONS = {
    "conv": "conv2d",
    "maxpool": "max_pool2d",
    "norm": "batch_norm",
    "normalise": "batch_norm",
    "pool": "max_pool2d",
    "reshape": "view",
}

# The layers that run as one op: a name and a class, or an op, of each.
_Key = tuple[tuple[str, str], ...]
Line = tuple[_Key, str]
_LOSS, _SUMS, _REST = (((name, name),) for name in (LOSS, SUMS, REST))


class _Part(NamedTuple):
    """A call that waits: its owner, how many were before it, and the time its call took."""

    label: tuple[str, str]
    number: int
    seconds: float


@dataclass
class Work:
    """A row's figures in one step."""

    calls: int = 0
    flops: float = 0.0
    nbytes: float = 0.0


class _Account:
    """Time not yet in a row: of a module's call, or, with a key, of a row's own ops."""

    __slots__ = ("head", "key", "layer", "name", "seconds")

    def __init__(
        self, name: str = "", layer: tuple[str, str] | None = None, key: _Key | None = None
    ) -> None:
        self.name, self.layer, self.key = name, layer, key
        self.seconds = 0.0
        self.head: Any = None

    def label(self, op: str) -> tuple[str, str]:
        """For an op that a module of modules calls directly."""
        return f"{self.name}.{op}()".lstrip("."), op


class Watch:
    """Charges the time of a step to rows; `lazy.Watcher` of one thread."""

    def __init__(self) -> None:
        self.counting = False
        self.spent: dict[Line, float] = defaultdict(float)
        self.work: dict[Line, Work] = defaultdict(Work)
        # Position of a row: the number of its first call; what is not a layer comes last.
        self.order: dict[_Key, float] = {_LOSS: math.inf, _SUMS: math.inf, _REST: math.inf}
        self._numbers = itertools.count()
        self._thread = threading.get_ident()
        self._account = _Account()
        self._since = 0.0

    @contextlib.contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """A block in which this watcher is notified of what runs."""
        if lazy.watcher is not None:
            raise RuntimeError("profile: another profile is running")
        lazy.run_waiting()
        own = [(module, module.__dict__.get("forward")) for module in model.modules()]
        # An attribute of the copy hides the method of its class.
        for name, module in model.named_modules():
            module.__dict__["forward"] = self._timed_forward(name, module)
        lazy.watcher = self
        try:
            yield
        finally:
            lazy.watcher = None
            for module, forward in own:
                del module.__dict__["forward"]
                if forward is not None:  # a user's
                    module.__dict__["forward"] = forward

    # Events of a step.

    def begin(self) -> None:
        """A forward pass begins."""
        self.spent = defaultdict(float)
        self._account = _Account()
        self._since = time.perf_counter()

    def enter_loss(self) -> None:
        """The forward pass has ended."""
        self.spent[_REST, "forward"] += self._switch(_Account(layer=_LOSS[0], key=_LOSS)).seconds

    def enter_backward(self) -> None:
        """The loss is known."""
        self.spent[_LOSS, "forward"] += self._switch(_Account()).seconds

    def end(self) -> None:
        """The gradients are known."""
        self.spent[_REST, "backward"] += self._switch(_Account()).seconds

    def _timed_forward(self, name: str, module: nn.Module) -> Callable[..., Any]:
        forward, kind = module.forward, type(module).__name__
        layer = (name or kind, kind) if next(module.children(), None) is None else None

        def watched(*args: Any, **kwargs: Any) -> Any:
            account = _Account(name, layer)
            outer = self._switch(account)
            try:
                return forward(*args, **kwargs)
            finally:
                self._switch(outer)
                self.spent[_REST, "forward"] += account.seconds

        return watched

    # Events of the library.

    def started(self, head: Any) -> None:
        """The head of a chain is about to run by itself."""
        if self._is_mine():
            self._account.head = head

    def deferred(self, call: Any) -> None:
        """A call waits: keep its time so far with those that it follows."""
        if not self._is_mine():
            return
        account = self._account
        kind = (call.steps[-1] if call.steps else call.head).kind
        label = account.layer or account.label(_FUNCTIONS.get(kind, kind))
        part = _Part(label, next(self._numbers), self._lap())
        # The output that the step follows is alive, an argument of the call.
        before = getattr(call.between[-1]().deferred, "parts", ()) if call.between else ()
        call.parts = (*before, part)

    def run(self, call: Any) -> Recording:
        """Run a chain for all its layers, or those after the last output that is still held."""
        parts = getattr(call, "parts", ())
        if not parts or not self._is_mine():
            recording: Recording = call.run()
            return recording
        first = max((i + 1 for i, held in enumerate(call.between) if held() is not None), default=0)
        parts = parts[first:]
        labels = [part.label for part in parts]
        key = tuple(label for i, label in enumerate(labels) if label not in labels[:i])
        self.order.setdefault(key, parts[0].number)
        account = _Account(key=key)
        account.seconds = sum(part.seconds for part in parts)
        outer = self._switch(account)
        try:
            output, inputs, backward, saved = call.run()
            head = None if first else call.head
            self.ran(key, head, call.steps[max(first - 1, 0) :], inputs)
            backward = self._follow(account, head, output, inputs, backward)
        finally:
            self._switch(outer)
        self.spent[key, "forward"] += account.seconds
        return output, inputs, backward, saved

    def recorded(
        self,
        output: np.ndarray,
        inputs: tuple[Tensor | None, ...],
        backward: Backward,
    ) -> Backward:
        """Charge the time of an op, and later that of its backward."""
        if not self._is_mine():
            return backward
        account = self._account
        head, account.head = account.head, None
        if account.key is not None:  # of a chain that runs, or of the loss
            return self._follow(account, head, output, inputs, backward)
        key = (account.layer or account.label(_function(head, backward)),)
        self.order.setdefault(key, next(self._numbers))
        self.ran(key, head, (), inputs)
        self.spent[key, "forward"] += self._lap()
        return self._follow(_Account(key=key), head, output, inputs, backward)

    def ran(
        self, key: _Key, head: Any, steps: tuple[Any, ...], inputs: tuple[Tensor | None, ...]
    ) -> None:
        """Told of each op that ran: a chain's head, which may be None, and the steps behind it."""

    def summed(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Add two gradients of one tensor."""
        if not self._is_mine():
            return arithmetic.add(a, b)
        account = _Account(key=_SUMS)
        outer = self._switch(account)
        total = arithmetic.add(a, b)
        self._switch(outer)
        self._count((_SUMS, "backward"), 0.0, 3 * total.nbytes)
        self.spent[_SUMS, "backward"] += account.seconds
        return total

    # The clock.

    def _is_mine(self) -> bool:
        return threading.get_ident() == self._thread

    def _switch(self, account: _Account) -> _Account:
        """Charge the time since the last switch to the previous account, and return it."""
        now, before = time.perf_counter(), self._account
        before.seconds += now - self._since
        self._account, self._since = account, now
        return before

    def _lap(self) -> float:
        """What was charged to the account since the last query."""
        account = self._switch(self._account)
        seconds, account.seconds = account.seconds, 0.0
        return seconds

    def _follow(
        self,
        account: _Account,
        head: Any,
        output: np.ndarray,
        inputs: tuple[Tensor | None, ...],
        backward: Backward,
    ) -> Backward:
        """The backward function with a clock; count the work of an op that ran."""
        key = account.key
        if key is None:  # what does not belong to a layer has no line
            return backward
        counting, line = self.counting, (key, "backward")
        if counting:
            values = [t.array() for t in inputs if t is not None and t.deferred is None]
            kept = _kept(backward)
            flops, twice = _flops(head), _read_twice(head)
            wanted = sum(t is not None and t.requires_grad for t in inputs[:2])
            moved = 0 if _is_view(output, values) else _nbytes([output, *values, *kept])
            self._count((key, "forward"), flops, moved + twice)

        def timed(dy: np.ndarray) -> Gradients:
            if lazy.watcher is not self:
                return backward(dy)
            mine = _Account(key=key)
            outer = self._switch(mine)
            gradients = backward(dy)
            self._switch(outer)
            self.spent[line] += mine.seconds
            if counting:
                new = [g for g in gradients if g is not None and not _is_view(g, [dy])]
                moved = _nbytes([dy, *new, *kept]) if new else 0
                again = twice + dy.nbytes if twice else 0
                self._count(line, flops * wanted, moved + again)
            return gradients

        return timed

    def _count(self, line: Line, flops: float, nbytes: float) -> None:
        if self.counting:
            work = self.work[line]
            work.calls += 1
            work.flops += flops
            work.nbytes += nbytes


def _function(head: Any, backward: Any) -> str:
    """Name of the recorded op, from its backward function."""
    if head is not None:
        return str(_FUNCTIONS.get(head.kind, head.kind))
    inner = dict(zip(*_free(backward), strict=True)).get("backward")
    if inner is not None:  # for several ops that are recorded in one place
        return str(getattr(inner, "__name__", "op")).removesuffix("_backward")
    path = getattr(backward, "__qualname__", "op").partition(".<locals>")[0].split(".")
    name = path[-2].lower() if path[-1] == "alone" else path[-1]
    return _FUNCTIONS.get(name, name)


def _free(function: Any) -> tuple[tuple[str, ...], list[Any]]:
    """Names and values of what a function has kept."""
    names = getattr(getattr(function, "__code__", None), "co_freevars", ())
    return names, [cell.cell_contents for cell in getattr(function, "__closure__", None) or ()]


def _kept(backward: Any) -> list[np.ndarray]:
    """Arrays that an op keeps for its gradient."""
    return [value for value in _free(backward)[1] if isinstance(value, np.ndarray)]


def _flops(head: Any) -> float:
    """Operations of direct arithmetic in a convolution or a linear map, and in each gradient."""
    if isinstance(head, heads.Conv):
        shape = head.convolution.shape
        return 2.0 * shape.pixels * math.prod(shape.weight)
    if isinstance(head, heads.Linear):
        return 2.0 * math.prod(head.shape) * int(head.arguments[1].shape[1])
    return 0.0


def _read_twice(head: Any) -> int:
    """Bytes of the images whose statistics take a separate pass."""
    norm = head.norm if isinstance(head, heads.BatchNorm) else None
    return int(norm.x.nbytes) if norm is not None and norm.of_batch else 0


def _nbytes(arrays: list[np.ndarray]) -> int:
    """Bytes of arrays, counting views of the same memory once."""
    return sum(a.nbytes for i, a in enumerate(arrays) if not _is_view(a, arrays[:i]))


def _is_view(array: np.ndarray, others: list[np.ndarray]) -> bool:
    return any(np.may_share_memory(array, other) for other in others)
