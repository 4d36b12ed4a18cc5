"""Where a training step's time goes, layer by layer: `profile`.

A watcher (`fastlayers.lazy.Watcher`) is told of every op that runs, is recorded or waits, and of
every module that is entered and left, and charges each moment of a step to one account.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import itertools
import statistics
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TextIO

import numpy as np
from numpy.typing import ArrayLike

from fastlayers import autograd, lazy, machine, nn, random
from fastlayers.autograd import Tensor
from fastlayers.nn import heads
from fastlayers.ops import _check, arithmetic
from fastlayers.precompile import any_loss
from fastlayers.runtime import backend, cpu
from fastlayers.runtime.threads import get_num_threads

__all__ = ["Profile", "Row", "profile"]

# Seconds of steps, half of them watched, and the steps of each kind, where no number is asked for.
BUDGET, FEWEST, MOST = 2.0, 5, 200
# Rows that are no layer's; a module cannot have such names.
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


@dataclasses.dataclass(frozen=True)
class Row:
    """What a layer, or several that run as one op, takes of a step in one direction.

    Attributes
    ----------
    layers : tuple of str
        Names as in `Module.named_modules`; ``block.add()`` is an op that module ``block`` calls
        itself. The rows ``(loss)``, ``(sums of gradients)`` of tensors that are used twice, and
        ``(rest)``, the tape and the Python between the layers, come last.
    types : tuple of str
        Class of each layer, or the op.
    direction : {"forward", "backward"}
    calls : int
        Ops that ran.
    seconds : float
        Median over the steps.
    share : float
        Of the median step.
    flops : float
        Operations of direct arithmetic by convolutions and linear maps, two a multiply-add.
    nbytes : float
        Of all arrays that the ops read, write or keep, once each; batch statistics and their
        gradients read twice. 0 for views.
    of_peak : float or None
        Share of the measured peak; above 1 where Winograd's algorithm has fewer products.
    of_copy : float or None
        Share of the rate at which as many bytes are copied, for rows without `flops`.
    """

    layers: tuple[str, ...]
    types: tuple[str, ...]
    direction: str
    calls: int
    seconds: float
    share: float
    flops: float
    nbytes: float
    of_peak: float | None = None
    of_copy: float | None = None

    @property
    def name(self) -> str:
        """The layers in short: what has the same parent as the first one goes without it."""
        first, *others = self.layers
        parent = first.rpartition(".")[0]
        short = [o.rpartition(".")[2] if o.startswith(f"{parent}.") else o for o in others]
        return " + ".join([first, *short])

    @property
    def gflops(self) -> float | None:
        """10^9 operations a second of convolutions and linear maps."""
        return self.flops / self.seconds / 1e9 if self.flops and self.seconds else None

    @property
    def gbs(self) -> float | None:
        """10^9 bytes a second of what is bound by memory."""
        bound = self.nbytes and self.seconds and not self.flops
        return self.nbytes / self.seconds / 1e9 if bound else None


@dataclasses.dataclass(frozen=True, repr=False)
class Profile:
    """What a training step takes; ``str()`` is the table.

    Attributes
    ----------
    rows : tuple of Row
        In the order in which layers are called, forward above backward.
    seconds : float
        Median of a watched step: forward, loss and backward, without an optimiser.
    unwatched : float
        Median of a step without the clock, which costs about a microsecond an op.
    steps : int
        Watched ones.
    machine : dict
        ``cpu``, ``threads``, ``dtype`` and the measured ``peak_gflops``; None on NumPy alone.
    """

    rows: tuple[Row, ...]
    seconds: float
    unwatched: float
    steps: int
    machine: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """All of it in types that JSON has."""
        out = dataclasses.asdict(self)
        for row, one in zip(self.rows, out["rows"], strict=True):
            one |= {"name": row.name, "gflops": row.gflops, "gbs": row.gbs}
            one["layers"], one["types"] = list(row.layers), list(row.types)
        return out | {"rows": list(out["rows"])}

    def __repr__(self) -> str:
        return f"<Profile: {len(self.rows)} rows, {1e3 * self.seconds:.3g} ms a step>"

    def __str__(self) -> str:
        rates = [] if self.machine["peak_gflops"] is None else ["of peak", "GB/s", "of copy"]
        head = ["layer", "pass", "ms", "share", "GFLOP/s", *(rates or ["GB/s"]), "calls"]
        lines = [self._line(row, i, bool(rates)) for i, row in enumerate(self.rows)]
        lines.append(self._total(bool(rates)))
        widths = [max(map(len, column)) for column in zip(head, *lines, strict=True)]
        text = [
            "  ".join(
                cell.ljust(width) if i < 2 else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in (head, *lines)
        ]
        return "\n".join([*text, *self._remarks()])

    def _line(self, row: Row, i: int, rates: bool) -> list[str]:
        again = i > 0 and self.rows[i - 1].layers == row.layers
        types = "  " + ", ".join(row.types) if row.types != row.layers else ""
        cells = [types if again else row.name, row.direction]
        cells += [f"{1e3 * row.seconds:.3f}", f"{row.share:.1%}", _figure(row.gflops)]
        cells += [_share(row.of_peak)] if rates else []
        cells += [_figure(row.gbs)]
        cells += [_share(row.of_copy)] if rates else []
        return [*cells, str(row.calls) if row.calls else ""]

    def _total(self, rates: bool) -> list[str]:
        flops = sum(row.flops for row in self.rows)
        gflops = flops / self.seconds / 1e9 if flops else None
        cells = ["step", "both", f"{1e3 * self.seconds:.3f}", "100.0%", _figure(gflops)]
        peak = self.machine["peak_gflops"]
        cells += [_share(gflops / peak if gflops else None), "", ""] if rates else [""]
        return [*cells, str(sum(row.calls for row in self.rows))]

    def _remarks(self) -> Iterator[str]:
        about = self.machine
        yield ""
        yield (
            f"Medians of {self.steps} steps: forward, loss, backward. "
            f"Without this clock a step takes {1e3 * self.unwatched:.3f} ms."
        )
        if about["peak_gflops"] is None:
            yield f"{about['backend']} backend, {about['dtype']}; peak and copies are not measured."
            return
        yield (
            f"{about['cpu']}, {about['threads']} thread{'s' * (about['threads'] > 1)}, "
            f"{about['dtype']}: peak {about['peak_gflops']:.0f} GFLOP/s"
            + (f", copies {' to '.join(_ends(about['copies']))}." if about["copies"] else ".")
        )
        yield "GFLOP/s are of direct arithmetic: 3x3 by Winograd's algorithm may pass the peak."


def _ends(copies: dict[str, float]) -> list[str]:
    """The rate of the smallest and of the largest copy."""
    sizes = sorted(copies, key=int)
    ends = [sizes[0], sizes[-1]] if len(sizes) > 1 else sizes
    return [f"{copies[size]:.0f} GB/s ({int(size) / 2**20:.3g} MiB)" for size in ends]


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.0%}"


def profile(
    model: nn.Module,
    x: ArrayLike | Tensor,
    target: Any = None,
    *,
    loss: Callable[..., Any] | None = None,
    repeats: int | None = None,
    file: TextIO | None = None,
) -> Profile:
    """Print what each layer of a training step takes, forward and backward.

    Steps (forward, loss, backward) run on a copy of the model, in its training or evaluation mode:
    parameters, buffers, gradients and random state stay as they are. Half of the steps are timed
    as a whole, the others by layer, in turn. Layers that run as one op, such as a convolution with
    its ReLU and pooling, are one row. In `no_grad`, or with nothing to train, there is no backward.

    Parameters
    ----------
    model : Module
    x : array_like or Tensor
        A batch, the only argument of `model`.
    target : optional
        The second argument of `loss`.
    loss : callable, optional
        Gives a scalar tensor from the output, and `target` unless that is None. By default
        cross-entropy, of the first class where there is no target; the sum of an output (N,).
    repeats : int, optional
        Steps of either kind; by default those of two seconds, at least 5 and at most 200.
    file : text file, optional
        Where the table goes; ``sys.stdout`` by default.

    Returns
    -------
    Profile

    Raises
    ------
    TypeError, ValueError
        If an argument is none of these, or the model does not take such a batch.
    RuntimeError
        If another profile is running.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"profile: model must be a Module, got {type(model).__name__}")
    if loss is not None and not callable(loss):
        raise TypeError(f"profile: loss must be callable, got {_check.describe(loss)}")
    if repeats is not None:
        repeats = _check.integer("profile", "repeats", repeats, 1)
    if file is not None and not hasattr(file, "write"):
        raise TypeError(f"profile: file must be a text file, got {_check.describe(file)}")
    batch = Tensor(x)
    if batch.dtype.kind not in "fiub":
        raise TypeError(f"profile: x must hold numbers, got {_check.describe(batch.data)}")
    gradients = [(p, p.grad) for p in model.parameters()]
    try:
        with random.preserved():
            # Together, as a loss may hold layers of the model.
            step = _Step(*copy.deepcopy((model, loss)), batch, target)
            found = _measure(step, repeats)
    finally:
        for parameter, gradient in gradients:  # of a function of the loss that holds the model
            parameter.grad = gradient
    print(found, file=file)
    return found


class _Step:
    """A training step of a copy of the model."""

    def __init__(self, model: nn.Module, loss: Any, batch: Tensor, target: Any) -> None:
        self.model, self.loss, self.batch, self.target = model, loss, batch, target
        dtypes = [p.dtype for p in model.parameters()] + [batch.dtype]
        self.dtype = next((d for d in dtypes if d.kind == "f"), np.dtype(np.float32))

    def run(self, watch: _Watch | None = None) -> float:
        """Seconds of a step."""
        self.model.zero_grad()
        x = Tensor(self.batch.data, self.batch.requires_grad)
        begin = time.perf_counter()
        if watch is not None:
            watch.begin()
        output = self.model(x)
        if watch is not None:
            watch.enter_loss()
        value = self._loss(output)
        if watch is not None:
            watch.enter_backward()
        if value.requires_grad:
            value.backward()
        if watch is not None:
            watch.end()
        return time.perf_counter() - begin

    def _loss(self, output: Any) -> Tensor:
        if self.loss is not None:
            value = self.loss(output) if self.target is None else self.loss(output, self.target)
            if not isinstance(value, Tensor):
                raise TypeError(f"profile: loss must give a Tensor, got {type(value).__name__}")
            return value
        if not isinstance(output, Tensor):
            raise TypeError(
                "profile: model must give a Tensor where loss is None, "
                f"got {type(output).__name__}"
            )
        if self.target is None:
            return any_loss(output)
        return nn.functional.cross_entropy(output, self.target)


def _measure(step: _Step, repeats: int | None) -> Profile:
    step.run()  # compiles
    watch = _Watch()
    with watch.watching(step.model):
        watch.counting = True  # calls, operations and bytes; not timed
        step.run(watch)
        watch.counting = False
    watched: list[float] = []
    plain: list[float] = []
    steps: list[dict[_Line, float]] = []
    end = time.perf_counter() + BUDGET
    while len(steps) < (repeats or FEWEST) or (
        repeats is None and len(steps) < MOST and time.perf_counter() < end
    ):
        plain.append(step.run())
        with watch.watching(step.model):
            watched.append(step.run(watch))
        steps.append(watch.spent)
    seconds = statistics.median(watched)
    about, rate = _machine(step.dtype)
    rows = tuple(_rows(watch, steps, seconds, about, rate))
    return Profile(rows, seconds, statistics.median(plain), len(steps), about)


def _machine(dtype: np.dtype) -> tuple[dict[str, Any], Callable[[float], float | None]]:
    """What is known of the machine, and its rate of copying so many bytes, which adds to it."""
    about: dict[str, Any] = {
        "backend": backend.name(),
        "cpu": None,
        "threads": get_num_threads(),
        "dtype": str(dtype),
        "peak_gflops": None,
        "copies": {},
    }
    if backend.NUMPY:
        return about, lambda nbytes: None
    threads = get_num_threads()
    about["cpu"] = cpu.fleet() or cpu.cpu_name()
    about["peak_gflops"] = machine.peak(threads, dtype) / 1e9

    def rate(nbytes: float) -> float:
        size = machine.copy_size(int(nbytes))
        found = machine.copy_rate(size, threads)
        about["copies"][str(size)] = found / 1e9
        return found

    return about, rate


def _rows(
    watch: _Watch,
    steps: list[dict[_Line, float]],
    seconds: float,
    about: dict[str, Any],
    rate: Callable[[float], float | None],
) -> Iterator[Row]:
    last = {LOSS: 1, SUMS: 2, REST: 3}
    keys = sorted(watch.order, key=lambda key: (last.get(key[0][0], 0), watch.order[key]))
    for key, direction in itertools.product(keys, ("forward", "backward")):
        line = key, direction
        if not any(line in spent for spent in steps):
            continue
        took = statistics.median(spent.get(line, 0.0) for spent in steps)
        work = watch.work[line]
        flops, nbytes, peak = work.flops, work.nbytes, about["peak_gflops"]
        of_peak = of_copy = None
        if flops and took and peak:
            of_peak = flops / took / 1e9 / peak
        elif nbytes and took:
            copied = rate(nbytes / work.calls)
            of_copy = nbytes / took / copied if copied else None
        layers, types = zip(*key, strict=True)
        figures = (work.calls, took, took / seconds, flops, nbytes, of_peak, of_copy)
        yield Row(layers, types, direction, *figures)


# The layers that run as one op: a name and a class, or an op, of each.
_Key = tuple[tuple[str, str], ...]
_Line = tuple[_Key, str]


class _Part(NamedTuple):
    """A call that waits: whose it is, how many were before it, and what it took to be called."""

    label: tuple[str, str]
    number: int
    seconds: float


@dataclasses.dataclass
class _Work:
    """Of a row in one step."""

    calls: int = 0
    flops: float = 0.0
    nbytes: float = 0.0


class _Account:
    """Time that no row has yet: of a module's call, or, with a key, of a row's own ops."""

    __slots__ = ("head", "key", "leaf", "name", "seconds", "type")

    def __init__(
        self, name: str = "", kind: str = "", leaf: bool = False, key: _Key | None = None
    ) -> None:
        self.name, self.type, self.leaf, self.key = name, kind, leaf, key
        self.seconds = 0.0
        self.head: Any = None

    def label(self, op: str) -> tuple[str, str]:
        """The layer, or the op that a module of modules calls itself."""
        if self.key is not None:
            return self.key[0]
        if self.leaf:
            return self.name or self.type, self.type
        return f"{self.name}.{op}()".lstrip("."), op


class _Watch:
    """Charges the moments of a step to rows; `lazy.Watcher` of one thread."""

    def __init__(self) -> None:
        self.counting = False
        self.spent: dict[_Line, float] = defaultdict(float)
        self.work: dict[_Line, _Work] = defaultdict(_Work)
        self.order: dict[_Key, int] = {}
        self._numbers = itertools.count()
        self._thread = threading.get_ident()
        self._account = _Account()
        self._since = 0.0

    @contextlib.contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """A block in which this watcher is told of what runs."""
        if lazy.watcher is not None:
            raise RuntimeError("profile: another profile is running")
        lazy.run_waiting()
        # An attribute of the copy hides the method of its class.
        for name, module in model.named_modules():
            module.__dict__["forward"] = self._timed_forward(name, module)
        lazy.watcher = self
        try:
            yield
        finally:
            lazy.watcher = None
            for module in model.modules():
                module.__dict__.pop("forward", None)

    # What a step tells.

    def begin(self) -> None:
        """A forward pass begins."""
        self.spent = defaultdict(float)
        self._account = _Account()
        self._since = time.perf_counter()

    def enter_loss(self) -> None:
        """The forward pass has ended."""
        self._charge(_key(REST), "forward", self._switch(_Account(key=_key(LOSS))))

    def enter_backward(self) -> None:
        """The loss is known."""
        self._charge(_key(LOSS), "forward", self._switch(_Account()))

    def end(self) -> None:
        """The gradients are known."""
        self._charge(_key(REST), "backward", self._switch(_Account()))

    def _timed_forward(self, name: str, module: nn.Module) -> Callable[..., Any]:
        forward, kind, leaf = module.forward, type(module).__name__, not module._modules

        def watched(*args: Any, **kwargs: Any) -> Any:
            account = _Account(name, kind, leaf)
            outer = self._switch(account)
            try:
                return forward(*args, **kwargs)
            finally:
                self._switch(outer)
                self._charge(_key(REST), "forward", account)

        return watched

    # What the library tells.

    def started(self, head: Any) -> None:
        """The head of a chain is about to run by itself."""
        if self._is_mine():
            self._account.head = head

    def deferred(self, call: Any) -> None:
        """A call waits: keep what it took so far with those that it follows."""
        if not self._is_mine():
            return
        kind = (call.steps[-1] if call.steps else call.head).kind
        label = self._account.label(_FUNCTIONS.get(kind, kind))
        part = _Part(label, next(self._numbers), self._lap())
        # The output that the step follows is alive, an argument of the call.
        before = call.between[-1]().deferred.parts if call.between else ()
        call.parts = (*before, part)

    def run(self, call: Any) -> autograd.Recording:
        """Run a chain for all its layers, or those behind the last output that is still held."""
        parts = getattr(call, "parts", ())
        if not parts or not self._is_mine():
            return call.run()  # type: ignore[no-any-return]
        first = max((i + 1 for i, held in enumerate(call.between) if held() is not None), default=0)
        parts = parts[first:]
        labels = [part.label for part in parts]
        key = tuple(label for i, label in enumerate(labels) if label not in labels[:i])
        self.order.setdefault(key, parts[0].number)
        account = _Account(key=key)
        account.seconds = sum(part.seconds for part in parts)
        outer = self._switch(account)
        try:
            output, inputs, backward = call.run()
            head = None if first else call.head
            backward = self._follow(account, head, output, inputs, backward)
        finally:
            self._switch(outer)
        self._charge(key, "forward", account)
        return output, inputs, backward

    def recorded(
        self,
        output: np.ndarray,
        inputs: tuple[Tensor | None, ...],
        backward: autograd.Backward,
    ) -> autograd.Backward:
        """Charge what an op took, and what its way back will."""
        if not self._is_mine():
            return backward
        account = self._account
        head, account.head = account.head, None
        if account.key is not None:  # of a chain that runs, or of the loss
            return self._follow(account, head, output, inputs, backward)
        key = (account.label(_function(head, backward)),)
        self.order.setdefault(key, next(self._numbers))
        self.spent[key, "forward"] += self._lap()
        return self._follow(_Account(key=key), head, output, inputs, backward)

    def summed(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Add two gradients of one tensor."""
        if not self._is_mine():
            return arithmetic.add(a, b)
        account = _Account(key=_key(SUMS))
        outer = self._switch(account)
        total = arithmetic.add(a, b)
        self._switch(outer)
        self._count(_key(SUMS), "backward", 0.0, 3 * total.nbytes)
        self._charge(_key(SUMS), "backward", account)
        return total

    # The clock.

    def _is_mine(self) -> bool:
        return threading.get_ident() == self._thread

    def _switch(self, account: _Account) -> _Account:
        """Charge the time since the last switch to the account before, and give that."""
        now, before = time.perf_counter(), self._account
        before.seconds += now - self._since
        self._account, self._since = account, now
        return before

    def _lap(self) -> float:
        """What the account has had since it was last asked."""
        account = self._switch(self._account)
        seconds, account.seconds = account.seconds, 0.0
        return seconds

    def _charge(self, key: _Key, direction: str, account: _Account) -> None:
        self.order.setdefault(key, 0)
        self.spent[key, direction] += account.seconds

    def _follow(
        self,
        account: _Account,
        head: Any,
        output: np.ndarray,
        inputs: tuple[Tensor | None, ...],
        backward: autograd.Backward,
    ) -> autograd.Backward:
        """The way back with a clock; count the work of an op that ran."""
        key = account.key
        assert key is not None
        counting = self.counting
        if counting:
            values = [t.array() for t in inputs if t is not None and t.deferred is None]
            kept = _kept(backward)
            flops, twice = _flops(head), _read_twice(head)
            wanted = sum(t is not None and t.requires_grad for t in inputs[:2])
            own = [a for a in kept if not any(a is b for b in (*values, output))]
            moved = 0 if _is_view(output, values) else _nbytes([output, *values, *own])
            self._count(key, "forward", flops, moved + twice)

        def timed(dy: np.ndarray) -> autograd.Gradients:
            if lazy.watcher is not self:
                return backward(dy)
            mine = _Account(key=key)
            outer = self._switch(mine)
            gradients = backward(dy)
            self._switch(outer)
            self._charge(key, "backward", mine)
            if counting:
                new = [g for g in gradients if g is not None and not _is_view(g, [dy])]
                moved = _nbytes([dy, *new, *kept]) if new else 0
                again = twice + dy.nbytes if twice else 0
                self._count(key, "backward", flops * wanted, moved + again)
            return gradients

        return timed

    def _count(self, key: _Key, direction: str, flops: float, nbytes: float) -> None:
        if self.counting:
            work = self.work[key, direction]
            work.calls += 1
            work.flops += flops
            work.nbytes += nbytes


def _key(name: str) -> _Key:
    return ((name, name),)


def _function(head: Any, backward: Any) -> str:
    """Name of the op that is recorded, as its way back tells."""
    if head is not None:
        return _FUNCTIONS.get(head.kind, head.kind)
    inner = dict(zip(*_free(backward), strict=True)).get("backward")
    if inner is not None:  # of several ops that are recorded in one place
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
    """Operations of direct arithmetic by a convolution or a linear map, and by each gradient."""
    if isinstance(head, heads.Conv):
        shape = head.convolution.shape
        return 2.0 * shape.pixels * float(np.prod(shape.weight))
    if isinstance(head, heads.Linear):
        return 2.0 * float(np.prod(head.shape)) * head.arguments[1].shape[1]
    return 0.0


def _read_twice(head: Any) -> int:
    """Bytes of the images whose statistics are a pass of their own."""
    norm = head.norm if isinstance(head, heads.BatchNorm) else None
    return norm.x.nbytes if norm is not None and norm.of_batch else 0


def _nbytes(arrays: list[np.ndarray]) -> int:
    return sum(a.nbytes for a in {id(a): a for a in arrays}.values())


def _is_view(array: np.ndarray, others: list[np.ndarray]) -> bool:
    return any(np.may_share_memory(array, other) for other in others)
