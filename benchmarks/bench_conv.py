"""Convolution, alone and followed by ReLU and max pooling."""

from benchmarks.suite import Pass


class Conv2dForward(Pass):
    op, which = "conv2d", "forward"


class Conv2dBackwardInput(Pass):
    op, which = "conv2d", "backward_input"


class Conv2dBackwardWeight(Pass):
    op, which = "conv2d", "backward_weight"


class Conv2dMaxPool2dForward(Pass):
    op, which = "conv2d_max_pool2d", "forward"


class Conv2dMaxPool2dBackward(Pass):
    op, which = "conv2d_max_pool2d", "backward"
