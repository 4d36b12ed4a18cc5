"""How far results in float32 may be from those of float64: a bound for each op and result.

All bounds have the form ``2 K 2^-24 S``: K roundings, each of at most 2^-24 of what is rounded,
which is at most S, the sum of the absolute values of what is added. S is found for each element, by
the reference on absolute values where the op is a sum of products.
"""

import functools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
from cases import Arrays, Case, like

from fastlayers import ops, reference
from fastlayers.ops.conv import Convolution
from fastlayers.reference import loss

UNIT = 2.0**-24
# Winograd's transforms add pixels of a whole tile, and take them away again.
WINOGRAD = 20
# Batch norm: 6e-7 of the deviation.
NORM = 3e-7 / UNIT

# Terms and magnitude, by result.
Bounds = dict[str, tuple[Any, Any]]


def errors(
    case: Case, seed: int = 0, kind: str = "normal", algorithm: str = "auto"
) -> dict[str, tuple[float, float]]:
    """Give the largest error of each result, as a share of its bound and in ulps of its magnitude.

    `algorithm` is "auto", or one of Winograd's: "F(2x2)", "F(4x4)", or "F(4,5)" along rows.
    """
    arrays = case.arrays(np.float32, kind, seed)
    wide = {
        name: a.astype(np.float64) if a.dtype == np.float32 else a for name, a in arrays.items()
    }
    got = case.run(winograd(algorithm) if algorithm != "auto" else ops, arrays)
    want = case.run(reference, wide)
    factor = 1 if algorithm == "auto" else WINOGRAD
    found = {}
    for name, (terms, magnitude) in bounds(case, wide, want).items():
        ulp = np.maximum(2 * UNIT * magnitude, np.finfo(np.float32).tiny)
        with np.errstate(invalid="ignore"):  # infinite maxima of empty windows
            difference = np.abs(got[name].astype(np.float64) - want[name])
        same = (got[name] == want[name]) | (np.isnan(got[name]) & np.isnan(want[name]))
        ulps = np.where(same, 0, difference / ulp)
        found[name] = (
            float(np.max(ulps / np.maximum(factor * np.asarray(terms), UNIT), initial=0)),
            float(np.max(ulps, initial=0)),
        )
    assert found.keys() == got.keys() == want.keys()
    return found


@functools.cache
def winograd(algorithm: str) -> Any:
    """A module whose convolutions are Winograd's, of a certain tile."""

    def prepared(input: Any, weight: Any, o: dict[str, Any]) -> Convolution:
        options = [o.get(*item) for item in (("stride", 1), ("padding", 0), ("dilation", 1))]
        shapes = (input.shape, weight.shape, input.dtype)
        if algorithm == "F(4,5)":
            found = Convolution("conv2d", *shapes, *options, 1, "auto")
            assert found.rows and found.input_rows and found.weight_rows
            return found
        found = Convolution("conv2d", *shapes, *options, 1, "winograd")
        for name in ("tile", "input_tile", "weight_tile"):  # but for sums of few terms
            setattr(found, name, int(algorithm[2]) if getattr(found, name) else 0)
        return found

    def conv2d(input: Any, weight: Any, bias: Any = None, **options: Any) -> Any:
        found = prepared(input, weight, options)
        return found.forward(input, weight, found.bias("conv2d", bias), False)

    def conv2d_backward(dy: Any, input: Any, weight: Any, **options: Any) -> Any:
        return prepared(input, weight, options).backward(dy, input, weight, (True,) * 3)

    return SimpleNamespace(conv2d=conv2d, conv2d_backward=conv2d_backward)


def bounds(case: Case, a: Arrays, want: Arrays) -> Bounds:
    """Terms and magnitude of each result, of arguments and results in float64."""
    y = want["y"]
    return _BOUNDS[case.op](case, a, y, np.abs(like(y)), want)


def _products(case: Case, a: Arrays, y: Any, dy: Any, want: Arrays) -> Bounds:
    """Convolutions and linear maps."""
    sizes = {name: np.abs(array) for name, array in a.items()}
    x, weight, o = sizes["input"], sizes["weight"], case.options
    dx, dweight, dbias = getattr(reference, f"{case.op}_backward")(dy, x, weight, **o)
    m = weight.shape[0]
    each = weight[0].size  # products of an output
    pixels = y.size // max(m, 1)
    reached = weight.size // max(weight.shape[1] * o.get("groups", 1), 1) if each else 1
    found = {
        "y": (each + ("bias" in a), getattr(reference, case.op)(**sizes, **o)),
        "dinput": (reached, dx),
        "dweight": (pixels, dweight),
        "dbias": (pixels, dbias),
    }
    return {name: (max(terms, 1), magnitude) for name, (terms, magnitude) in found.items()}


def _pooling(case: Case, a: Arrays, y: Any, dy: Any, want: Arrays) -> Bounds:
    """Means: a sum, a quotient. Maxima: no rounding, but of a pixel's gradients."""
    x, o = a["input"], dict(case.options)
    if case.op == "max_pool2d":
        offsets = reference.max_pool2d_forward(x, **o)[1]
        o.pop("ceil_mode", None)
        cells = int(np.prod(o["kernel_size"])) ** (1 + isinstance(o["kernel_size"], int))
        dx = reference.max_pool2d_backward(dy, offsets, x.shape, **o)
        exact = {name: (1, np.zeros(y.shape)) for name in ("y", "indices")}
        return exact | {"dinput": (cells, dx)}
    means = getattr(reference, case.op)(np.abs(x), **o)
    if case.op == "avg_pool2d":
        cells = int(np.prod(o["kernel_size"])) ** (1 + isinstance(o["kernel_size"], int))
        dx = reference.avg_pool2d_backward(dy, x.shape, **o)
        return {"y": (cells + 1, means), "dinput": (cells + 1, dx)}
    spans = [
        (-(-n // k) + (n % k > 0), -(-k // n) + (k % n > 0))
        for n, k in zip(x.shape[-2:], y.shape[-2:], strict=True)
    ]
    (down, up), (across, along) = spans
    dx = reference.adaptive_avg_pool2d_backward(dy, x.shape)
    return {"y": (down * across + 1, means), "dinput": (up * along + 1, dx)}


def _norm(case: Case, a: Arrays, y: Any, dy: Any, want: Arrays) -> Bounds:
    """6e-7 of a channel's deviation and of what lies beyond it; the gradients are sums of that.

    A mean that is far larger than the deviation has 24 bits, of which y then lacks the last ones.
    """
    x, o, training = a["input"], case.options, case.options.get("training", False)
    axes, column = (0, *range(2, x.ndim)), (-1, *[1] * (x.ndim - 2))
    count = max(x.size // x.shape[1], 1)
    of_batch = training or "running_mean" not in a
    mean, invstd = want["mean"].reshape(column), want["invstd"].reshape(column)
    weight = np.abs(a["weight"]).reshape(column) if "weight" in a else 1.0
    bias = np.abs(a["bias"]).reshape(column) if "bias" in a else 0.0
    side = np.maximum(np.abs(x - mean) * invstd, 1)
    lost = np.maximum(np.abs(mean) * invstd - 1, 0) / NORM if of_batch else 0.0
    dweight, dbias = (dy * (side + lost)).sum(axes), dy.sum(axes)
    dx = dy
    if of_batch:
        means = [d.reshape(column) / count for d in (dbias, dweight, (dy * side).sum(axes))]
        dx = dy + means[0] + side * means[1] + lost * means[2]
    found: Bounds = {
        "y": (NORM, weight * (side + lost) + bias),
        "mean": (1, (np.abs(mean) + NORM / invstd).ravel() * of_batch),
        "invstd": (NORM, want["invstd"]),
        "dinput": (count + 4 * NORM, weight * invstd * dx),
        "dweight": (count + 2 * NORM, dweight),
        "dbias": (count, dbias),
    }
    if "running_mean" in a:
        share = o.get("momentum", 0.1) if training else 0
        unbiased = count / max(count - 1, 1) / want["invstd"] ** 2
        deviation = np.abs(want["mean"]) + 1 / want["invstd"]
        for name, batch in (("running_mean", deviation), ("running_var", unbiased)):
            found[name] = (2 * NORM, (1 - share) * np.abs(a[name]) + share * batch)
    return found


def _dropout(case: Case, a: Arrays, y: Any, dy: Any, want: Arrays) -> Bounds:
    """A factor and a product."""
    return {name: (1, np.abs(value)) for name, value in want.items()}


def _relu(case: Case, a: Arrays, y: Any, dy: Any, want: Arrays) -> Bounds:
    """Nothing is rounded, but a slope and the product with it."""
    return {name: (int(case.op == "leaky_relu"), np.abs(value)) for name, value in want.items()}


def _sigmoid(case: Case, a: Arrays, y: Any, dy: Any, want: Arrays) -> Bounds:
    """An exponential of an ulp, a sum, a quotient; the gradient takes y as rounded."""
    return {"y": (3, y), "dinput": (4, dy * y)}


def _tanh(case: Case, a: Arrays, y: Any, dy: Any, want: Arrays) -> Bounds:
    """Two ulps; the gradient, ``dy (1 - y^2)``, takes y as rounded."""
    return {"y": (2, np.abs(y)), "dinput": (4, dy)}


def _gelu(case: Case, a: Arrays, y: Any, dy: Any, want: Arrays) -> Bounds:
    """In float64, up to the last rounding; but a cube is taken in float32."""
    x = np.abs(a["input"])
    if case.options.get("approximate", "none") == "none":
        return {"y": (1, np.abs(y) + 1e-8 * x), "dinput": (1, dy * (1 + x * np.exp(-x * x / 2)))}
    root = np.sqrt(2 / np.pi)
    tail = 1 - np.tanh(root * (x + 0.044715 * x**3)) ** 2
    cube = root * 0.044715 * x**3
    slope = tail * root * (1 + 3 * 0.044715 * x * x)
    dx = dy * (1 + x * slope * (1 + cube))
    return {"y": (2, np.abs(y) + x * tail * cube + 1e-8 * x), "dinput": (2, dx)}


def _logits(x: Any, axis: int) -> tuple[Any, Any]:
    """Terms of a softmax over an axis, and the shares.

    Exponentials of differences d have the relative error of a rounding of d, and one of an ulp;
    then as many as there are classes are added.
    """
    p = reference.softmax(x, axis)
    span = x.max(axis, keepdims=True) - x.min(axis, keepdims=True)
    return x.shape[axis] + span + 4, p


def _softmax(case: Case, a: Arrays, y: Any, dy: Any, want: Arrays) -> Bounds:
    dim = case.options["dim"]
    terms, p = _logits(a["input"], dim)
    if case.op == "softmax":
        return {
            "y": (terms, y),
            "dinput": (2 * terms, y * (dy + (dy * y).sum(dim, keepdims=True))),
        }
    whole = dy + p * dy.sum(dim, keepdims=True) * (1 + np.abs(y))
    return {"y": (terms, 1 + np.abs(y)), "dinput": (2 * terms, whole)}


def _labels(case: Case, a: Arrays, y: Any, dy: Any, want: Arrays) -> Bounds:
    """Sums over classes, then over samples; what is expected is the logarithm's size and 1."""
    x, o, samples = a["input"], case.options, max(a["target"].size, 1)
    reduction, smoothing = o.get("reduction", "mean"), o.get("label_smoothing", 0.0)
    given = a["target"], a.get("weight"), o.get("ignore_index", -100), smoothing
    q, total = loss._label_weights(x, *given)
    if case.op == "nll_loss":
        magnitude = loss._expected_loss(-np.abs(x), q, total, reduction)
        return {"y": (samples + 2, magnitude), "dinput": (samples + 2, np.abs(want["dinput"]))}
    axis = min(1, x.ndim - 1)
    terms, p = _logits(x, axis)
    most = np.max(terms, initial=1) + samples
    magnitude = loss._expected_loss(np.log(p) - 1, q, total, reduction)
    slopes = np.abs(loss._expected_loss_backward(dy, q, total, reduction))
    slopes = slopes + p * slopes.sum(axis, keepdims=True)
    return {"y": (most, magnitude), "dinput": (most + 4, slopes)}


def _pairs(case: Case, a: Arrays, y: Any, dy: Any, want: Arrays) -> Bounds:
    """Losses of elements, which are not negative, then their sum."""
    x, t, reduction = a["input"], a["target"], case.options.get("reduction", "mean")
    samples = 1 if reduction == "none" else x.size
    if case.op == "mse_loss":
        return {"y": (samples + 3, y), "dinput": (4, np.abs(want["dinput"]))}
    softplus = np.logaddexp(0, np.abs(x))  # is rounded, and an exponential taken of it
    slopes = (1 - t) * reference.sigmoid(x) + t * a.get("pos_weight", 1) * reference.sigmoid(-x)
    slopes = slopes * a.get("weight", 1) * loss._spread(dy, x, reduction)
    return {"y": (samples + 6, y), "dinput": (softplus + 6, slopes)}


_BOUNDS: dict[str, Callable[..., Bounds]] = {
    **dict.fromkeys(("conv2d", "linear"), _products),
    **dict.fromkeys(("max_pool2d", "avg_pool2d", "adaptive_avg_pool2d"), _pooling),
    "batch_norm": _norm,
    **dict.fromkeys(("dropout", "feature_dropout"), _dropout),
    **dict.fromkeys(("relu", "leaky_relu"), _relu),
    "sigmoid": _sigmoid,
    "tanh": _tanh,
    "gelu": _gelu,
    **dict.fromkeys(("softmax", "log_softmax"), _softmax),
    **dict.fromkeys(("cross_entropy", "nll_loss"), _labels),
    **dict.fromkeys(("mse_loss", "binary_cross_entropy_with_logits"), _pairs),
}
