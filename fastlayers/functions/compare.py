"""Comparisons of pairs of elements."""

import numpy as np

from fastlayers.functions.table import comparison

__all__ = ["eq", "ge", "gt", "le", "lt", "ne"]

eq = comparison("eq", np.equal, "``input == other``.", "eq")
ne = comparison("ne", np.not_equal, "``input != other``.", "ne")
lt = comparison("lt", np.less, "``input < other``.", "lt")
le = comparison("le", np.less_equal, "``input <= other``.", "le")
gt = comparison("gt", np.greater, "``input > other``.", "gt")
ge = comparison("ge", np.greater_equal, "``input >= other``.", "ge")
