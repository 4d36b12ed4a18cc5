"""Tensors of given or drawn values."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastlayers.autograd.tensor import Tensor, as_array

__all__ = ["tensor"]


def tensor(
    data: Any, *, dtype: Any = None, device: Any = None, requires_grad: bool = False
) -> Tensor:
    """A tensor of a copy of `data`; Python floats become float32."""
    out = Tensor(np.array(as_array(data), dtype), requires_grad)
    out.is_own = True
    return out
