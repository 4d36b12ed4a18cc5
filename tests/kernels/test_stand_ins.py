"""Kernels in NumPy have the names, arguments and results of the compiled ones."""

import importlib
import inspect
import pkgutil

import numpy as np
import pytest

from fastlayers.reference import kernels as stand_ins

RNG = np.random.default_rng(0)
NUMBERS = RNG.standard_normal((3, 5, 70))
MODULES = [module.name for module in pkgutil.iter_modules(stand_ins.__path__)]
NAMES = [
    f"{module}.{name}"
    for module in MODULES
    for name in importlib.import_module(f"{stand_ins.__name__}.{module}").__all__
]
# Of functions that are not elementwise in their inputs: these, and the shape of what they write.
CALLS = {
    "activation.gelu": ([NUMBERS[0, 0], True], 70),
    "activation.gelu_backward": ([*NUMBERS[0, :2], False], 70),
    "activation.leaky_relu": ([NUMBERS[0, 0], 0.25], 70),
    "activation.leaky_relu_backward": ([*NUMBERS[0, :2], 0.25], 70),
    "activation.log_softmax": ([NUMBERS[0]], (5, 70)),
    "activation.log_softmax_backward": ([*NUMBERS[:2]], (5, 70)),
    "activation.softmax": ([NUMBERS[0]], (5, 70)),
    "activation.softmax_backward": ([*NUMBERS[:2]], (5, 70)),
    "layout.swap_axes": ([NUMBERS, 3], (3, 70, 5)),
}
# Options of steps, and how many arrays a parameter has.
STEPS = {
    "adadelta": ((1.0, 0.01, 0.1, 0.9, 1e-6), 4),
    "adam": ((3.0, 1.0, 0.01, 0.99, 0.1, 0.9, 0.99, 1e-6), 5),
    "sgd": ((-1.0, 0.01, 0.1, 0.9, 0.5, True), 3),
}


ELEMENTWISE = ("activation.", "arithmetic.", "layout.")
# Where modules are that have another place than their stand-ins.
PLACES = {"dropout": "dropout.dropout"}


def both(name):
    module, function = name.split(".")
    for place in (
        f"fastlayers.kernels.{PLACES.get(module, module)}",
        f"{stand_ins.__name__}.{module}",
    ):
        yield getattr(importlib.import_module(place), function)


@pytest.mark.parametrize("name", [name for name in NAMES if ".TASK_" not in name])
def test_arguments_are_those_of_kernels(name):
    kernel, stand_in = both(name)
    wanted = list(inspect.signature(kernel.py_func).parameters)
    found = inspect.signature(stand_in).parameters
    assert list(found) == wanted or [str(one) for one in found.values()] == ["*arguments: 'Any'"]


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith(ELEMENTWISE)])
def test_results_are_those_of_kernels(name):
    kernel, stand_in = both(name)
    inputs, shape = CALLS.get(name, ([*NUMBERS[0, : 1 + name.endswith(("add", "backward"))]], 70))
    results = []
    for run in (kernel, stand_in):
        out = np.empty(shape)
        run(*inputs, 2, out)
        results.append(out)
    np.testing.assert_allclose(*results, 1e-12, 1e-15)


@pytest.mark.parametrize("name", STEPS)
def test_steps_are_those_of_kernels(name):
    options, count = STEPS[name]
    results = []
    for run in both(f"optimizer.{name}"):
        arrays = np.abs(NUMBERS[0, :count])
        table = np.array([[*(row.ctypes.data for row in arrays), arrays.shape[1]]])
        run(arrays[0], table, options, 1)
        results.append(arrays)
    np.testing.assert_allclose(*results, 1e-12)
    assert not np.array_equal(results[0][0], np.abs(NUMBERS[0, 0]))


@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
def test_dropped_elements_and_channels_are_those_of_kernels(p):
    x = NUMBERS.copy()
    x[0, 0, :3] = np.nan, np.inf, -np.inf
    draw = np.uint64(5), np.uint64(7), np.uint64(round(p * 2**32)), 1.5
    results = []
    for run, apply, channels, scale in zip(
        *(both(f"dropout.{name}") for name in ("dropout", "apply_mask")),
        *(both(f"dropout.{name}") for name in ("channel_dropout", "scale_channels")),
        strict=True,
    ):
        bits, y, again = np.empty(144, np.uint8), np.empty(x.size), np.empty(x.size)
        run(x.reshape(-1), *draw, 2, bits, y)
        apply(x.reshape(-1), bits, 1.5, 2, again)
        drawn, factors, pattern = np.empty(32, np.uint8), np.empty((3, 70)), np.empty(2 * 70)
        z, other = np.empty(x.shape), np.empty(x.shape)
        channels(x, draw, (1, 1), 2, drawn, pattern, factors, z)
        scale(x, factors, (1, 1), 2, pattern, other)
        results.append((bits, y, again, factors, z, other))
    for found in zip(*results, strict=True):
        np.testing.assert_array_equal(*found)


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("wrong", [False, True])
def test_losses_are_those_of_kernels(reduction, wrong):
    x, weight, target = NUMBERS[0], np.abs(NUMBERS[1, 0]), np.array([3, 69, -5, 0, 3])
    target[3] = 70 if wrong else 0
    results = []
    for run in both("loss.cross_entropy"):
        losses, slopes = np.zeros(5 if reduction == "none" else 0), np.zeros(x.size)
        work, out = np.empty(200), np.zeros(1)
        call = (-5, 0.25, reduction == "mean", 2, 1)
        row = run(x.reshape(-1), target, weight, call, losses, slopes, work, out)
        assert row == (3 if wrong else -1)
        results.append([losses, slopes] if losses.size else [slopes, out])
    for found in zip(*results, strict=True):
        np.testing.assert_allclose(*found, 1e-12, 1e-14)


def test_each_module_takes_the_place_of_kernels():
    from fastlayers import kernels

    places = {*kernels._STAND_INS.values(), *kernels.dropout._STAND_INS.values()}
    assert places == {f"{stand_ins.__name__}.{module}" for module in MODULES}
