"""Activations, forward and backward."""

from benchmarks.layers import IMAGES, images
from fastlayers import ops

# Name, and whether the gradient is a function of the output.
ACTIVATIONS = {"relu": True, "leaky_relu": False, "sigmoid": True, "tanh": True, "gelu": False}


class Activation:
    params = (list(ACTIVATIONS), list(IMAGES))
    param_names = ["op", "images"]
    timeout = 120

    def setup(self, op, name):
        self.x = images(IMAGES[name])
        self.forward, self.backward = getattr(ops, op), getattr(ops, f"{op}_backward")
        self.dy = self.forward(self.x)
        self.saved = self.dy if ACTIVATIONS[op] else self.x
        self.time_backward(op, name)

    def time_forward(self, op, name):
        self.forward(self.x)

    def time_backward(self, op, name):
        self.backward(self.dy, self.saved)
