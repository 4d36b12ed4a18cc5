"""Activations and softmax."""

from benchmarks.suite import Pass


class ReLUForward(Pass):
    op, which = "relu", "forward"


class ReLUBackward(Pass):
    op, which = "relu", "backward"


class LeakyReLUForward(Pass):
    op, which = "leaky_relu", "forward"


class LeakyReLUBackward(Pass):
    op, which = "leaky_relu", "backward"


class SigmoidForward(Pass):
    op, which = "sigmoid", "forward"


class SigmoidBackward(Pass):
    op, which = "sigmoid", "backward"


class TanhForward(Pass):
    op, which = "tanh", "forward"


class TanhBackward(Pass):
    op, which = "tanh", "backward"


class GELUForward(Pass):
    op, which = "gelu", "forward"


class GELUBackward(Pass):
    op, which = "gelu", "backward"


class SoftmaxForward(Pass):
    op, which = "softmax", "forward"


class SoftmaxBackward(Pass):
    op, which = "softmax", "backward"


class LogSoftmaxForward(Pass):
    op, which = "log_softmax", "forward"


class LogSoftmaxBackward(Pass):
    op, which = "log_softmax", "backward"
