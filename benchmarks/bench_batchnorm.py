"""Batch normalisation, alone and followed by max pooling."""

from benchmarks.suite import Pass


class BatchNormForward(Pass):
    op, which = "batch_norm", "forward"


class BatchNormBackward(Pass):
    op, which = "batch_norm", "backward"


class BatchNormMaxPool2dForward(Pass):
    op, which = "batch_norm_max_pool2d", "forward"


class BatchNormMaxPool2dBackward(Pass):
    op, which = "batch_norm_max_pool2d", "backward"
