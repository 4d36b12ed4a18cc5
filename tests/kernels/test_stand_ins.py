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
    "layout.swap_axes": ([NUMBERS], (3, 70, 5)),
}
# Options of steps, and how many arrays a parameter has.
STEPS = {
    "adadelta": ((1.0, 0.01, 0.1, 0.9, 1e-6), 4),
    "adam": ((3.0, 1.0, 0.01, 0.99, 0.1, 0.9, 0.99, 1e-6), 5),
    "sgd": ((-1.0, 0.01, 0.1, 0.9, 0.5, True), 3),
}


def both(name):
    module, function = name.split(".")
    for package in ("fastlayers.kernels", stand_ins.__name__):
        yield getattr(importlib.import_module(f"{package}.{module}"), function)


@pytest.mark.parametrize("name", NAMES)
def test_arguments_are_those_of_kernels(name):
    kernel, stand_in = both(name)
    wanted = list(inspect.signature(kernel.py_func).parameters)
    found = inspect.signature(stand_in).parameters
    assert list(found) == wanted or [str(one) for one in found.values()] == ["*arguments: 'Any'"]


@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith("optimizer.")])
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


def test_each_module_takes_the_place_of_kernels():
    from fastlayers import kernels

    assert sorted(kernels._STAND_INS) == sorted(MODULES)
