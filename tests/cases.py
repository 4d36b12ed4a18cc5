"""One table of operations with shapes and options, and what every one of them must satisfy."""

import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from fastlayers import ops, random, reference
from fastlayers.runtime.threads import set_num_threads
from fastlayers.testing import numerical_gradient

Arrays = dict[str, np.ndarray]
DTYPES = (np.float32, np.float64)
# (relative, absolute); the absolute one is in units of the largest value.
TOLERANCES = {np.dtype(np.float32): (1e-4, 1e-5), np.dtype(np.float64): (1e-10, 1e-10)}


@dataclass(frozen=True)
class Case:
    """A call of an operation: the shapes of its array arguments and its other options."""

    op: str
    shapes: Mapping[str, tuple[int, ...]]
    options: Mapping[str, Any] = field(default_factory=dict)

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
        return {
            name: np.asarray(self._draw(rng, name, kind), None if self._is_label(name) else dtype)
            for name in self.shapes
        }

    def _is_label(self, name: str) -> bool:
        return name == "target" and self.op in ("cross_entropy", "nll_loss")

    def _draw(self, rng: np.random.Generator, name: str, kind: str) -> Any:
        shape = self.shapes[name]
        if self._is_label(name):
            classes = self.shapes["input"][min(1, len(self.shapes["input"]) - 1)]
            return rng.integers(0, classes, shape)
        if kind == "integers":
            return self._draw_integers(rng, name)
        if name in ("running_var", "pos_weight") or (name == "weight" and self.op in LOSSES):
            return rng.uniform(0.5, 1.5, shape)
        if name == "target" and self.op == "binary_cross_entropy_with_logits":
            return rng.uniform(0, 1, shape)
        if kind == "distinct":
            size = int(np.prod(shape))
            return ((rng.permutation(size) + 0.3 - size // 2) * (4 / max(size, 4))).reshape(shape)
        values = rng.standard_normal(shape)
        if kind == "far" and name == "input":
            return values + 1e4
        return values * 2.0 ** rng.integers(-8, 9, shape) if kind == "wide" else values

    def _draw_integers(self, rng: np.random.Generator, name: str) -> Any:
        shape = self.shapes[name]
        if name == "running_var":
            return rng.choice([0.25, 1, 4, 16], shape)
        if name == "weight" and self.op in LOSSES:
            return rng.integers(1, 5, shape)
        if name == "input" and self.op == "batch_norm":
            # Half of a channel one deviation above a whole mean, half below: of an even number of
            # values the mean is exact, and the deviation a power of two.
            n, c, *rest = shape
            sides = rng.permuted(np.resize([-1, 1], (c, n * int(np.prod(rest)))), axis=1)
            means, deviations = rng.integers(-4, 5, (c, 1)), rng.choice([0.5, 1, 2], (c, 1))
            return (means + deviations * sides).reshape(c, n, *rest).swapaxes(0, 1)
        return rng.integers(-4, 5, shape)

    def run(self, module: ModuleType, arrays: Arrays, kind: str = "normal") -> Arrays:
        """Give all that `module` computes forward and backward, by name: y, dinput, ..."""
        a, x, o = arrays, arrays["input"], dict(self.options)
        forward = getattr(module, self.op, None)
        backward = getattr(module, f"{self.op}_backward")
        results: Arrays = {}
        gradients: Any
        match self.op:
            case "conv2d" | "linear":
                y = forward(**a, **o)
                gradients = backward(like(y, kind), x, a["weight"], **o)
            case "max_pool2d":
                results["indices"] = forward(x, **o, return_indices=True)[1]
                y, offsets = module.max_pool2d_forward(x, **o)
                o.pop("ceil_mode", None)
                gradients = backward(like(y, kind), offsets, x.shape, **o)
            case "avg_pool2d" | "adaptive_avg_pool2d":
                y = forward(x, **o)
                o.pop("output_size", None)
                gradients = backward(like(y, kind), x.shape, **o)
            case "batch_norm":
                results = {n: v.copy() for n, v in a.items() if n.startswith("running")}
                y, mean, invstd = module.batch_norm_forward(**{**a, **results}, **o)
                training = o.get("training", False) or "running_mean" not in a
                saved = a.get("weight"), mean, invstd, training
                gradients = backward(like(y, kind), x, *saved)
                results |= {"mean": mean, "invstd": invstd}
            case "dropout" | "feature_dropout":
                random.manual_seed(0)
                y, dropped = getattr(ops, f"{self.op}_forward")(x, **o)
                last = o["p"] if self.op == "dropout" else o["channel_axis"]
                shown = dropped if self.op != "dropout" else unpacked(dropped, x.shape)
                if module is reference:
                    dropped, y = shown, forward(x, shown, last)
                gradients = backward(like(y, kind), dropped, last)
                results["dropped"] = shown
            case "relu" | "sigmoid" | "tanh" | "softmax" | "log_softmax":
                y = forward(x, **o)
                gradients = backward(like(y, kind), y, **o)
            case "flatten":
                y = forward(x, **o)
                gradients = backward(like(y, kind), x.shape)
            case _:  # saves its arguments
                y = forward(**a, **o)
                gradients = backward(like(y, kind), **a, **o)
        if not isinstance(gradients, tuple):
            gradients = (gradients,)
        names = ("dinput", "dweight", "dbias")
        return {"y": y, **results, **dict(zip(names, gradients, strict=False))}


def unpacked(mask: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Give the mask of `ops.dropout_forward` as an array of 0 and 1."""
    size = int(np.prod(shape))
    kept = np.unpackbits(mask, count=size, bitorder="little")
    if len(shape) < 3:
        return kept.reshape(shape)
    return np.moveaxis(kept.reshape(shape[0], *shape[2:], shape[1]), -1, 1)


LOSSES = ("cross_entropy", "nll_loss", "mse_loss", "binary_cross_entropy_with_logits")


def like(y: np.ndarray, kind: str = "normal") -> np.ndarray:
    """Draw a gradient for the output `y`, the same for the same shape and for either dtype."""
    rng = np.random.default_rng(y.size)
    d = rng.integers(-4, 5, y.shape) if kind == "integers" else rng.standard_normal(y.shape)
    return np.asarray(d, np.float32).astype(y.dtype)


def conv(
    x: tuple[int, ...],
    weight: tuple[int, ...],
    bias: bool = True,
    **options: Any,
) -> Case:
    shapes = {"input": x, "weight": weight} | ({"bias": weight[:1]} if bias else {})
    return Case("conv2d", shapes, options)


def pool(op: str, x: tuple[int, ...], **options: Any) -> Case:
    return Case(op, {"input": x}, options)


def norm(x: tuple[int, ...], running: bool = True, affine: bool = True, **options: Any) -> Case:
    names = ["running_mean", "running_var"] * running + ["weight", "bias"] * affine
    return Case("batch_norm", {"input": x} | dict.fromkeys(names, (x[1],)), options)


def labelled(op: str, x: tuple[int, ...], weight: bool = False, **options: Any) -> Case:
    shapes = {"input": x, "target": x[:1] + x[2:] if len(x) > 1 else ()}
    return Case(op, shapes | ({"weight": (x[min(1, len(x) - 1)],)} if weight else {}), options)


def paired(op: str, x: tuple[int, ...], **rest: Any) -> Case:
    """Case of a loss whose target has the input's shape; tuples among `rest` are shapes."""
    shapes = {name: value for name, value in rest.items() if isinstance(value, tuple)}
    options = {name: value for name, value in rest.items() if name not in shapes}
    return Case(op, {"input": x, "target": x, **shapes}, options)


CASES: tuple[Case, ...] = (
    conv((1, 1, 4, 4), (1, 1, 1, 1)),
    conv((2, 3, 7, 6), (4, 3, 3, 3)),
    conv((3, 5, 6), (4, 3, 3, 2), False, stride=2),
    conv((2, 4, 5, 6), (6, 2, 2, 3), groups=2, padding=(1, 2), stride=(2, 1)),
    conv((2, 5, 6, 5), (5, 1, 3, 3), groups=5, padding=1),
    conv((1, 2, 9, 8), (3, 2, 3, 2), dilation=(2, 3), padding=(2, 0)),
    conv((2, 3, 5, 6), (2, 3, 4, 3), padding="same", dilation=(1, 2)),
    conv((1, 2, 5, 4), (2, 2, 3, 3), False, padding="valid"),
    conv((2, 17, 5, 5), (33, 17, 1, 1)),
    conv((0, 3, 5, 5), (4, 3, 3, 3)),
    conv((8, 16, 20, 20), (33, 16, 3, 3), padding=1),
    conv((16, 32, 16, 16), (32, 1, 3, 3), groups=32, padding=1),
    pool("max_pool2d", (2, 3, 6, 8), kernel_size=2),
    pool("max_pool2d", (3, 7, 6), kernel_size=(3, 2), stride=(2, 1), padding=1),
    pool("max_pool2d", (1, 5, 9, 10), kernel_size=3, stride=2, padding=1, ceil_mode=True),
    pool("max_pool2d", (2, 1, 9, 9), kernel_size=3, dilation=2, stride=1, padding=1),
    pool("max_pool2d", (1, 2, 20, 20), kernel_size=17, stride=2),
    *(pool("max_pool2d", (1, 2, 40, 40), kernel_size=size) for size in ((32, 9), (9, 32))),
    pool("max_pool2d", (0, 2, 4, 4), kernel_size=2),
    pool("max_pool2d", (8, 32, 24, 24), kernel_size=3, stride=2, padding=1),
    pool("avg_pool2d", (2, 3, 6, 8), kernel_size=2),
    pool("avg_pool2d", (3, 7, 6), kernel_size=(3, 2), stride=(2, 1), padding=1),
    pool("avg_pool2d", (1, 5, 8, 10), kernel_size=3, stride=2, padding=1, ceil_mode=True),
    pool("avg_pool2d", (2, 2, 7, 7), kernel_size=3, padding=1, count_include_pad=False),
    pool("avg_pool2d", (2, 2, 7, 7), kernel_size=3, stride=1, divisor_override=2),
    pool("avg_pool2d", (0, 2, 4, 4), kernel_size=2),
    pool("avg_pool2d", (8, 32, 24, 24), kernel_size=3, stride=2, padding=1),
    pool("adaptive_avg_pool2d", (2, 3, 7, 5), output_size=1),
    pool("adaptive_avg_pool2d", (3, 7, 5), output_size=(3, 2)),
    pool("adaptive_avg_pool2d", (2, 2, 4, 6), output_size=(None, 4)),
    pool("adaptive_avg_pool2d", (1, 2, 3, 3), output_size=(5, 7)),
    pool("adaptive_avg_pool2d", (8, 32, 24, 24), output_size=7),
    norm((6, 3), training=True),
    norm((5, 4, 3), training=True, momentum=0.5, eps=1e-2),
    norm((2, 5, 4, 3), training=True, momentum=1.0),
    norm((2, 5, 4, 3)),
    norm((3, 2, 5), affine=False),
    norm((3, 2, 2, 2), running=False),
    norm((4, 2), running=False, affine=False, training=True),
    norm((0, 3, 2, 2)),
    norm((16, 33, 20, 20), training=True),
    Case("dropout", {"input": (5, 7)}, {"p": 0.5}),
    Case("dropout", {"input": (2, 3, 4, 5)}, {"p": 0.3}),
    Case("dropout", {"input": (3,)}, {"p": 1.0}),
    Case("dropout", {"input": ()}, {"p": 0.0}),
    Case("dropout", {"input": (0, 4)}, {"p": 0.5}),
    Case("dropout", {"input": (300, 500)}, {"p": 0.5}),
    Case("feature_dropout", {"input": (4, 6, 3)}, {"p": 0.5, "channel_axis": 1}),
    Case("feature_dropout", {"input": (2, 9, 3, 2)}, {"p": 0.2, "channel_axis": 1}),
    Case("feature_dropout", {"input": (9, 3, 2)}, {"p": 0.2, "channel_axis": 0}),
    Case("feature_dropout", {"input": (16, 32, 20, 20)}, {"p": 0.5, "channel_axis": 1}),
    Case("linear", {"input": (4, 3), "weight": (5, 3), "bias": (5,)}),
    Case("linear", {"input": (7,), "weight": (2, 7), "bias": (2,)}),
    Case("linear", {"input": (2, 3, 5), "weight": (17, 5)}),
    Case("linear", {"input": (0, 3), "weight": (4, 3), "bias": (4,)}),
    Case("linear", {"input": (1, 1), "weight": (1, 1), "bias": (1,)}),
    Case("linear", {"input": (301, 65), "weight": (129, 65), "bias": (129,)}),
    *(
        Case(op, {"input": shape}, options)
        for op, options in [
            ("relu", {}),
            ("leaky_relu", {}),
            ("leaky_relu", {"negative_slope": 0.2}),
            ("sigmoid", {}),
            ("tanh", {}),
            ("gelu", {}),
            ("gelu", {"approximate": "tanh"}),
        ]
        for shape in [(), (7,), (2, 3, 5), (2, 3, 4, 5), (0, 3), (400, 301)]
    ),
    *(
        Case(op, {"input": shape}, {"dim": dim})
        for op in ("softmax", "log_softmax")
        for shape, dim in [
            ((5,), 0),
            ((4, 6), 1),
            ((4, 6), 0),
            ((2, 3, 4, 5), 1),
            ((2, 3, 4), -1),
            ((3, 1), 1),
            ((0, 3), 1),
            ((500, 31), 1),
        ]
    ),
    *(
        labelled(op, shape, weight, reduction=reduction)
        for op in ("cross_entropy", "nll_loss")
        for shape in [(5, 4), (3,), (2, 3, 4), (2, 4, 3, 2)]
        for weight in (False, True)
        for reduction in ("mean", "sum", "none")
    ),
    labelled("cross_entropy", (6, 4), ignore_index=1),
    labelled("cross_entropy", (6, 4), True, ignore_index=1, label_smoothing=0.1),
    labelled("cross_entropy", (4, 3, 5), True, label_smoothing=1.0, reduction="none"),
    labelled("cross_entropy", (4, 3), label_smoothing=0.3, reduction="sum"),
    labelled("cross_entropy", (500, 31), True, ignore_index=1, label_smoothing=0.1),
    labelled("nll_loss", (6, 4), True, ignore_index=1),
    *(
        paired(op, shape, reduction=reduction)
        for op in ("mse_loss", "binary_cross_entropy_with_logits")
        for shape in [(), (7,), (4, 3), (2, 3, 2, 2)]
        for reduction in ("mean", "sum", "none")
    ),
    paired("binary_cross_entropy_with_logits", (4, 3), weight=(4, 1), pos_weight=(3,)),
    paired("binary_cross_entropy_with_logits", (4, 3), pos_weight=(3,), reduction="none"),
    paired("binary_cross_entropy_with_logits", (4, 3), weight=(4, 3), reduction="sum"),
)


def params(
    *names: str,
    least: int = 0,
    most: float = np.inf,
    cases: Iterable[Case] = CASES,
) -> pytest.MarkDecorator:
    """Parametrise a test by the cases of some operations, with sizes in [least, most]."""
    chosen = [c for c in cases if c.op in names and least <= c.size <= most]
    return pytest.mark.parametrize("case", chosen, ids=lambda c: c.id)


def _wide(a: np.ndarray) -> np.ndarray:
    """Give a copy whose elements lie two apart."""
    wide = np.empty((*a.shape, 2), a.dtype)
    wide[..., 0] = a
    return wide[..., 0]


def _reversed(a: np.ndarray) -> np.ndarray:
    """Give a copy with negative strides."""
    backwards = (slice(None, None, -1),) * a.ndim
    return a[*backwards, ...].copy()[*backwards, ...]


def _channels_last(a: np.ndarray) -> np.ndarray:
    return np.moveaxis(np.moveaxis(a, 1, -1).copy(), -1, 1) if a.ndim > 2 else a.copy()


def _read_only(a: np.ndarray) -> np.ndarray:
    a = a.copy()
    a.flags.writeable = False
    return a


def _fortran(a: np.ndarray) -> np.ndarray:
    return np.array(a, order="F")


LAYOUTS = (np.array, _fortran, _channels_last, _wide, _reversed, _read_only)


def compare(got: Arrays, want: Arrays, tolerances: tuple[float, float] | None = None) -> None:
    """Assert that results have the same names, shapes, dtypes and, within tolerance, values."""
    assert got.keys() == want.keys()
    for name, expected in want.items():
        value = got[name]
        assert value.shape == expected.shape, name
        assert value.dtype == expected.dtype, name
        rtol, atol = tolerances or TOLERANCES.get(expected.dtype, (0, 0))
        scale = np.abs(expected[np.isfinite(expected)]).max(initial=1)
        np.testing.assert_allclose(value, expected, rtol, atol * scale, err_msg=name)


def check(case: Case, dtype: Any) -> None:
    """Assert that an operation agrees with its reference for any layout of its arguments."""
    arrays = case.arrays(dtype)
    want = case.run(reference, arrays)
    for layout in LAYOUTS:
        given = {name: layout(a) for name, a in arrays.items()}
        compare(case.run(ops, given), want)
        for name, a in arrays.items():
            np.testing.assert_array_equal(given[name], a, err_msg=f"{name} was changed")


def check_exact(case: Case) -> None:
    """Assert that an operation agrees with its reference to the bit on float32 integers."""
    arrays = case.arrays(np.float32, "integers")
    got, want = case.run(ops, arrays, "integers"), case.run(reference, arrays, "integers")
    compare(got, want, (0, 0))


def check_threads(case: Case, dtype: Any = np.float32) -> None:
    """Assert that results are the same to the bit for 1, 2 and 4 threads."""
    arrays, results = case.arrays(dtype), []
    for threads in (1, 2, 4):
        set_num_threads(threads)
        results.append(case.run(ops, arrays))
    for other in results[1:]:
        compare(other, results[0], (0, 0))


def check_gradients(case: Case) -> None:
    """Assert that the gradients of an operation are those of central differences."""
    arrays = case.arrays(np.float64, "distinct")
    results = case.run(ops, arrays)
    for name in arrays.keys() & {"input", "weight", "bias"}:
        if f"d{name}" not in results:
            continue

        def output(value: np.ndarray, name: str = name) -> np.ndarray:
            return case.run(ops, arrays | {name: value})["y"]

        expected = numerical_gradient(output, arrays[name], like(results["y"]))
        np.testing.assert_allclose(results[f"d{name}"], expected, 1e-3, 1e-5, err_msg=name)


def check_error(op: str, error: type[Exception], argument: str, *args: Any, **kwargs: Any) -> None:
    """Assert that a call fails with a message of operation, argument and what was given."""
    with pytest.raises(
        error, match=rf"(?s)^{op.removesuffix('_forward')}: .*\b{argument}\b.*\b(got|given)\b"
    ):
        getattr(ops, op)(*args, **kwargs)
