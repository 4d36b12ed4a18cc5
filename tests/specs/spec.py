"""What is declared of an op: one `Spec`, which the suites of tests iterate over.

`specs/<stem>.py` has those of the ops of a stem, in its `SPECS`. A call by which a suite tests an
op is a `Case` (arrays that are drawn by their shapes) or a `Call` (arrays that are given).
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from fastlayers import ops

__all__ = [
    "DTYPES",
    "ELEMENTS",
    "INF",
    "NAN",
    "SPECS",
    "Arrays",
    "Bad",
    "Bounds",
    "Call",
    "Calls",
    "Case",
    "Draw",
    "Empty",
    "Layer",
    "Nonfinite",
    "Pick",
    "Place",
    "Random",
    "Spec",
    "distinct",
    "endless",
    "every",
    "guarded",
    "like",
    "named",
    "normals",
    "of_arguments",
    "of_output",
    "positive",
    "results",
    "wrong_inputs",
]

Arrays = dict[str, np.ndarray]
Options = dict[str, Any]
Pick = Callable[..., Any]  # chooses one of its arguments
Place = Callable[[np.ndarray], np.ndarray]
# Arguments of a function that are learnt, and its other arguments.
Calls = Iterator[tuple[Arrays, Options]]
# Terms and magnitude, by result; see `rounding.py`.
Bounds = dict[str, tuple[Any, Any]]

DTYPES = (np.float32, np.float64)
NAN, INF = np.nan, np.inf
# All ops by name, as `specs/__init__.py` collects them.
SPECS: dict[str, Spec] = {}


@dataclass(frozen=True)
class Case:
    """A call of an op, forward and backward: shapes of its arrays, and its other arguments."""

    op: str
    shapes: Mapping[str, tuple[int, ...]]
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def spec(self) -> Spec:
        return SPECS[self.op]

    @property
    def id(self) -> str:
        sizes = ["x".join(map(str, shape)) or "scalar" for shape in self.shapes.values()]
        options = [f"{name}={value}".replace(" ", "") for name, value in self.options.items()]
        return "-".join([self.op, *sizes, *options])

    @property
    def size(self) -> int:
        return sum(int(np.prod(shape)) for shape in self.shapes.values())

    def arrays(self, dtype: Any, kind: str = "normal", seed: int = 0) -> Arrays:
        """Draw the array arguments.

        They are "normal", "wide" (normal times powers of two), "far" (normal, the input 1e4 from
        0), all "distinct" and not 0, or small "integers", where the operation then is exact.
        """
        rng = np.random.default_rng(zlib.crc32(self.id.encode()) + seed)
        labels = self.spec.labels
        return {
            name: np.asarray(self._draw(rng, name, kind), None if name in labels else dtype)
            for name in self.shapes
        }

    def _draw(self, rng: np.random.Generator, name: str, kind: str) -> Any:
        own = self.spec.draw(self, rng, name, kind)
        if own is not None:
            return own
        shape = self.shapes[name]
        if kind == "integers":
            return rng.integers(-4, 5, shape)
        if kind == "distinct":
            size = int(np.prod(shape))
            return ((rng.permutation(size) + 0.3 - size // 2) * (4 / max(size, 4))).reshape(shape)
        values = rng.standard_normal(shape)
        if kind == "far" and name == "input":
            return values + 1e4
        return values * 2.0 ** rng.integers(-8, 9, shape) if kind == "wide" else values

    def run(
        self, module: ModuleType, arrays: Arrays, kind: str = "normal", place: Place = np.asarray
    ) -> Arrays:
        """Give all that `module` computes forward and backward, by name: y, dinput, ...

        `place` tells where the gradient of the output lies.
        """
        return self.spec.run(module, self, arrays, lambda y: place(like(y, kind)))


def like(y: np.ndarray, kind: str = "normal") -> np.ndarray:
    """Draw a gradient for the output `y`, the same for the same shape and for either dtype."""
    rng = np.random.default_rng(y.size)
    d = rng.integers(-4, 5, y.shape) if kind == "integers" else rng.standard_normal(y.shape)
    return np.asarray(d, np.float32).astype(y.dtype)


# How `Case.run` calls an op: module, case, arrays, and what gives the gradient of an output.
Run = Callable[[Any, Case, Arrays, Place], Arrays]


def results(y: np.ndarray, gradients: Any, **more: np.ndarray) -> Arrays:
    """Name what an op and its backward gave."""
    if not isinstance(gradients, tuple):
        gradients = (gradients,)
    return {"y": y, **more, **dict(zip(("dinput", "dweight", "dbias"), gradients, strict=False))}


def of_arguments(module: Any, case: Case, arrays: Arrays, dy: Place) -> Arrays:
    """Run an op whose gradient needs its arguments."""
    y = getattr(module, case.op)(**arrays, **case.options)
    backward = getattr(module, f"{case.op}_backward")
    return results(y, backward(dy(y), **arrays, **case.options))


def of_output(module: Any, case: Case, arrays: Arrays, dy: Place) -> Arrays:
    """Run an op whose gradient needs its output."""
    y = getattr(module, case.op)(**arrays, **case.options)
    return results(y, getattr(module, f"{case.op}_backward")(dy(y), y, **case.options))


class Random(NamedTuple):
    """Configurations that are drawn, with a kind of data, and how many PyTorch is asked for.

    `note` tells them from others of the op; `algorithm` is one of the spec's.
    """

    make: Callable[[Pick], Case]
    torch: int = 0
    data: str = "normal"
    algorithm: str = "auto"
    note: str = ""


class Bad(NamedTuple):
    """A call that fails, by an error that names the argument."""

    op: str
    error: type[Exception]
    argument: str
    args: tuple[Any, ...]
    options: Mapping[str, Any] = {}


class Nonfinite(NamedTuple):
    """Outputs for NaN, infinity and minus infinity, and the gradient there for a gradient of 1."""

    options: Mapping[str, Any]
    outputs: tuple[float, ...]
    slopes: tuple[float, ...]


class Call(NamedTuple):
    """A call of a function of `ops`, and whether its results may share memory with arguments."""

    function: str
    arguments: tuple[Any, ...]
    options: Mapping[str, Any] = {}
    shares: bool = False


class Empty(NamedTuple):
    """A call whose dimensions may be 0: names and letters of its arrays' shapes, those never 0."""

    shapes: Mapping[str, str]
    options: Mapping[str, Any] = {}
    never: str = ""


class Layer(NamedTuple):
    """A layer: values of its arguments that are tried one at a time, inputs, and `base` arguments.

    A row of `values` has arguments, an input of one element, and its output by hand.
    """

    options: Mapping[str, list[Any]]
    inputs: list[Any]
    base: Mapping[str, Any] = {}
    values: tuple[tuple[Mapping[str, Any], Any, Any], ...] = ()


class Draw:
    """Draws normal arrays of one dtype; the channels of images are innermost, unless `plain`."""

    def __init__(self, dtype: Any, seed: int, plain: bool = False) -> None:
        self.dtype, self._plain = np.dtype(dtype), plain
        self._rng = np.random.default_rng(seed)

    def __call__(self, *shape: int) -> np.ndarray:
        array = np.asarray(self._rng.standard_normal(shape)).astype(self.dtype)
        if self._plain or len(shape) != 4:
            return array
        return np.moveaxis(np.ascontiguousarray(np.moveaxis(array, 1, -1)), -1, 1)

    def plain(self, *shape: int) -> np.ndarray:
        """Draw an array in C order."""
        return np.ascontiguousarray(self(*shape)).reshape(shape)


# A call at which memory is watched: it places its arrays.
Watched = Callable[[Place, type], Arrays]


def guarded(case: Case) -> Watched:
    """A case as a call that places its arrays."""

    def run(place: Place, dtype: type) -> Arrays:
        arrays = {name: place(a) for name, a in case.arrays(dtype).items()}
        return case.run(ops, arrays, place=place)

    return run


def normals(place: Place, dtype: type, *shapes: tuple[int, ...]) -> list[np.ndarray]:
    """Normal arrays, placed."""
    rng = np.random.default_rng(sum(map(sum, shapes)))
    return [place(rng.standard_normal(shape).astype(dtype)) for shape in shapes]


def named(*values: Any) -> Arrays:
    """Results by their numbers."""
    flat = itertools.chain.from_iterable(v if isinstance(v, tuple) else (v,) for v in values)
    return {str(i): np.asarray(v) for i, v in enumerate(flat) if v is not None}


def _none(*_: Any) -> None:
    """Draw no argument in a way of its own."""


def _no_calls(*_: Any) -> tuple[()]:
    return ()


@dataclass(frozen=True, kw_only=True)
class Spec:
    """All that is known of an op.

    Attributes
    ----------
    op : str
        Its name in `ops`, `reference` and PyTorch; its gradient is ``{op}_backward``.
    run, draw, labels
        How `Case.run` calls it; how arguments are drawn that are not of any kind of numbers (None
        for the others); names of the arguments that are class labels.
    learnt : tuple of str
        The arguments that have a gradient.
    samples, differences : tuple of Case
        Small calls of each sort, and a large one: compared with the reference for both dtypes and
        all layouts; small ones, or else `differences`, with central differences; large ones among
        numbers of threads.
    exact, rounded : tuple of Case
        At least a hundred calls, on integers where all bits are the reference's (but signs of
        zeros, unless `signed_zeros`), or on any numbers within `bound` where it rounds by nature.
    bound : callable
        Terms and magnitude of each result in float32, by case, arguments, output, gradient of the
        output and results, these in float64; see `rounding.py`.
    algorithms : mapping
        Modules with other implementations of the op by name, and the factor of their bounds.
    random : tuple of Random
        Random configurations, held to `bound` and compared with PyTorch.
    bad : tuple of Bad
        Calls that fail.
    nonfinite : tuple of Nonfinite
        For an op of elements.
    torch : callable, optional
        Output by PyTorch and other results, of torch, tensors, options and our results; by default
        the function of the op's name.
    reconcile : callable, optional
        Our results and PyTorch's for a NaN or infinity but for documented differences, of case,
        arguments, value and both; None where they are not compared.
    calls, array_calls : callable
        Calls of all functions of `ops` that belong to the op, by a `Draw`: with every backend and
        any memory layout; and others with any layout.
    empty : tuple of Empty
        Calls with dimensions of 0.
    arguments : callable
        By the world of `test_errors.py` arguments with which each function works.
    watched, huge, too_large : mapping
        For memory safety: calls beside `samples`; calls with an option in pixels; calls whose sizes
        no memory has, and what the error says.
    functions : mapping
        By functions of `nn.functional`: their calls, whose gradients are checked.
    caller : str or tuple
        For an op without a function of its own: what calls it.
    layers : mapping
        Layers by name.
    """

    op: str
    run: Run = of_arguments
    draw: Callable[[Case, np.random.Generator, str, str], Any] = _none
    labels: tuple[str, ...] = ()
    learnt: tuple[str, ...] = ("input",)
    samples: tuple[Case, ...] = ()
    differences: tuple[Case, ...] | None = None
    exact: tuple[Case, ...] = ()
    signed_zeros: bool = True
    rounded: tuple[Case, ...] = ()
    bound: Callable[..., Bounds] | None = None
    algorithms: Mapping[str, tuple[Callable[[], Any], float]] = field(default_factory=dict)
    random: tuple[Random, ...] = ()
    bad: tuple[Bad, ...] = ()
    nonfinite: tuple[Nonfinite, ...] = ()
    torch: Callable[..., tuple[Any, dict[str, Any]]] | None = None
    reconcile: Callable[..., Any] | None = None
    calls: Callable[[Draw], Any] = _no_calls
    array_calls: Callable[[Draw], Any] = _no_calls
    empty: tuple[Empty, ...] = ()
    arguments: Callable[[Any], dict[str, Options]] = lambda world: {}
    watched: Mapping[str, Watched] = field(default_factory=dict)
    huge: Mapping[str, Callable[[Any], Any]] = field(default_factory=dict)
    too_large: Mapping[str, tuple[Callable[[], Any], str]] = field(default_factory=dict)
    functions: Mapping[str, Callable[[], Calls]] = field(default_factory=dict)
    caller: str | tuple[str, ...] = ()
    layers: Mapping[str, Layer] = field(default_factory=dict)


# Lengths at vectors and chunks, with one more and one less, then ranks.
ELEMENTS: tuple[tuple[int, ...], ...] = (
    *((n,) for n in range(38)),
    *((k + more,) for k in (48, 64, 96, 128, 256) for more in (-1, 0, 1)),
    *((n,) for n in (101, 1009, 16383, 16384, 16385, 32769, 100003)),
    *itertools.product((1, 3, 17), (0, 1, 2, 31)),
    *itertools.product((0, 1, 3), (1, 5, 16), (1, 7)),
    *itertools.product((1, 2), (1, 3, 16, 17, 33), (1, 5), (4,)),
    (),
    (2, 3, 1, 4, 5),
)


def distinct(*shape: int, seed: int = 0) -> np.ndarray:
    """Values in [-2, 2], no two the same and none 0: no ties in a window, no kink of a ReLU."""
    size = int(np.prod(shape))
    order = np.random.default_rng(seed).permutation(size)
    return ((order + 0.3 - size // 2) * (4 / max(size, 4))).reshape(shape)


def positive(*shape: int, seed: int = 0) -> np.ndarray:
    """Values in [0.5, 2), to divide by."""
    return np.random.default_rng(seed).uniform(0.5, 2, shape)


def every(**choices: Any) -> Iterator[Options]:
    """All combinations of choices."""
    for values in itertools.product(*choices.values()):
        yield dict(zip(choices, values, strict=True))


def endless(*shape: int) -> np.ndarray:
    """Ones of any shape, which take no memory."""
    return np.broadcast_to(np.float32(1), shape)


def wrong_inputs(op: str, x: np.ndarray, *rest: Any, **options: Any) -> Iterator[Bad]:
    """Calls with an input that is no array of floats."""
    for wrong in (x.astype(int), x.astype(complex), x.astype(bool), x.tolist()):
        yield Bad(op, TypeError, "input", (wrong, *rest), options)
