"""Convolution, forward and each gradient."""

import numpy as np

from benchmarks.layers import CONVOLUTIONS, images
from fastlayers import ops


class Conv2d:
    params = list(CONVOLUTIONS)
    param_names = ["layer"]
    timeout = 120

    def setup(self, layer):
        shape, m, kernel, *options, groups = CONVOLUTIONS[layer]
        stride, padding = options
        self.options = (stride, padding, 1, groups)
        self.x = images(shape)
        self.weight = np.random.default_rng(1).standard_normal(
            (m, shape[1] // groups, kernel, kernel), np.float32
        )
        self.dy = ops.conv2d(self.x, self.weight, None, *self.options)
        for needs in np.eye(3, dtype=bool):  # compiles
            self._backward(tuple(needs))

    def _backward(self, needs):
        ops.conv2d_backward(self.dy, self.x, self.weight, *self.options, needs)

    def time_forward(self, layer):
        ops.conv2d(self.x, self.weight, None, *self.options)

    def time_backward_input(self, layer):
        self._backward((True, False, False))

    def time_backward_weight(self, layer):
        self._backward((False, True, False))
