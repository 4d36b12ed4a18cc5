"""Pooling."""

from benchmarks.suite import Pass


class MaxPool2dForward(Pass):
    op, which = "max_pool2d", "forward"


class MaxPool2dBackward(Pass):
    op, which = "max_pool2d", "backward"


class AvgPool2dForward(Pass):
    op, which = "avg_pool2d", "forward"


class AvgPool2dBackward(Pass):
    op, which = "avg_pool2d", "backward"


class AdaptiveAvgPool2dForward(Pass):
    op, which = "adaptive_avg_pool2d", "forward"


class AdaptiveAvgPool2dBackward(Pass):
    op, which = "adaptive_avg_pool2d", "backward"
