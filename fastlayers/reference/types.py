"""Types that the references share."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Array", "Gradients", "Labels", "Size"]

Array = NDArray[np.floating[Any]]
Labels = NDArray[np.integer[Any]]
Gradients = tuple[Array | None, Array | None, Array | None]
Size = int | Sequence[int]
