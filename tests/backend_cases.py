"""Calls of every op, and some training, whose results both backends must agree on."""

import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from specs import SPECS
from specs.spec import Draw

import fastlayers as fl
from fastlayers import nn, ops, optim
from fastlayers.vision import models

Results = dict[str, np.ndarray]


def ops_results() -> Results:
    """Give the results of all of `ops.__all__`, each under the op's name and a number."""
    results: Results = {}
    for dtype in ("f4", "f8"):
        calls = (call for spec in SPECS.values() for call in spec.calls(Draw(dtype, 5)))
        for name, arguments, options, _ in calls:
            fl.manual_seed(len(results))
            found = getattr(ops, name)(*arguments, **options)
            if name in ("batch_norm_max_pool2d", "conv2d_max_pool2d"):
                # Of a window without outputs above 0 any cell will do: no gradient passes.
                found = found[0], np.where(found[0] > 0, found[1], 0)
            for i, value in enumerate(found if isinstance(found, tuple) else (found,)):
                if value is not None:
                    results[f"{name} {dtype} {len(results)} {i}"] = np.asarray(value)
    return results


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
