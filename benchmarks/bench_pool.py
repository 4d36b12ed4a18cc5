"""Pooling, forward and backward."""

from benchmarks.layers import IMAGES, images
from fastlayers import ops


class MaxPool2d:
    params = list(IMAGES)
    param_names = ["images"]
    timeout = 120

    def setup(self, name):
        self.x = images(IMAGES[name])
        self.dy, self.offsets = ops.max_pool2d_forward(self.x, 2)
        self.time_backward(name)

    def time_forward(self, name):
        ops.max_pool2d(self.x, 2)

    def time_backward(self, name):
        ops.max_pool2d_backward(self.dy, self.offsets, self.x.shape, 2)


class AvgPool2d:
    params = list(IMAGES)
    param_names = ["images"]
    timeout = 120

    def setup(self, name):
        self.x = images(IMAGES[name])
        self.dy = ops.avg_pool2d(self.x, 2)
        self.time_backward(name)

    def time_forward(self, name):
        ops.avg_pool2d(self.x, 2)

    def time_backward(self, name):
        ops.avg_pool2d_backward(self.dy, self.x.shape, 2)


class AdaptiveAvgPool2d:
    params = list(IMAGES)
    param_names = ["images"]
    timeout = 120

    def setup(self, name):
        self.x = images(IMAGES[name])
        self.dy = ops.adaptive_avg_pool2d(self.x, 1)
        self.time_backward(name)

    def time_forward(self, name):
        ops.adaptive_avg_pool2d(self.x, 1)

    def time_backward(self, name):
        ops.adaptive_avg_pool2d_backward(self.dy, self.x.shape)
