"""Batch normalisation, training and evaluation, forward and backward."""

import numpy as np

from benchmarks.layers import IMAGES, images
from fastlayers import ops


class BatchNorm:
    params = list(IMAGES)
    param_names = ["images"]
    timeout = 120

    def setup(self, name):
        self.x = images(IMAGES[name])
        channels = self.x.shape[1]
        self.running = np.zeros(channels, np.float32), np.ones(channels, np.float32)
        self.affine = np.ones(channels, np.float32), np.zeros(channels, np.float32)
        forward = ops.batch_norm_forward(self.x, *self.running, *self.affine, training=True)
        self.dy, self.mean, self.invstd = forward
        self.time_backward(name)

    def time_forward(self, name):
        ops.batch_norm(self.x, *self.running, *self.affine, training=True)

    def time_forward_eval(self, name):
        ops.batch_norm(self.x, *self.running, *self.affine)

    def time_backward(self, name):
        ops.batch_norm_backward(self.dy, self.x, self.affine[0], self.mean, self.invstd, True)
