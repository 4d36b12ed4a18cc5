"""Calls of every op, and some training, whose results both backends must agree on."""

import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastlayers as fl
from fastlayers import nn, ops, optim
from fastlayers.vision import models

Results = dict[str, np.ndarray]


def ops_results() -> Results:
    """Give the results of all of `ops.__all__`, each under the op's name and a number."""
    results: Results = {}
    for dtype in ("f4", "f8"):
        for name, arguments, options in calls(np.dtype(dtype)):
            fl.manual_seed(len(results))
            found = getattr(ops, name)(*arguments, **options)
            if name in ("batch_norm_max_pool2d", "conv2d_max_pool2d"):
                # Of a window without outputs above 0 any cell will do: no gradient passes.
                found = found[0], np.where(found[0] > 0, found[1], 0)
            for i, value in enumerate(found if isinstance(found, tuple) else (found,)):
                if value is not None:
                    results[f"{name} {dtype} {len(results)} {i}"] = np.asarray(value)
    return results


def calls(dtype: np.dtype) -> Iterator[tuple[str, tuple[Any, ...], dict[str, Any]]]:
    generator = np.random.default_rng(5)

    def random(*shape: int, last: bool = True) -> np.ndarray:
        array = generator.standard_normal(shape).astype(dtype)
        if last and len(shape) == 4:
            return np.ascontiguousarray(array.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
        return array

    x, dy = random(3, 5, 7, 6), random(3, 5, 7, 6)
    for name, options in (
        ("relu", {}),
        ("sigmoid", {}),
        ("tanh", {}),
        ("softmax", {"dim": 1}),
        ("log_softmax", {"dim": -1}),
    ):
        y = getattr(ops, name)(x, **options)
        yield name, (x,), options
        yield f"{name}_backward", (dy, y), options
        yield name, (np.full((2, 3), -np.inf, dtype),), options
    for name, options in (
        ("leaky_relu", {"negative_slope": 0.3}),
        ("gelu", {}),
        ("gelu", {"approximate": "tanh"}),
    ):
        yield name, (x,), options
        yield f"{name}_backward", (dy, x), options
        yield name, (np.array(2, dtype),), options
    yield "flatten", (x, 1), {}
    yield "flatten_backward", (random(3, 210), x.shape), {}

    w, b = random(10, 5, 3, 2, last=False), random(10)
    plain: dict[str, Any] = {"padding": 1}
    grouped = {"stride": (1, 2), "dilation": 2, "groups": 5, "padding": 2}
    same = {"padding": "same"}
    for weight, options in ((w, plain), (w[:, :1].copy(), grouped), (w, same)):
        y = ops.conv2d(x, weight, b, **options)
        yield "conv2d", (x, weight, b), options | {"activation": "relu"}
        yield "conv2d", (x[0], weight), options
        yield "conv2d_backward", (random(*y.shape), x, weight), options
        yield "conv2d_backward", (random(*y.shape[1:]), x[0], weight), options
    options = plain | {"pool": (2, 2, 0, 1, False), "activation": "relu"}
    y, offsets = ops.conv2d_max_pool2d(x, w, b, **options)
    yield "conv2d_max_pool2d", (x, w, b), options
    arguments: tuple[Any, ...] = (random(*y.shape), y, offsets, x, w)
    yield "conv2d_max_pool2d_backward", arguments, options
    yield "conv2d_backward", (dy[:0], x[:0], random(5, 5, 1, 1)), {}

    images, weight = random(2, 16, 6, 5), random(16, 16, 3, 3)
    yield "conv2d", (images, weight), {"padding": 1, "algorithm": "winograd"}

    w, b, rows = random(4, 6), random(4), random(3, 2, 6)
    yield "linear", (rows, w, b), {"activation": "relu"}
    yield "linear", (rows, w), {}
    y = ops.linear(rows, w, b, activation="relu")
    options = {"activation": "relu", "output": y}
    yield "linear_backward", (random(3, 2, 4), rows, w), options
    yield "linear_backward", (random(3, 2, 4), rows, w, (True, False, True)), {}

    for window in ((2,), ((3, 2), 2, 1, 1, True), (2, 1, 0, 2)):
        y, offsets = ops.max_pool2d_forward(x, *window)
        yield "max_pool2d", (x, *window), {}
        yield "max_pool2d", (x[0], *window), {"return_indices": True}
        yield "max_pool2d_forward", (x, *window), {"activation": "relu"}
        yield "max_pool2d_shape", (x.shape, *window), {}
        yield "max_pool2d_indices", (offsets, x.shape, *window[:4]), {}
        arguments = (random(*y.shape), offsets, x.shape, *window[:4])
        yield "max_pool2d_backward", arguments, {"output": y}
    for window in ((2,), ((7, 6),), (3, 2, 1, True, False), (2, 1, 0, False, True, 3)):
        y = ops.avg_pool2d(x, *window)
        yield "avg_pool2d", (x, *window), {}
        yield "avg_pool2d", (x[0], *window), {}
        yield "avg_pool2d_backward", (random(*y.shape), x.shape, *window), {}
    for size in (1, (3, None), (2, 4)):
        y = ops.adaptive_avg_pool2d(x, size)
        yield "adaptive_avg_pool2d", (x, size), {}
        yield "adaptive_avg_pool2d_backward", (random(*y.shape), x.shape), {}

    w, b, mean, var = random(5), random(5), random(5), random(5) ** 2
    for training in (True, False):
        running = mean.copy(), var.copy()
        yield "batch_norm", (x, *running, w, b, training), {}
        yield "batch_norm_statistics", (x, *running, training, 0.3, 0.1), {}
        yield "flatten", (np.stack(running),), {}
        options = {"residual": dy, "activation": "relu"}
        yield "batch_norm_forward", (x, None, None, w, None, training), options
        _, *fixed = ops.batch_norm_forward(x, mean, var, w, b, False)
        yield "batch_norm_backward", (dy, x, None, *fixed, training), {}
        relu = {"bias": b, "activation": "relu"}
        yield "batch_norm_backward", (dy, x, w, *fixed, training, (True, True, False)), relu
        y = ops.batch_norm_apply(x, *fixed, w, b, **options)
        yield "batch_norm_apply", (x, *fixed, w, b), options
        relu |= {"output": y}
        yield "batch_norm_backward", (dy, x, w, *fixed, training, (True,) * 4), relu
    for window in ((2,), (3, 1, 1)):
        options = {"activation": "relu"}
        y, offsets = ops.batch_norm_max_pool2d(x, *fixed, w, b, *window, **options)
        yield "batch_norm_max_pool2d", (x, *fixed, w, b, *window), options
        arguments = (random(*y.shape), y, offsets, x, w, *fixed, True, (True,) * 3, *window)
        yield "batch_norm_max_pool2d_backward", arguments, options

    for p in (0.0, 0.25, 0.3, 1.0):
        yield "dropout", (random(3, 5, 7, 60), p), {}
        yield "dropout_forward", (random(12000), p), {}
        yield "dropout1d", (random(40, 30, 2), p), {}
        yield "dropout2d", (x, p), {}
        yield "feature_dropout_forward", (random(30, 50), p), {}
        _, mask = ops.dropout_forward(x, p)
        yield "dropout_backward", (dy, mask, p), {}
        _, scale = ops.feature_dropout_forward(x[0], p, 0)
        yield "feature_dropout_backward", (dy[0], scale, 0), {}

    target = np.array([[1, 4, -100, 0], [2, 2, 3, 0]])
    x, t, w = random(2, 5, 4), np.abs(random(2, 5, 4)), np.abs(random(5))
    for reduction in ("mean", "sum", "none"):
        dy = random(2, 4) if reduction == "none" else np.array(0.5, dtype)
        options = {"weight": w, "reduction": reduction, "label_smoothing": 0.1}
        for labels in (target, np.full_like(target, -100)):
            yield "cross_entropy", (x, labels), options
            yield "cross_entropy_forward", (x, labels), options
            yield "cross_entropy_backward", (dy, x, labels), options
        yield "cross_entropy", (x[0, :, 0], np.array(1)), options
        slopes = ops.cross_entropy_forward(x, target, **options)[1]
        yield "cross_entropy_apply", (dy, slopes), {}
        options = {"weight": w, "reduction": reduction}
        yield "nll_loss", (x, target), options
        yield "nll_loss_backward", (dy, x, target), options
        dy = random(2, 5, 4) if reduction == "none" else np.array(0.5, dtype)
        for name in ("mse_loss", "binary_cross_entropy_with_logits"):
            yield name, (x, t), {"reduction": reduction}
            yield f"{name}_backward", (dy, x, t), {"reduction": reduction}


def training_results(folder: Path) -> Results:
    """Give losses of three steps of each optimiser, outputs in evaluation, and a saved state."""
    results: Results = {}
    generator = np.random.default_rng(3)
    images = generator.standard_normal((4, 3, 32, 32)).astype("f4")
    labels = generator.integers(0, 10, 4)
    makers: dict[str, Any] = {
        "sgd": lambda p: optim.SGD(p, 0.05, momentum=0.9, weight_decay=1e-3, nesterov=True),
        # Gradients of biases before batch norm are rounding; a small eps would make steps of it.
        "adamw": lambda p: optim.AdamW(p, 1e-3, eps=1e-3, amsgrad=True),
        "adadelta": lambda p: optim.Adadelta(p, 0.1, eps=1e-3, weight_decay=1e-3),
    }
    for name, maker in makers.items():
        fl.manual_seed(1)
        model = models.CifarCNN(batch_norm=True, dropout=0.25)
        optimizer = maker(list(model.parameters()))
        for step in range(3):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(fl.tensor(images)), fl.tensor(labels))
            loss.backward()
            optimizer.step()
            results[f"{name} loss {step}"] = np.asarray(loss.array())
        model.eval()
        with fl.no_grad():
            results[f"{name} output"] = np.array(model(fl.tensor(images)).array())
        fl.save(model.state_dict(), folder / f"{name}.npz")
        model.load_state_dict(fl.load(folder / f"{name}.npz"))
        results |= {f"{name} {key}": value.numpy() for key, value in model.state_dict().items()}
    return results


def main(folder: str) -> None:
    """Write the results without Numba, and check that nothing has loaded it."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        results = ops_results() | training_results(Path(folder))
        model = models.CifarCNN()
        assert fl.warmup(model, (2, 3, 32, 32)) == (0, 0)
        with pytest.raises(TypeError, match="^conv2d: weight must be a NumPy array, got list"):
            ops.conv2d(np.zeros((1, 1, 3, 3)), [1])  # type: ignore[arg-type]
    np.savez(Path(folder) / "results.npz", **results)  # type: ignore[arg-type]
    for name in ("numba", "llvmlite"):
        assert sys.modules.get(name) is None
