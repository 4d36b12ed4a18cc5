"""bfloat16, the upper half of a float32, which NumPy does not have.

https://docs.pytorch.org/docs/stable/tensor_attributes.html
"""

from __future__ import annotations

import numpy as np

__all__ = ["to_float32"]


def to_float32(bits: np.ndarray) -> np.ndarray:
    """The float32 values of bfloat16 numbers, given as 16-bit integers."""
    wide = bits.astype(np.uint32, order="C")
    wide <<= 16
    return wide.view(np.float32)
