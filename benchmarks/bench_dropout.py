"""Dropout of elements and of channels."""

from benchmarks.suite import Pass


class DropoutForward(Pass):
    op, which = "dropout", "forward"


class DropoutBackward(Pass):
    op, which = "dropout", "backward"


class FeatureDropoutForward(Pass):
    op, which = "feature_dropout", "forward"


class FeatureDropoutBackward(Pass):
    op, which = "feature_dropout", "backward"
