"""Dropout of elements and channels, forward and backward."""

import fastlayers as fl
from benchmarks.layers import IMAGES, images
from fastlayers import ops


class Dropout:
    params = list(IMAGES)
    param_names = ["images"]
    timeout = 120

    def setup(self, name):
        fl.manual_seed(0)
        self.x = images(IMAGES[name])
        self.dy, self.mask = ops.dropout_forward(self.x, 0.5)
        self.time_backward(name)

    def time_forward(self, name):
        ops.dropout(self.x, 0.5)

    def time_backward(self, name):
        ops.dropout_backward(self.dy, self.mask, 0.5)


class Dropout2d:
    params = list(IMAGES)
    param_names = ["images"]
    timeout = 120

    def setup(self, name):
        fl.manual_seed(0)
        self.x = images(IMAGES[name])
        self.dy, self.scale = ops.feature_dropout_forward(self.x, 0.5)
        self.time_backward(name)

    def time_forward(self, name):
        ops.dropout2d(self.x, 0.5)

    def time_backward(self, name):
        ops.feature_dropout_backward(self.dy, self.scale)
