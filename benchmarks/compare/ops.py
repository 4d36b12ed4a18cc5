"""Convolutions and linear maps in fastlayers and in torch, alternating in one run.

    python -m benchmarks.compare.ops [--set conv3x3|conv|linear|all] [--threads 1 2]
        [--passes forward step] [--only SUBSTRING] [--rounds N] [--markdown FILE]
        [--algorithm auto|direct]

A step is forward and backward with the gradients of input, weight and bias. The FMA peak is
measured in the same rounds; GFLOP/s are those of direct arithmetic in fastlayers, whatever the
algorithm, and the ratio is torch's faster memory format over fastlayers.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import statistics
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks import cases
from benchmarks.compare.harness import Contestant, alternate

__all__ = ["SETS", "TITLES", "Case", "compare", "conv", "linear", "main", "measure"]

# Seconds of a contestant's turn; it holds at least one repetition.
TURN = 0.08
# Results may differ by this fraction of their largest value.
GAP = 1e-4
# Elements of each result that are compared.
SAMPLE = 1 << 18


@dataclass(frozen=True)
class Case:
    """A row of the comparison: an op, the shapes of its arrays and its other arguments."""

    name: str
    op: str
    input: tuple[int, ...]
    weight: tuple[int, ...]
    output: tuple[int, ...]
    options: tuple[int, ...] = ()

    @property
    def bytes(self) -> int:
        """Bytes of input, weight and output, once each: the least that the forward pass moves."""
        return 4 * sum(math.prod(shape) for shape in (self.input, self.weight, self.output))

    @property
    def flops(self) -> int:
        """Operations of the forward pass, and of each of the two large gradients."""
        return 2 * math.prod(self.output) * math.prod(self.weight[1:])

    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Input, weight, bias and the output's gradient.

        Images have channels-last memory, as the library keeps them between layers; those of
        three channels are the user's, whose memory is channels-first.
        """
        generator = np.random.default_rng(0)
        shapes = self.input, self.weight, self.weight[:1], self.output
        x, weight, bias, dy = (generator.random(shape, np.float32) - 0.5 for shape in shapes)
        if self.op == "conv2d":
            dy = _channels_last(dy)
            x = x if x.shape[1] == 3 else _channels_last(x)
        return x, weight, bias, dy


def _channels_last(images: np.ndarray) -> np.ndarray:
    return np.moveaxis(np.ascontiguousarray(np.moveaxis(images, 1, -1)), -1, 1)


def conv(
    input: tuple[int, ...],
    channels: int,
    kernel: int = 3,
    stride: int = 1,
    padding: int | None = None,
    dilation: int = 1,
    groups: int = 1,
) -> Case:
    """A convolution of (N, C, H, W); by default the padding keeps the size at stride 1."""
    n, c, *size = input
    same = dilation * (kernel // 2)
    named = {
        "stride": (stride, 1),
        "padding": (same if padding is None else padding, same),
        "dilation": (dilation, 1),
        "groups": (groups, 1),
    }
    options = tuple(value for value, _ in named.values())
    extent = dilation * (kernel - 1) + 1
    out = ((s + 2 * options[1] - extent) // stride + 1 for s in size)
    name = f"{'x'.join(map(str, input))}-{channels} {kernel}x{kernel}"
    name += "".join(f" {key} {value}" for key, (value, usual) in named.items() if value != usual)
    weight = (channels, c // groups, kernel, kernel)
    return Case(name, "conv2d", input, weight, (n, channels, *out), options)


def linear(rows: int, inputs: int, outputs: int) -> Case:
    """A linear map of (rows, inputs)."""
    shapes = (rows, inputs), (outputs, inputs), (rows, outputs)
    return Case(f"{rows}x{inputs}-{outputs}", "linear", *shapes)


def _row(case: cases.Case, batch: int) -> Case:
    """The case of the common table at a batch."""
    if case.op == "linear":
        return linear(batch, *reversed(case.weight))
    return conv((batch, *case.input), *case.weight[::3], **case.options)


SETS = {
    name: [
        _row(case, batch) for case in cases.CASES if case.group == name for batch in case.batches
    ]
    for name in ("conv3x3", "conv", "linear")
}

TITLES = {
    "conv3x3": "3x3 at stride 1",
    "conv": "other convolutions",
    "linear": "linear maps",
}

Samples = list[tuple[np.ndarray, float]]


def _samples(results: tuple[np.ndarray, ...]) -> Samples:
    """Elements of each array, the same ones for every contestant, and the largest value."""
    found = []
    for array in results:
        chosen: Any = ...
        if array.size > SAMPLE:
            indices = np.random.default_rng(0).integers(0, array.size, SAMPLE)
            chosen = np.unravel_index(indices, array.shape)
        found.append((np.ascontiguousarray(array[chosen]), float(np.abs(array).max())))
    return found


def _gap(ours: Samples, theirs: Samples) -> float:
    """The largest difference, in units of the largest value of its array; NaN if there is one."""
    pairs = zip(ours, theirs, strict=True)
    return float(np.max([np.abs(a - b).max() / largest for (a, _), (b, largest) in pairs]))


def prepare_fastlayers(
    threads: int, algorithm: str, case: Case, step: bool
) -> tuple[Callable[[], Any], Samples]:
    """A function that runs the case once in fastlayers, and samples of its results."""
    import fastlayers as fl
    from fastlayers.runtime import memory

    fl.set_num_threads(threads)
    memory.empty_cache()
    options = {}
    if case.op == "conv2d" and algorithm != "auto":
        options["algorithm"] = algorithm
    forward, backward = (getattr(fl.ops, case.op + end) for end in ("", "_backward"))
    x, weight, bias, dy = case.arrays()

    def run() -> tuple[np.ndarray, ...]:
        y = forward(x, weight, bias, *case.options, **options)
        return (y, *backward(dy, x, weight, *case.options, **options)) if step else (y,)

    return run, _samples(run())


def prepare_torch(
    threads: int, channels_last: bool, case: Case, step: bool
) -> tuple[Callable[[], Any], Samples]:
    """A function that runs the case once in torch, and samples of its results."""
    import torch

    torch.set_num_threads(threads)
    forward = getattr(torch.nn.functional, case.op)

    def tensor(array: np.ndarray) -> Any:
        images = channels_last and array.ndim == 4
        layout = torch.channels_last if images else torch.contiguous_format
        return torch.from_numpy(array).contiguous(memory_format=layout)

    *leaves, dy = map(tensor, case.arrays())
    for leaf in leaves:
        leaf.requires_grad_(step)

    def run() -> tuple[Any, ...]:
        y = forward(*leaves, *case.options)
        return (y, *torch.autograd.grad(y, leaves, dy)) if step else (y,)

    return run, _samples(tuple(result.detach().numpy() for result in run()))


def prepare_jax(threads: int, case: Case, step: bool) -> tuple[Callable[[], Any], Samples]:
    """A function that runs the case once in jitted JAX, and samples of its results.

    Images are (N, H, W, C) and weights (R, S, C, M), as XLA prefers on a CPU.
    """
    import jax
    from jax import lax

    arrays = case.arrays()
    if case.op == "conv2d":
        stride, padding, dilation, groups = case.options
        images, kernel = (0, 2, 3, 1), (2, 3, 1, 0)
        layouts = (images, kernel, (0,), images)

        def forward(x: Any, weight: Any, bias: Any) -> Any:
            y = lax.conv_general_dilated(
                x,
                weight,
                (stride, stride),
                [(padding, padding)] * 2,
                rhs_dilation=(dilation, dilation),
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
                feature_group_count=groups,
            )
            return y + bias

    else:
        layouts = ((0, 1), (0, 1), (0,), (0, 1))

        def forward(x: Any, weight: Any, bias: Any) -> Any:
            return x @ weight.T + bias

    def both(x: Any, weight: Any, bias: Any, dy: Any) -> Any:
        y, pull = jax.vjp(forward, x, weight, bias)
        return (y, *pull(dy))

    moved = (a.transpose(axes) for a, axes in zip(arrays, layouts, strict=True))
    *operands, dy = (jax.numpy.asarray(np.ascontiguousarray(a)) for a in moved)
    called = jax.jit(both if step else forward)
    operands += [dy] if step else []

    def run() -> tuple[Any, ...]:
        results = jax.block_until_ready(called(*operands))
        return results if step else (results,)

    back = [layouts[-1], *layouts[:3]]
    results = (np.asarray(a) for a in run())
    theirs = tuple(a.transpose(np.argsort(axes)) for a, axes in zip(results, back, strict=False))
    return run, _samples(theirs)


def prepare_peak(threads: int, case: Case, step: bool) -> tuple[Callable[[], Any], int]:
    """A function that runs nothing but fused multiply-adds, and its operations."""
    from benchmarks.compare import peak

    return peak.prepare(threads)


@dataclass(frozen=True)
class Row:
    """What was measured of one case and pass: seconds, operations a second, and ratios."""

    ours: float
    theirs: list[float]
    speed: float
    peak: float
    gap: float

    @property
    def ratio(self) -> float:
        """The time of torch's faster format over fastlayers'."""
        return min(self.theirs) / self.ours


def compare(case: Case, step: bool, contestants: list[Contestant], rounds: int) -> Row:
    """Time one case and pass; the contestants are fastlayers, the FMA peak and torch's formats."""
    ours, peak, *theirs = contestants
    if case.op == "linear":  # there is only one memory format for matrices
        theirs = [c for c in theirs if c.name != "torch channels_last"]
    for contestant in contestants:
        contestant.times.clear()
    contestants = [ours, peak, *theirs]
    for contestant in contestants:
        contestant.prepare(case, step)
    gap = float(np.max([_gap(ours.value, c.value) for c in theirs]))
    if not gap <= GAP:
        raise RuntimeError(f"{case.name}: results differ by {gap:.1e}, so the work does too")
    alternate(contestants, rounds, seconds=TURN)
    return Row(
        ours.median,
        [c.median for c in theirs if c.name.startswith("torch")],
        (3 if step else 1) * case.flops / ours.median,
        peak.value / peak.median,
        gap,
    )


def measure(threads: int, quick: bool) -> Iterator[dict[str, Any]]:
    """Rows of all sets; `quick` takes the first two cases of each and one round."""
    with ExitStack() as stack:
        contestants = _start(threads, "auto", stack)
        if importlib.util.find_spec("jax"):
            contestants.append(Contestant("jax", prepare_jax, threads))
            stack.callback(contestants[-1].close)
        for name, cases in SETS.items():
            for case in cases[:2] if quick else cases:
                for step in (False, True):
                    row = compare(case, step, contestants, 1 if quick else 5)
                    yield {
                        "group": TITLES[name],
                        "shape": case.name,
                        "pass": "step" if step else "forward",
                        "threads": threads,
                        "seconds": {
                            c.name: c.median
                            for c in contestants
                            if c.name != "FMA peak" and c.times
                        },
                        "flops": (3 if step else 1) * case.flops,
                        "bytes": (3 if step else 1) * case.bytes,
                        "peak": row.peak,
                        "gap": row.gap,
                        "ratio": row.ratio,
                    }


HEADER = (
    "| shape | pass | threads | fastlayers ms | torch ms | channels_last ms "
    "| GFLOP/s | peak | share | ratio |\n" + "|---" * 10 + "|"
)


def _line(case: Case, name: str, threads: int, row: Row) -> str:
    theirs = [f"{1e3 * seconds:.3f}" for seconds in row.theirs] + ["-"]
    cells = [
        *(case.name, name, str(threads), f"{1e3 * row.ours:.3f}", *theirs[:2]),
        *(f"{row.speed / 1e9:.1f}", f"{row.peak / 1e9:.1f}", f"{row.speed / row.peak:.1%}"),
        f"{row.ratio:.2f}",
    ]
    return f"| {' | '.join(cells)} |"


def _summary(rows: list[Row]) -> str:
    ratios = [row.ratio for row in rows]
    return (
        f"ratio {statistics.geometric_mean(ratios):.2f} in the geometric mean, "
        f"{min(ratios):.2f} at least; results differ by {max(row.gap for row in rows):.0e}"
    )


def _start(threads: int, algorithm: str, stack: ExitStack) -> list[Contestant]:
    """The contestants of `compare`, which end with the stack."""
    contestants = [
        Contestant("fastlayers", prepare_fastlayers, threads, algorithm),
        Contestant("FMA peak", prepare_peak, threads),
        Contestant("torch", prepare_torch, threads, False),
        Contestant("torch channels_last", prepare_torch, threads, True),
    ]
    for contestant in contestants:
        stack.callback(contestant.close)
    return contestants


def _report(
    cases: list[Case], passes: list[str], threads: int, contestants: list[Contestant], rounds: int
) -> Iterator[str]:
    """Lines of one set for a number of threads."""
    rows: dict[str, list[Row]] = {name: [] for name in passes}
    yield f"\n{HEADER}"
    for case in cases:
        for name, found in rows.items():
            found.append(compare(case, name == "step", contestants, rounds))
            yield _line(case, name, threads, found[-1])
    yield ""
    for name, found in rows.items():
        yield f"- {name}, threads {threads}: {_summary(found)}"


def main() -> None:
    """Print a line per shape, pass and number of threads, and the ratios' mean for each set."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--set", choices=[*SETS, "all"], default="all")
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--passes", nargs="+", choices=("forward", "step"))
    parser.add_argument("--only", default="", help="part of a shape, such as '64x56x56-64 3x3'")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--markdown", type=argparse.FileType("w"), help="a file for the tables")
    parser.add_argument("--algorithm", choices=("auto", "direct"), default="auto")
    parser.set_defaults(passes=["forward", "step"])
    options = parser.parse_args()
    names = SETS if options.set == "all" else [options.set]
    sets = [[case for case in SETS[name] if options.only in case.name] for name in names]
    if not any(sets):
        parser.error(f"no shape of the set {options.set} contains {options.only!r}")
    for threads in options.threads:
        with ExitStack() as stack:
            contestants = _start(threads, options.algorithm, stack)
            for cases in filter(None, sets):
                for line in _report(cases, options.passes, threads, contestants, options.rounds):
                    print(line, flush=True)
                    if options.markdown:
                        print(line, file=options.markdown, flush=True)


if __name__ == "__main__":
    main()
