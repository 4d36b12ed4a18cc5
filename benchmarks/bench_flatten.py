"""Images to rows."""

from benchmarks.suite import Pass


class FlattenForward(Pass):
    op, which = "flatten", "forward"


class FlattenBackward(Pass):
    op, which = "flatten", "backward"
