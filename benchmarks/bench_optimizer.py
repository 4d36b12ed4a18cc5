"""Updates of all parameters of a network."""

from benchmarks.suite import Pass


class SGDStep(Pass):
    op, which = "SGD", "step"


class AdamStep(Pass):
    op, which = "Adam", "step"


class AdamWStep(Pass):
    op, which = "AdamW", "step"


class AdadeltaStep(Pass):
    op, which = "Adadelta", "step"
