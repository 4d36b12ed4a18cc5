"""Linear layers."""

from benchmarks.suite import Pass


class LinearForward(Pass):
    op, which = "linear", "forward"


class LinearBackwardInput(Pass):
    op, which = "linear", "backward_input"


class LinearBackwardWeight(Pass):
    op, which = "linear", "backward_weight"
