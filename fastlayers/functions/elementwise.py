"""Functions of single elements."""

import numpy as np

from fastlayers.functions.table import method, unary

__all__ = ["abs", "exp", "log", "neg", "sqrt"]

abs = unary(
    "abs", np.abs, lambda dy, x: dy * np.sign(x), "``|x|``.", keeps_integers=True
)
neg = unary("neg", np.negative, lambda dy: -dy, "``-x``.", keeps_integers=True)
exp = unary("exp", np.exp, lambda dy, y: dy * y, "``e^x``.")
log = unary("log", np.log, lambda dy, x: dy / x, "Natural logarithm.")
sqrt = unary("sqrt", np.sqrt, lambda dy, y: dy / (2 * y), "Square root.")
method(abs, "__abs__")
method(neg, "__neg__")
