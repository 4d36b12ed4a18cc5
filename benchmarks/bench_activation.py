"""Activations and softmax: for each row of the table a class a pass, such as `ReLUForward`."""

from benchmarks.cases import ACTIVATIONS
from benchmarks.suite import Pass

for op, row in ACTIVATIONS.items():
    for which in ("forward", "backward"):
        name = f"{row.layer}{which.title()}"
        kind = type(name, (Pass,), {"op": op, "which": which, "__module__": __name__})
        globals()[name] = kind
del kind
