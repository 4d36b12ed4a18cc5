"""Batch normalisation."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from fastlayers import ops
from specs.spec import (
    Arrays,
    Bad,
    Bounds,
    Call,
    Calls,
    Case,
    Draw,
    Empty,
    Layer,
    Pick,
    Place,
    Random,
    Spec,
    Watched,
    distinct,
    endless,
    every,
    named,
    normals,
    results,
    wrong_inputs,
)

# 6e-7 of the deviation, in units of 2^-24.
ROUNDING = 3e-7 * 2**24
AFFINE = ("weight", "bias")
RUNNING = ("running_mean", "running_var")


def norm(x: tuple[int, ...], running: bool = True, affine: bool = True, **options: Any) -> Case:
    names = RUNNING * running + AFFINE * affine
    return Case("batch_norm", {"input": x} | dict.fromkeys(names, (x[1],)), options)


def draw(case: Case, rng: np.random.Generator, name: str, kind: str) -> Any:
    """Variances are positive; integers have an exact mean and deviation."""
    shape = case.shapes[name]
    if name == "running_var":
        if kind == "integers":
            return rng.choice([0.25, 1, 4, 16], shape)
        return rng.uniform(0.5, 1.5, shape)
    if name == "input" and kind == "integers":
        # Half of a channel one deviation above a whole mean, half below: of an even number of
        # values the mean is exact, and the deviation a power of two.
        n, c, *rest = shape
        sides = rng.permuted(np.resize([-1, 1], (c, n * int(np.prod(rest)))), axis=1)
        means, deviations = rng.integers(-4, 5, (c, 1)), rng.choice([0.5, 1, 2], (c, 1))
        return (means + deviations * sides).reshape(c, n, *rest).swapaxes(0, 1)
    return None


def run(module: Any, case: Case, arrays: Arrays, dy: Place) -> Arrays:
    running = {n: a.copy() for n, a in arrays.items() if n in RUNNING}
    y, mean, invstd = module.batch_norm_forward(**{**arrays, **running}, **case.options)
    training = case.options.get("training", False) or not running
    saved = arrays.get("weight"), mean, invstd, training
    gradients = module.batch_norm_backward(dy(y), arrays["input"], *saved)
    return results(y, gradients, **running, mean=mean, invstd=invstd)


def bound(case: Case, a: Arrays, y: Any, dy: Any, want: Arrays) -> Bounds:
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
    lost = np.maximum(np.abs(mean) * invstd - 1, 0) / ROUNDING if of_batch else 0.0
    dweight, dbias = (dy * (side + lost)).sum(axes), dy.sum(axes)
    dx = dy
    if of_batch:
        means = [d.reshape(column) / count for d in (dbias, dweight, (dy * side).sum(axes))]
        dx = dy + means[0] + side * means[1] + lost * means[2]
    found: Bounds = {
        "y": (ROUNDING, weight * (side + lost) + bias),
        "mean": (1, (np.abs(mean) + ROUNDING / invstd).ravel() * of_batch),
        "invstd": (ROUNDING, want["invstd"]),
        "dinput": (count + 4 * ROUNDING, weight * invstd * dx),
        "dweight": (count + 2 * ROUNDING, dweight),
        "dbias": (count, dbias),
    }
    if "running_mean" in a:
        share = o.get("momentum", 0.1) if training else 0
        unbiased = count / max(count - 1, 1) / want["invstd"] ** 2
        deviation = np.abs(want["mean"]) + 1 / want["invstd"]
        for name, batch in (("running_mean", deviation), ("running_var", unbiased)):
            found[name] = (2 * ROUNDING, (1 - share) * np.abs(a[name]) + share * batch)
    return found


def drawn(pick: Pick) -> Case:
    shape = (pick(2, 3, 9), pick(1, 3, 17), *pick((), (5,), (4, 3)))
    training = pick(True, False)
    options = {"momentum": pick(0.1, 0.3, 1.0), "eps": pick(1e-5, 1e-3)}
    return norm(shape, pick(True, False), pick(True, False), training=training, **options)


def long_sums(pick: Pick) -> Case:
    return norm((pick(64, 97, 130, 300), pick(1, 3, 17), 3, 5), training=True)


def by_torch(torch: Any, tensors: Any, options: Any, got: Arrays) -> Any:
    running = {name: t for name, t in tensors.items() if name in RUNNING}
    training = options["training"] or not running
    given = dict.fromkeys(RUNNING) | tensors | options | {"training": training}
    return torch.nn.functional.batch_norm(**given), running


def without_infinite_means(case: Case, a: Arrays, value: float, got: Arrays, want: Arrays) -> Any:
    """The mean of an infinity is one there, NaN here."""
    pair = []
    for found in (got, want):
        finite = {n: np.where(np.isfinite(x), x, np.nan) for n, x in found.items() if n in RUNNING}
        pair.append(found | finite)
    return tuple(pair)


def calls(draw: Draw) -> Any:
    x, dy = draw(3, 5, 7, 6), draw(3, 5, 7, 6)
    w, b, mean, var = draw(5), draw(5), draw(5), draw(5) ** 2
    for training in (True, False):
        running = mean.copy(), var.copy()
        yield Call("batch_norm", (x, *running, w, b, training))
        yield Call("batch_norm_statistics", (x, *running, training, 0.3, 0.1))
        fused = {"residual": dy, "activation": "relu"}
        yield Call("batch_norm_forward", (x, None, None, w, None, training), fused)
        _, *fixed = ops.batch_norm_forward(x, mean, var, w, b, False)
        yield Call("batch_norm_backward", (dy, x, None, *fixed, training))
        relu = {"bias": b, "activation": "relu"}
        given = (dy, x, w, *fixed, training)
        yield Call("batch_norm_backward", (*given, (True, True, False)), relu)
        yield Call("batch_norm_apply", (x, *fixed, w, b), fused)
        output = {"output": ops.batch_norm_apply(x, *fixed, w, b, **fused)}
        yield Call("batch_norm_backward", (*given, (True,) * 4), relu | output)


def array_calls(draw: Draw) -> Any:
    x = draw(8, 32, 24, 24)  # more than one task
    mean, invstd = ops.batch_norm_statistics(x)
    given = (x, x, mean, mean, invstd, True)
    yield Call("batch_norm_backward", given)
    yield Call("batch_norm_backward", (*given, (True,) * 4), shares=True)


X, V = np.ones((4, 3, 2), np.float32), np.ones(3, np.float32)


def wrong() -> Iterator[Bad]:
    running = {
        "running_mean": np.array([1.5, -0.0, np.nan], np.float32),
        "running_var": V / 3,
        "training": True,
    }
    rows: list[Any] = [
        (ValueError, "input", X[0, 0], {}),
        (ValueError, "input", np.ones((1,) * 6, np.float32), {}),
        (ValueError, "input", X[:, :0], {"running_mean": None, "running_var": None}),
        (ValueError, "input", X[:1, :, 0], {}),
        (ValueError, "running_mean", X, {"running_mean": V[:2]}),
        (ValueError, "running_mean", X, {"running_mean": V, "running_var": None}),
        (TypeError, "running_var", X, {"running_var": V.astype(float)}),
        (TypeError, "running_var", X, {"running_var": [1.0, 1.0, 1.0]}),
        (ValueError, "weight", X, {"weight": V[:2]}),
        (TypeError, "weight", X, {"weight": V.astype(float)}),
        (ValueError, "bias", X, {"bias": X}),
        (ValueError, "momentum", X, {"momentum": np.inf}),
        (ValueError, "momentum", X, {"momentum": np.nan}),
        (TypeError, "momentum", X, {"momentum": "0.1"}),
        (ValueError, "eps", X, {"eps": -1e-5}),
        (ValueError, "eps", X, {"eps": np.inf}),
        (TypeError, "eps", X, {"eps": None}),
    ]
    yield from wrong_inputs("batch_norm", X, **running)
    for error, name, x, o in rows:
        yield Bad("batch_norm", error, name, (x,), running | o)
    given: dict[str, Any] = {"grad_output": X, "input": X, "weight": V, "mean": V, "invstd": V}
    for error, name, value in (
        (ValueError, "grad_output", X[1:]),
        (TypeError, "grad_output", X.astype(float)),
        (ValueError, "mean", V[:2]),
        (TypeError, "invstd", V.astype(float)),
        (ValueError, "weight", V[:1]),
    ):
        yield Bad("batch_norm_backward", error, name, (), given | {"training": True, name: value})
    given = {"input": X, "mean": V, "invstd": V}
    for error, name, value in (
        (ValueError, "residual", X[1:]),
        (TypeError, "residual", X.astype(float)),
        (TypeError, "residual", 1.0),
        (ValueError, "activation", "tanh"),
        (ValueError, "mean", V[:2]),
        (TypeError, "invstd", None),
    ):
        yield Bad("batch_norm_apply", error, name, (), given | {name: value})


def arguments(world: Any) -> dict[str, dict[str, Any]]:
    affine = {"weight": world.c, "bias": world.c}
    running = {"input": world.x, "running_mean": world.c.copy(), "running_var": world.c.copy()}
    running |= {"training": True, "momentum": 0.1, "eps": 1e-5}
    fixed = {"input": world.x, "mean": world.c, "invstd": world.c} | affine
    relu = {"activation": "relu"}
    behind = {"grad_output": world.x, "output": world.x, "training": True, "needs": (True,) * 3}
    return {
        "batch_norm": running | affine,
        "batch_norm_apply": fixed | relu | {"residual": world.x},
        "batch_norm_backward": fixed | relu | behind,
        "batch_norm_forward": running | affine | relu | {"residual": world.x},
        "batch_norm_statistics": running,
    }


def with_residual(shape: Any) -> Watched:
    """With a sum and a ReLU."""

    def run(place: Place, dtype: type) -> Arrays:
        x, other, dy = normals(place, dtype, *(shape,) * 3)
        weight, bias = normals(place, dtype, shape[1:2], shape[1:2])
        running = normals(place, dtype, shape[1:2], shape[1:2])
        fused = {"residual": other, "activation": "relu"}
        y, *saved = ops.batch_norm_forward(x, *running, weight, bias, True, **fused)
        relu = {"bias": bias, "activation": "relu", "output": y}
        grads = ops.batch_norm_backward(dy, x, weight, *saved, True, **relu)
        plain = ops.batch_norm_backward(dy, x, weight, *saved, False)
        return named(y, *saved, *running, grads, plain)

    return run


def differentiated() -> Calls:
    for o in every(
        shape=[(6, 3), (3, 3, 4), (2, 3, 3, 2)],
        running=[False, True],
        weight=[False, True],
        bias=[False, True],
        training=[False, True],
        momentum=[0.1, 1.0],
        eps=[1e-5, 0.1],
    ):
        learnt = {"input": distinct(*o.pop("shape"))}
        learnt |= {n: distinct(3, seed=i) for i, n in enumerate(AFFINE) if o.pop(n)}
        running = o.pop("running")
        o |= {"running_mean": np.array([-1.0, 0, 0.5]) if running else None}
        o |= {"running_var": np.array([0.5, 1, 2]) if running else None}
        yield learnt, o


OPTIONS = {
    "num_features": [3],
    "eps": [1e-5, 0.1],
    "momentum": [0.1, 1.0, None],
    "affine": [True, False],
    "track_running_stats": [True, False],
    "bias": [True, False],
}
# Of as many values a channel as a power of two, the batch's mean and deviation are exact.
BATCHES = ((2,), (64,), (512,), (2, 1), (4, 8), (1, 2, 2), (1, 16, 16), (2, 8, 4), (8, 4, 4))
SHAPES = ((5, 3), (3, 17, 4, 5), (2, 64, 9, 7), (1, 130, 3, 3), (17, 5, 31), (8, 6, 40, 40))

SPECS = (
    Spec(
        op="batch_norm",
        run=run,
        draw=draw,
        learnt=("input", "weight", "bias"),
        samples=(
            norm((6, 3), training=True),
            norm((5, 4, 3), training=True, momentum=0.5, eps=1e-2),
            norm((2, 5, 4, 3), training=True, momentum=1.0),
            norm((2, 5, 4, 3)),
            norm((3, 2, 5), affine=False),
            norm((3, 2, 2, 2), running=False),
            norm((4, 2), running=False, affine=False, training=True),
            norm((0, 3, 2, 2)),
            norm((16, 33, 20, 20), training=True),
        ),
        exact=(
            *(
                norm((n, c, *rest), running=False, affine=c % 2 > 0, training=True, eps=0.0)
                for c in (1, 2, 3, 5, 8, 15, 16, 17, 33, 64, 131)
                for n, *rest in BATCHES
            ),
            *(norm((16, c, 32, 32), running=False, training=True, eps=0.0) for c in (8, 17, 33)),
            *(norm((7, c, 29, 23), eps=0.0) for c in (24, 33)),
            norm((25, 128, 10, 9), eps=0.0),  # chunks of 256 rows, and a smaller one
            *(norm((4, c, 4, 2), training=True, momentum=0.0, eps=0.0) for c in (1, 3, 16, 33)),
            *(norm((2, c), training=True, momentum=0.5, eps=0.0) for c in (1, 3, 16, 33)),
            *(
                norm((n, c, *rest), eps=0.0)
                for c in (1, 3, 16, 17, 33)
                for n, *rest in ((0, 5), (1,), (7,), (61, 3), (3, 5, 7), (1, 1, 1), (5, 13, 11))
            ),
        ),
        signed_zeros=False,  # terms in another order
        bound=bound,
        random=(
            Random(drawn, torch=40),
            Random(drawn, data="far", note="far from 0"),
            Random(long_sums, note="long sums"),
        ),
        torch=by_torch,
        reconcile=without_infinite_means,
        bad=tuple(wrong()),
        calls=calls,
        array_calls=array_calls,
        empty=tuple(
            Empty({"input": shape} | dict.fromkeys(RUNNING + AFFINE, "c"), options, "c")
            for shape in ("nc", "nch", "nchw")
            for options in ({}, {"training": True})
        ),
        arguments=arguments,
        watched={f"norm-sum {shape}": with_residual(shape) for shape in SHAPES},
        too_large={
            "batch_norm": (
                lambda: ops.batch_norm(endless(2**50, 3), np.zeros(3, np.float32), V),
                ".",
            )
        },
        functions={"batch_norm": differentiated},
        layers={
            "BatchNorm1d": Layer(OPTIONS, [distinct(3, 3, 4)], {"num_features": 3}),
            "BatchNorm2d": Layer(OPTIONS, [distinct(2, 3, 6, 5)], {"num_features": 3}),
        },
    ),
)
