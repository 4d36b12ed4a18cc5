"""Where a training step's time goes, layer by layer."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any, TextIO

import numpy as np
from numpy.typing import ArrayLike

from fastlayers import nn, random
from fastlayers.autograd import Tensor
from fastlayers.ops import check
from fastlayers.precompile import any_loss
from fastlayers.profiling import machine
from fastlayers.profiling.watch import Line, Watch
from fastlayers.runtime import backend, cpu
from fastlayers.runtime.threads import get_num_threads

__all__ = ["Profile", "Row", "profile"]

# Seconds of steps, half of them watched, and the steps of each kind, if no number is given.
BUDGET, FEWEST, MOST = 2.0, 5, 200
# Ratio of whole steps to the sum of the rows above which the machine was busy otherwise.
BUSY = 1.25
_HEADER = ("layer", "pass", "ms", "share", "GFLOP/s", "of peak", "GB/s", "of copy", "calls")


@dataclasses.dataclass(frozen=True)
class Row:
    """What a layer, or several that run as one op, contribute to a step in one direction.

    Attributes
    ----------
    layers : tuple of str
        Names as in `Module.named_modules`; ``block.add()`` is an op that module ``block`` calls
        directly. The rows ``(loss)``, ``(sums of gradients)`` of tensors that are used twice, and
        ``(rest)``, the tape and the Python between the layers, come last.
    types : tuple of str
        Class of each layer, or the op.
    direction : {"forward", "backward"}
    calls : int
        Ops that ran.
    seconds : float
        Median over the steps.
    share : float
        Of the sum of all rows.
    flops : float
        Operations of direct arithmetic by convolutions and linear maps, two a multiply-add.
    nbytes : float
        Of all arrays that the ops read, write or keep, counted once each, but twice for batch
        statistics and their gradients. 0 for views.
    of_peak : float or None
        Share of the measured peak; above 1 where Winograd's algorithm has fewer products.
    of_copy : float or None
        Share of the rate of a copy of the same number of bytes, for rows without `flops`.
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
        """The layers' names, abbreviated: those with the first one's parent omit it."""
        first, *others = self.layers
        parent = first.rpartition(".")[0]
        short = [o.rpartition(".")[2] if o.startswith(f"{parent}.") else o for o in others]
        return " + ".join([first, *short])

    @property
    def gflops(self) -> float | None:
        """10^9 operations per second, of convolutions and linear maps."""
        return self.flops / self.seconds / 1e9 if self.flops and self.seconds else None

    @property
    def gbs(self) -> float | None:
        """10^9 bytes per second, of memory-bound rows."""
        bound = self.nbytes and self.seconds and not self.flops
        return self.nbytes / self.seconds / 1e9 if bound else None


@dataclasses.dataclass(frozen=True, repr=False)
class Profile:
    """Where a training step's time goes; ``str()`` is the table.

    Attributes
    ----------
    rows : tuple of Row
        In the order in which layers are called, forward above backward.
    seconds : float
        Sum of the rows: an undisturbed step of forward, loss and backward, without optimiser.
    watched, unwatched : float
        Medians of whole steps with the clock, which costs some microseconds per op, and without.
    steps : int
        Number of steps of each kind.
    machine : dict
        ``backend``, ``cpu``, ``threads``, ``dtype``, the measured ``peak_gflops``, and ``copies``,
        GB/s for each number of bytes read and written; no figures on NumPy alone.
    """

    rows: tuple[Row, ...]
    seconds: float
    watched: float
    unwatched: float
    steps: int
    machine: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """All of it, in JSON types."""
        rows = [
            dataclasses.asdict(row) | {"name": row.name, "gflops": row.gflops, "gbs": row.gbs}
            for row in self.rows
        ]
        return dataclasses.asdict(self) | {"rows": rows}

    def __repr__(self) -> str:
        return f"<Profile: {len(self.rows)} rows, {1e3 * self.seconds:.3g} ms a step>"

    def __str__(self) -> str:
        lines = [self._line(i) for i in range(len(self.rows))]
        lines.append(self._total())
        columns = list(zip(_HEADER, *lines, strict=True))
        shown = [i for i, column in enumerate(columns) if any(column[1:])]
        widths = [max(map(len, column)) for column in columns]
        table = [
            "  ".join(
                line[i].ljust(widths[i]) if i < 2 else line[i].rjust(widths[i]) for i in shown
            )
            for line in (_HEADER, *lines)
        ]
        return "\n".join([*map(str.rstrip, table), "", *self._remarks()])

    def _line(self, i: int) -> list[str]:
        row, name = self.rows[i], self.rows[i].name
        # For ops called outside of a layer, the names say it all.
        types = "" if all(layer.endswith(")") for layer in row.layers) else ", ".join(row.types)
        if i and self.rows[i - 1].layers == row.layers:  # the second line for the same layers
            name = f"  {types}" if row.types != row.layers else ""
        elif self.rows[i + 1].layers != row.layers and row.types != row.layers and types:
            name += f" ({types})"  # there is none
        cells = [name, row.direction, f"{1e3 * row.seconds:.3f}", f"{row.share:.1%}"]
        cells += [_figure(row.gflops), _share(row.of_peak)]
        cells += [_figure(row.gbs), _share(row.of_copy)]
        return [*cells, str(row.calls) if row.calls else ""]

    def _total(self) -> list[str]:
        flops, peak = sum(row.flops for row in self.rows), self.machine["peak_gflops"]
        gflops = flops / self.seconds / 1e9 if flops else None
        rates = [_figure(gflops), _share(gflops / peak if gflops and peak else None), "", ""]
        calls = str(sum(row.calls for row in self.rows))
        return ["step", "both", f"{1e3 * self.seconds:.3f}", "100.0%", *rates, calls]

    def _remarks(self) -> Iterator[str]:
        about = self.machine
        yield (
            f"Medians of {self.steps} steps. As a whole they took {1e3 * self.watched:.3f} ms, "
            f"and {1e3 * self.unwatched:.3f} ms without this clock."
        )
        if self.unwatched > BUSY * self.seconds:
            yield "Rows and whole steps differ, as on a machine that other programs keep busy."
        threads = f"{about['threads']} thread{'s' * (about['threads'] > 1)}"
        if about["peak_gflops"] is None:
            yield f"NumPy alone, {about['dtype']}; the peak and copies are not measured."
            return
        copies = f", copies {' to '.join(_ends(about['copies']))}" if about["copies"] else ""
        yield (
            f"{about['cpu']}, {threads}, {about['dtype']}: peak {about['peak_gflops']:.0f} GFLOP/s"
            f"{copies}."
        )
        yield "GFLOP/s count direct arithmetic, so that Winograd's algorithm may pass the peak."


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
    """Print the time of each layer in a training step, forward and backward.

    Steps (forward, loss, backward) run on a copy of the model, in its training or evaluation mode:
    parameters, buffers, gradients and random state do not change. Half of the steps are timed as a
    whole, the others by layer, alternating. Layers that run as one op, such as a convolution with
    its ReLU and pooling, are one row. In `no_grad`, or with nothing to train, there is no backward.

    Parameters
    ----------
    model : Module
    x : array_like or Tensor
        A batch, the only argument of `model`.
    target : optional
        The second argument of `loss`.
    loss : callable, optional
        Computes a scalar tensor from the output, and from `target` unless that is None. By default
        cross-entropy, with the first class if there is no target; for an output (N,), its sum.
    repeats : int, optional
        Steps of each kind; by default as many as take two seconds, at least 5 and at most 200.
    file : text file, optional
        Where the table goes; ``sys.stdout`` by default.

    Returns
    -------
    Profile

    Raises
    ------
    TypeError, ValueError
        If an argument is invalid, or the model does not take such a batch.
    RuntimeError
        If another profile is running.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"profile: model must be a Module, got {type(model).__name__}")
    if loss is not None and not callable(loss):
        raise TypeError(f"profile: loss must be callable, got {check.describe(loss)}")
    if repeats is not None:
        repeats = check.integer("profile", "repeats", repeats, 1)
    if file is not None and not hasattr(file, "write"):
        raise TypeError(f"profile: file must be a text file, got {check.describe(file)}")
    batch = Tensor(x, requires_grad=isinstance(x, Tensor) and x.requires_grad)
    if batch.dtype.kind not in "fiub":
        raise TypeError(f"profile: x must hold numbers, got {check.describe(batch.array())}")
    gradients = [(p, p._grad) for p in model.parameters()]
    try:
        with random.fork_rng():
            # Together, as a loss may hold layers of the model.
            step = _Step(*copy.deepcopy((model, loss)), batch, target)
            found = _measure(step, repeats)
    finally:
        for parameter, gradient in gradients:  # from a loss function that holds the model
            parameter.grad = gradient
    print(found, file=file)
    return found


class _Step:
    """A training step of a copy of the model."""

    def __init__(self, model: nn.Module, loss: Any, batch: Tensor, target: Any) -> None:
        self.model, self.loss, self.batch, self.target = model, loss, batch, target
        dtypes = [p.dtype for p in model.parameters()] + [batch.dtype]
        self.dtype = next((d for d in dtypes if d.kind == "f"), np.dtype(np.float32))

    def run(self, watch: Watch | None = None) -> float:
        """Seconds of a step."""
        self.model.zero_grad()
        x = Tensor(self.batch.array(), requires_grad=self.batch.requires_grad)
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
                f"profile: model must give a Tensor where loss is None, got {type(output).__name__}"
            )
        if self.target is None:
            return any_loss(output)
        return nn.functional.cross_entropy(output, self.target)


def _measure(step: _Step, repeats: int | None) -> Profile:
    step.run()  # compiles
    watch = Watch()
    with watch.watching(step.model):
        watch.counting = True  # calls, operations and bytes; not timed
        step.run(watch)
        watch.counting = False
    watched: list[float] = []
    plain: list[float] = []
    steps: list[dict[Line, float]] = []
    end = time.perf_counter() + BUDGET
    while len(steps) < (repeats or FEWEST) or (
        repeats is None and len(steps) < MOST and time.perf_counter() < end
    ):
        plain.append(step.run())
        with watch.watching(step.model):
            watched.append(step.run(watch))
        steps.append(watch.spent)
        if not backend.NUMPY:
            machine.peak(get_num_threads(), step.dtype)
    about, rate = _machine(step.dtype)
    rows = tuple(_rows(watch, steps, about["peak_gflops"], rate))
    seconds = sum(row.seconds for row in rows)
    whole = statistics.median(watched), statistics.median(plain)
    return Profile(rows, seconds, *whole, len(steps), about)


def _machine(dtype: np.dtype) -> tuple[dict[str, Any], Callable[[float], float | None]]:
    """What is known about the machine, with the rate of copying so many bytes added."""
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
    watch: Watch,
    steps: list[dict[Line, float]],
    peak: float | None,
    rate: Callable[[float], float | None],
) -> Iterator[Row]:
    keys = sorted(watch.order, key=watch.order.__getitem__)
    both = itertools.product(keys, ("forward", "backward"))
    lines = [line for line in both if any(line in spent for spent in steps)]
    took = {line: statistics.median(spent.get(line, 0.0) for spent in steps) for line in lines}
    total = sum(took.values())
    for line in lines:
        (key, direction), seconds, work = line, took[line], watch.work[line]
        of_peak = of_copy = None
        if work.flops and peak and seconds:
            of_peak = work.flops / seconds / 1e9 / peak
        elif work.nbytes and seconds and (copied := rate(work.nbytes / work.calls)):
            of_copy = work.nbytes / seconds / copied
        layers, types = zip(*key, strict=True)
        figures = (work.calls, seconds, seconds / total, work.flops, work.nbytes, of_peak, of_copy)
        yield Row(layers, types, direction, *figures)
