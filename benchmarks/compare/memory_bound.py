"""Memory-bound operations in fastlayers, in torch and as plain copies, alternating in one run.

    python -m benchmarks.compare.memory_bound [--threads 1 2] [--rounds N] [--only SUBSTRING]
        [--markdown FILE]

A copy moves as many bytes as the operation must read and write, half of them each way, with a
kernel on the same threads. `ratio` is the time of torch's faster memory format over fastlayers',
`copies` is fastlayers' time over the copy's. Arrays of fastlayers have channels-last memory, as its
operations return them.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.cases import IMAGES, TRAFFIC, images
from benchmarks.compare.harness import Contestant, alternate
from fastlayers.kernels.speed import copy
from fastlayers.runtime import memory

__all__ = ["OPS", "SHAPES", "Op", "compare", "main", "measure"]

# Seconds of a contestant's turn; it holds at least one repetition.
TURN = 0.04
# Results may differ by this fraction of their largest value.
GAP = 1e-4

SHAPES = IMAGES
BATCH_NORM = (None, None, "weight", "bias", True)


@dataclass(frozen=True)
class Op:
    """An operation: its arguments, and the bytes to move per element of input and of output."""

    name: str
    options: dict[str, Any]
    forward: tuple[int, int]
    backward: tuple[int, int]
    random: bool = False  # so that values cannot be compared

    def label(self) -> str:
        """Name and options."""
        return " ".join([self.name, *(f"{k} {v}" for k, v in self.options.items())])


def _op(name: str, **options: Any) -> Op:
    table = "feature_dropout" if name == "dropout2d" else name
    return Op(name, options, *TRAFFIC[table], random="dropout" in name)


OPS = (
    _op("batch_norm"),
    _op("max_pool2d", kernel_size=2),
    _op("max_pool2d", kernel_size=3, stride=2, padding=1),
    _op("avg_pool2d", kernel_size=2),
    _op("adaptive_avg_pool2d", output_size=1),
    _op("relu"),
    _op("dropout", p=0.5),
    _op("dropout", p=0.1),
    _op("dropout2d", p=0.5),
    _op("add"),
)


def _aligned(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Images in the library's own memory, as previous layers would give them."""
    values = np.moveaxis(images(shape, seed), 1, -1)
    out = memory.empty(values.shape, values.dtype)
    out[...] = values
    return np.moveaxis(out, -1, 1)


def _fastlayers_passes(op: Op, x: np.ndarray) -> dict[str, Callable[[], Any]]:
    """Forward, and backward from a random gradient of the output."""
    from fastlayers import ops
    from fastlayers.ops import arithmetic

    channels = np.ones(x.shape[1], np.float32)
    forward: Callable[[], Any]
    backward: Callable[[np.ndarray], Any]
    match op.name:
        case "batch_norm":
            forward = lambda: ops.batch_norm_forward(x, None, None, channels, channels, True)  # noqa: E731
            mean, invstd = forward()[1:]
            backward = lambda dy: ops.batch_norm_backward(dy, x, channels, mean, invstd, True)  # noqa: E731
        case "max_pool2d":
            forward = lambda: ops.max_pool2d_forward(x, **op.options)  # noqa: E731
            offsets = forward()[1]
            backward = lambda dy: ops.max_pool2d_backward(dy, offsets, x.shape, **op.options)  # noqa: E731
        case "avg_pool2d":
            forward = lambda: ops.avg_pool2d(x, **op.options)  # noqa: E731
            backward = lambda dy: ops.avg_pool2d_backward(dy, x.shape, **op.options)  # noqa: E731
        case "adaptive_avg_pool2d":
            forward = lambda: ops.adaptive_avg_pool2d(x, **op.options)  # noqa: E731
            backward = lambda dy: ops.adaptive_avg_pool2d_backward(dy, x.shape)  # noqa: E731
        case "relu":
            forward = lambda: ops.relu(x)  # noqa: E731
            y = forward()
            backward = lambda dy: ops.relu_backward(dy, y)  # noqa: E731
        case "dropout":
            p = op.options["p"]
            forward = lambda: ops.dropout_forward(x, p)  # noqa: E731
            mask = forward()[1]
            backward = lambda dy: ops.dropout_backward(dy, mask, p)  # noqa: E731
        case "dropout2d":
            forward = lambda: ops.feature_dropout_forward(x, op.options["p"])  # noqa: E731
            scale = forward()[1]
            backward = lambda dy: ops.feature_dropout_backward(dy, scale)  # noqa: E731
        case _:
            other = _aligned(x.shape, 1)
            return {"forward": lambda: arithmetic.add(x, other)}
    y = _first(forward())
    dy = _aligned(y.shape, 2)
    return {"forward": forward, "backward": lambda: backward(dy)}


def _first(result: Any) -> Any:
    return result[0] if isinstance(result, tuple) else result


def prepare_fastlayers(
    threads: int, shape: tuple[int, ...], op: Op, which: str
) -> tuple[Callable[[], Any], np.ndarray]:
    """A function that runs the pass once in fastlayers, and its result."""
    import fastlayers as fl

    fl.set_num_threads(threads)
    memory.empty_cache()
    work = _fastlayers_passes(op, _aligned(shape))[which]
    return work, np.ascontiguousarray(_first(work()))


def prepare_torch(
    threads: int, channels_last: bool, shape: tuple[int, ...], op: Op, which: str
) -> tuple[Callable[[], Any], np.ndarray]:
    """A function that runs the pass once in torch, and its result."""
    import torch

    torch.set_num_threads(threads)
    layout = torch.channels_last if channels_last else torch.contiguous_format

    def tensor(sizes: tuple[int, ...], seed: int = 0) -> Any:
        return torch.from_numpy(images(sizes, seed)).clone(memory_format=layout)

    x = tensor(shape).requires_grad_(op.backward != (0, 0))
    inputs, options = (x,), op.options
    if op.name == "batch_norm":
        scale, shift = (torch.ones(shape[1], requires_grad=True) for _ in range(2))
        inputs = (x, scale, shift)
        options = {"running_mean": None, "running_var": None, "training": True}
        options |= {"weight": scale, "bias": shift}
    if op.name == "add":
        other = tensor(shape, 1)
        forward = lambda: x + other  # noqa: E731
    else:
        function = getattr(torch.nn.functional, op.name)
        forward = lambda: function(x, **options)  # noqa: E731
    y = forward()
    work = forward
    if which == "backward":
        dy = tensor(tuple(y.shape), 2)
        work = lambda: torch.autograd.grad(y, inputs, dy, retain_graph=True)  # noqa: E731
    return work, np.ascontiguousarray(_first(work()).detach().numpy())


def prepare_copy(
    threads: int, shape: tuple[int, ...], op: Op, which: str
) -> tuple[Callable[[], Any], int]:
    """A function that copies half of the bytes that the pass moves, and that number of bytes."""
    import fastlayers as fl

    fl.set_num_threads(threads)
    y = _first(_fastlayers_passes(op, _aligned(shape))["forward"]())
    of_input, of_output = op.forward if which == "forward" else op.backward
    size = (of_input * math.prod(shape) + of_output * y.size) // 8
    source, out = (memory.empty(size, np.float32) for _ in range(2))
    source.fill(1)  # of pages that nobody has touched, all reads are of one
    return lambda: copy(source, threads, out), 4 * size


@dataclass(frozen=True)
class Row:
    """What was measured of one pass: seconds, and bytes copied."""

    ours: float
    theirs: list[float]
    copy: float
    copied: int

    @property
    def ratio(self) -> float:
        """The time of torch's faster format over fastlayers'."""
        return min(self.theirs) / self.ours


def compare(
    op: Op, shape: tuple[int, ...], which: str, contestants: list[Contestant], rounds: int
) -> Row:
    """Time one pass; the contestants are fastlayers, a copy and torch's two formats."""
    ours, copy, *theirs = contestants
    for contestant in contestants:
        contestant.prepare(shape, op, which)
    for other in theirs:
        gap = np.abs(ours.value - other.value).max() / np.abs(other.value).max()
        if not op.random and not gap <= GAP:
            raise RuntimeError(f"{op.label()} of {shape}: results differ by {gap:.1e}")
    alternate(contestants, rounds, seconds=TURN)
    return Row(ours.median, [c.median for c in theirs], copy.median, copy.value)


HEADER = (
    "| operation | pass | shape | threads | fastlayers ms | torch ms | channels_last ms | copy ms "
    "| GB/s copied | ratio | copies |\n" + "|---" * 11 + "|"
)


def _line(op: Op, which: str, shape: tuple[int, ...], threads: int, row: Row) -> str:
    times = [f"{1e3 * seconds:.3f}" for seconds in (row.ours, *row.theirs, row.copy)]
    cells = [op.label(), which, "x".join(map(str, shape)), str(threads), *times]
    cells += [f"{row.copied / row.copy / 1e9:.1f}", f"{row.ratio:.2f}"]
    return f"| {' | '.join(cells)} | {row.ours / row.copy:.2f} |"


def _start(threads: int, stack: ExitStack) -> list[Contestant]:
    """The contestants of `compare`, which end with the stack."""
    contestants = [
        Contestant("fastlayers", prepare_fastlayers, threads),
        Contestant("copy", prepare_copy, threads),
        Contestant("torch", prepare_torch, threads, False),
        Contestant("torch channels_last", prepare_torch, threads, True),
    ]
    for contestant in contestants:
        stack.callback(contestant.close)
    return contestants


def measure(threads: int, quick: bool) -> Iterator[dict[str, Any]]:
    """Rows of all operations; `quick` takes one shape and one round."""
    with ExitStack() as stack:
        contestants = _start(threads, stack)
        for op in OPS:
            for which in ("forward", "backward") if op.backward != (0, 0) else ("forward",):
                for shape in SHAPES[1:2] if quick else SHAPES:
                    row = compare(op, shape, which, contestants, 1 if quick else 3)
                    yield {
                        "group": op.label(),
                        "shape": "x".join(map(str, shape)),
                        "pass": which,
                        "threads": threads,
                        "seconds": {c.name: c.median for c in contestants if c.name != "copy"},
                        "bytes": row.copied * 2,
                        "copy_seconds": row.copy,
                        "ratio": row.ratio,
                    }


def main() -> None:
    """Print a line for each operation, pass, shape and number of threads."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="", help="part of an operation, pass and shape")
    parser.add_argument("--markdown", type=argparse.FileType("w"), help="a file for the table")
    options = parser.parse_args()
    rows = [
        (op, which, shape)
        for op in OPS
        for which in ("forward", "backward")
        for shape in SHAPES
        if (which == "forward" or op.backward != (0, 0))
        and options.only in f"{op.label()} {which} {'x'.join(map(str, shape))}"
    ]
    if not rows:
        parser.error(f"no operation, pass and shape contains {options.only!r}")
    for threads in options.threads:
        with ExitStack() as stack:
            contestants = _start(threads, stack)
            lines = [HEADER] if threads == options.threads[0] else []
            for op, which, shape in rows:
                row = compare(op, shape, which, contestants, options.rounds)
                lines.append(_line(op, which, shape, threads, row))
                print("\n".join(lines), flush=True)
                if options.markdown:
                    print("\n".join(lines), file=options.markdown, flush=True)
                lines = []


if __name__ == "__main__":
    main()
