"""Cross entropy, forward and backward."""

import numpy as np

from fastlayers import ops


class CrossEntropy:
    params = ([128, 1024], [10, 1000])
    param_names = ["samples", "classes"]
    timeout = 120

    def setup(self, samples, classes):
        generator = np.random.default_rng(0)
        self.x = generator.standard_normal((samples, classes), np.float32)
        self.target = generator.integers(0, classes, samples)
        self.dy = np.ones((), np.float32)
        self.time_forward(samples, classes)
        self.time_backward(samples, classes)

    def time_forward(self, samples, classes):
        ops.cross_entropy(self.x, self.target)

    def time_backward(self, samples, classes):
        ops.cross_entropy_backward(self.dy, self.x, self.target)
