"""Losses."""

from benchmarks.suite import Pass


class CrossEntropyForward(Pass):
    op, which = "cross_entropy", "forward"


class CrossEntropyBackward(Pass):
    op, which = "cross_entropy", "backward"


class NLLLossForward(Pass):
    op, which = "nll_loss", "forward"


class NLLLossBackward(Pass):
    op, which = "nll_loss", "backward"


class MSELossForward(Pass):
    op, which = "mse_loss", "forward"


class MSELossBackward(Pass):
    op, which = "mse_loss", "backward"


class BinaryCrossEntropyWithLogitsForward(Pass):
    op, which = "binary_cross_entropy_with_logits", "forward"


class BinaryCrossEntropyWithLogitsBackward(Pass):
    op, which = "binary_cross_entropy_with_logits", "backward"
