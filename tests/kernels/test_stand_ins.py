"""Kernels in NumPy have the names, arguments and results of the compiled ones."""

import importlib
import inspect
import pkgutil

import numpy as np
import pytest

from fastlayers.reference import kernels as stand_ins

RNG = np.random.default_rng(0)
# By function: its inputs, and the shape of what it writes.
CALLS = {
    "arithmetic.add": ([RNG.integers(-9, 9, 40000) for _ in range(2)], 40000),
    "layout.swap_axes": ([RNG.integers(-9, 9, (3, 5, 70))], (3, 70, 5)),
}
MODULES = [module.name for module in pkgutil.iter_modules(stand_ins.__path__)]
NAMES = [
    f"{module}.{name}"
    for module in MODULES
    for name in importlib.import_module(f"{stand_ins.__name__}.{module}").__all__
]


def both(name):
    module, function = name.split(".")
    for package in ("fastlayers.kernels", stand_ins.__name__):
        yield getattr(importlib.import_module(f"{package}.{module}"), function)


@pytest.mark.parametrize("name", NAMES)
def test_arguments_and_results_are_those_of_kernels(name):
    kernel, stand_in = both(name)
    assert list(inspect.signature(kernel.py_func).parameters) == list(
        inspect.signature(stand_in).parameters
    )
    inputs, shape = CALLS[name]
    results = []
    for run in (kernel, stand_in):
        out = np.empty(shape)
        run(*(x.astype(float) for x in inputs), 2, out)
        results.append(out)
    np.testing.assert_array_equal(*results)


def test_each_module_takes_the_place_of_kernels():
    from fastlayers import kernels

    assert sorted(kernels._STAND_INS) == sorted(MODULES)
