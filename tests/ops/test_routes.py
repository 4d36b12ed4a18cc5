"""The table that chooses an algorithm for each pass of a convolution."""

import numpy as np
import pytest

from fastlayers.ops.conv import prepare, routes
from fastlayers.ops.conv.algorithm import Algorithm, Pass
from fastlayers.ops.routes import Route
from fastlayers.runtime import cpu

LANES = cpu.lanes(4)
# Shapes of images and weights, options, and the algorithm of each pass.
SERVED = {
    "3x3 of many channels": (
        *((2, 64, 12, 12), (64, 64, 3, 3), {"padding": 1}),
        ("winograd", "winograd", "winograd"),
    ),
    "few output channels": (
        *((2, 3, 16, 16), (6, 3, 3, 3), {"padding": 1}),
        ("planar", "direct", "direct"),
    ),
    "whole vectors of images": (
        *((4 * LANES, 3, 14, 14), (6, 3, 5, 5), {}),
        ("winograd rows", "winograd rows", "winograd rows"),
    ),
    "a channel a group": (
        *((2, 32, 9, 9), (32, 1, 3, 3), {"groups": 32}),
        ("depthwise", "depthwise", "depthwise"),
    ),
    "a stride": ((2, 40, 9, 9), (24, 40, 3, 3), {"stride": 2}, ("direct", "direct", "direct")),
}


def prepared(images, weight, options, algorithm="auto"):
    arguments = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1} | options
    arrays = np.ones(images, np.float32), np.ones(weight, np.float32)
    return prepare("conv2d", *arrays, **arguments, algorithm=algorithm)[2]


@pytest.mark.parametrize("name", SERVED)
def test_algorithm_of_each_pass(name):
    *call, names = SERVED[name]
    convolution = prepared(*call)
    assert tuple(convolution.algorithm(which).name for which in Pass) == names


def test_every_row_serves_something():
    found = {name for *_, names in SERVED.values() for name in names}
    assert found == {row.algorithm.name for row in routes.ROUTES} - {"NumPy"}


@pytest.mark.parametrize("algorithm", routes.ALGORITHMS)
def test_numpy_serves_all_without_numba(monkeypatch, algorithm):
    monkeypatch.setattr("fastlayers.runtime.backend.NUMPY", True)
    shape = prepared((2, 64, 12, 12), (64, 64, 3, 3), {"padding": "same"}).shape
    served = routes.algorithms(shape, algorithm)
    assert {one.describe(Pass.FORWARD) for one in served if one} == {"NumPy"}
    assert served.backward is served.forward


def test_direct_is_exact():
    for *call, _ in SERVED.values():
        convolution = prepared(*call, algorithm="direct")
        assert all(convolution.algorithm(which).exact for which in Pass)


def test_passes_of_an_algorithm_share_an_object():
    convolution = prepared((2, 40, 9, 9), (24, 40, 3, 3), {"stride": 2})
    assert len({id(convolution.algorithm(which)) for which in Pass}) == 1


def test_a_row_before_the_others_serves(monkeypatch):
    class Ones(Algorithm):
        name = "ones"

        @classmethod
        def serves(cls, shape, which):
            return which is Pass.FORWARD

        def forward(self, x, weight, bias, relu):
            n, m, h, w = self.shape.out_shape
            return np.ones((n, h, w, m), x.dtype)

    table = (Route(Ones, "a test"), *routes.ROUTES)
    monkeypatch.setitem(routes._CHOICES, "auto", table)
    shape = prepared((2, 3, 7, 5), (4, 3, 3, 3), {}).shape
    served = routes.algorithms(shape)
    assert served.forward.name == "ones" and served.backward_input.name == "direct"
    assert served.forward.forward(np.ones((2, 3, 7, 5)), *(None,) * 3).shape == (2, 5, 3, 4)
