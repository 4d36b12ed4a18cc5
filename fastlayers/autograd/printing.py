"""The text of a tensor."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from fastlayers.autograd.tensor import Tensor

__all__ = ["text"]


def text(tensor: Tensor) -> str:
    """What `repr` gives."""
    body = np.array2string(tensor.array(), separator=", ", prefix="tensor(")
    return f"tensor({body}{', requires_grad=True' if tensor.requires_grad else ''})"
