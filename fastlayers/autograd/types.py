"""Shapes and devices, as PyTorch has them."""

from __future__ import annotations

import math
from typing import Any

__all__ = ["RANKS", "Size", "device"]

# Of NumPy's kinds of dtypes: a number of a kind can be kept in one of a higher rank.
RANKS = {"b": 0, "i": 1, "u": 1, "f": 2}


class Size(tuple[int, ...]):
    """The lengths of a tensor's axes.

    References
    ----------
    https://docs.pytorch.org/docs/stable/size.html
    """

    __slots__ = ()

    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self)

    def __getitem__(self, index: Any) -> Any:
        value = tuple.__getitem__(self, index)
        return Size(value) if isinstance(index, slice) else value

    def __add__(self, other: tuple[int, ...]) -> Size:  # type: ignore[override]
        return Size(tuple.__add__(self, other))

    def __repr__(self) -> str:
        return f"torch.Size({list(self)})"


class device:  # noqa: N801  PyTorch's name
    """A device of tensors. All are on "cpu"; others can only be named.

    Parameters
    ----------
    type : str or device
        Such as "cpu" or "cuda:0".
    index : int, optional

    Raises
    ------
    RuntimeError
        If there is no such kind of device in PyTorch.
    """

    __slots__ = ("index", "type")
    type: str
    index: int | None

    def __init__(self, type: Any, index: int | None = None) -> None:
        if isinstance(type, device):
            type, index = type.type, type.index
        name, _, number = str(type).partition(":")
        if name not in ("cpu", "cuda", "mps", "xpu", "meta") or (number and not number.isdigit()):
            raise RuntimeError(f"device: type must be such as 'cpu' or 'cuda:0', got {type!r}")
        self.type, self.index = name, int(number) if number else index

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, device):
            return NotImplemented
        return (self.type, self.index) == (other.type, other.index)

    def __hash__(self) -> int:
        return hash((self.type, self.index))

    def __str__(self) -> str:
        return self.type if self.index is None else f"{self.type}:{self.index}"

    def __repr__(self) -> str:
        index = "" if self.index is None else f", index={self.index}"
        return f"device(type={self.type!r}{index})"
