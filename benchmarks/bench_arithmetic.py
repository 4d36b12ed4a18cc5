"""Residual sums; the gradient is the output's."""

from benchmarks.suite import Pass


class AddForward(Pass):
    op, which = "add", "forward"
