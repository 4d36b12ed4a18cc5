"""Names of the types of elements, as PyTorch has them; each is NumPy's dtype."""

from typing import Any

import numpy as np

__all__ = [
    "bool",
    "can_cast",
    "double",
    "float",
    "float16",
    "float32",
    "float64",
    "half",
    "int",
    "int8",
    "int16",
    "int32",
    "int64",
    "long",
    "short",
    "uint8",
]

_RANKS = {"b": 0, "i": 1, "u": 1, "f": 2}

float16 = half = np.dtype(np.float16)
float32 = float = np.dtype(np.float32)
float64 = double = np.dtype(np.float64)
int8 = np.dtype(np.int8)
int16 = short = np.dtype(np.int16)
int32 = int = np.dtype(np.int32)
int64 = long = np.dtype(np.int64)
uint8 = np.dtype(np.uint8)
bool = np.dtype(np.bool_)


def can_cast(from_: Any, to: Any) -> Any:
    """Whether PyTorch casts implicitly: to the same kind or a higher one of bool < int < float.

    References
    ----------
    https://docs.pytorch.org/docs/stable/generated/torch.can_cast.html
    """
    kinds = np.dtype(from_).kind, np.dtype(to).kind
    return _RANKS[kinds[0]] <= _RANKS[kinds[1]]
