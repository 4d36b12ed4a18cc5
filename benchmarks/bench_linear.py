"""Linear layers, forward and each gradient."""

import numpy as np

from benchmarks.layers import LINEARS
from fastlayers import ops


class Linear:
    params = list(LINEARS)
    param_names = ["layer"]
    timeout = 120

    def setup(self, layer):
        rows, before, after = LINEARS[layer]
        generator = np.random.default_rng(0)
        self.x = generator.standard_normal((rows, before), np.float32)
        self.weight = generator.standard_normal((after, before), np.float32)
        self.dy = ops.linear(self.x, self.weight)
        for needs in np.eye(3, dtype=bool):  # compiles
            self._backward(tuple(needs))

    def _backward(self, needs):
        ops.linear_backward(self.dy, self.x, self.weight, needs)

    def time_forward(self, layer):
        ops.linear(self.x, self.weight)

    def time_backward_input(self, layer):
        self._backward((True, False, False))

    def time_backward_weight(self, layer):
        self._backward((False, True, False))
