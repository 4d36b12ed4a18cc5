"""Shape, dtype and the like of a tensor, and its Python protocols: sequence, number, text."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from fastlayers import lazy
from fastlayers.autograd.types import Size, device

if TYPE_CHECKING:
    from fastlayers.autograd.tensor import Tensor

__all__ = ["Facts"]


class Facts:
    """The part of `Tensor` that is independent of the tape."""

    __slots__ = ()
    if TYPE_CHECKING:
        _array: np.ndarray | None
        deferred: lazy.Deferred | None

        def array(self) -> np.ndarray: ...  # noqa: D102
        def settled(self) -> np.ndarray: ...  # noqa: D102

        # What `fastlayers.functions` adds.
        def __getattr__(self, name: str) -> Any: ...
        def __add__(self, other: Any) -> Tensor: ...
        def __radd__(self, other: Any) -> Tensor: ...
        def __iadd__(self, other: Any) -> Self: ...
        def __sub__(self, other: Any) -> Tensor: ...
        def __rsub__(self, other: Any) -> Tensor: ...
        def __isub__(self, other: Any) -> Self: ...
        def __mul__(self, other: Any) -> Tensor: ...
        def __rmul__(self, other: Any) -> Tensor: ...
        def __imul__(self, other: Any) -> Self: ...
        def __truediv__(self, other: Any) -> Tensor: ...
        def __rtruediv__(self, other: Any) -> Tensor: ...
        def __itruediv__(self, other: Any) -> Self: ...
        def __floordiv__(self, other: Any) -> Tensor: ...
        def __mod__(self, other: Any) -> Tensor: ...
        def __pow__(self, other: Any) -> Tensor: ...
        def __rpow__(self, other: Any) -> Tensor: ...
        def __matmul__(self, other: Any) -> Tensor: ...
        def __rmatmul__(self, other: Any) -> Tensor: ...
        def __neg__(self) -> Tensor: ...
        def __abs__(self) -> Tensor: ...
        def __invert__(self) -> Tensor: ...
        def __lt__(self, other: Any) -> Tensor: ...
        def __le__(self, other: Any) -> Tensor: ...
        def __gt__(self, other: Any) -> Tensor: ...
        def __ge__(self, other: Any) -> Tensor: ...
        def __eq__(self, other: object) -> Tensor: ...  # type: ignore[override]
        def __ne__(self, other: object) -> Tensor: ...  # type: ignore[override]
        def __getitem__(self, index: Any) -> Tensor: ...
        def __setitem__(self, index: Any, value: Any) -> None: ...

    # Facts.

    @property
    def shape(self) -> Size:
        """Lengths of the axes."""
        return Size(self.lengths)

    @property
    def lengths(self) -> tuple[int, ...]:
        """`shape` as a plain tuple, which takes 0.1 us instead of 0.3."""
        return (self._array if self.deferred is None else self.deferred).shape  # type: ignore[union-attr]

    @property
    def dtype(self) -> np.dtype:
        """Type of the elements."""
        return (self._array if self.deferred is None else self.deferred).dtype  # type: ignore[union-attr]

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len((self._array if self.deferred is None else self.deferred).shape)  # type: ignore[union-attr]

    @property
    def device(self) -> device:
        """The CPU."""
        return device("cpu")

    @property
    def is_cuda(self) -> bool:
        """False: there is only the CPU."""
        return False

    @property
    def itemsize(self) -> int:
        """Bytes of an element."""
        return int(self.dtype.itemsize)

    @property
    def nbytes(self) -> int:
        """Bytes of all elements."""
        return self.numel() * self.itemsize

    def size(self, dim: int | None = None) -> Any:
        """The shape, or the length of one axis."""
        return self.shape if dim is None else self.shape[dim]

    def dim(self) -> int:
        """Number of axes."""
        return self.ndim

    def numel(self) -> int:
        """Number of elements."""
        return math.prod((self._array if self.deferred is None else self.deferred).shape)  # type: ignore[union-attr]

    def element_size(self) -> int:
        """Bytes of an element."""
        return self.itemsize

    def stride(self, dim: int | None = None) -> Any:
        """Elements from one to the next, along all axes or one."""
        strides = tuple(step // self.itemsize for step in self.array().strides)
        return strides if dim is None else strides[dim]

    def data_ptr(self) -> int:
        """Address of the first element."""
        return int(self.settled().__array_interface__["data"][0])

    def is_contiguous(self, memory_format: Any = None) -> bool:
        """Whether the elements lie in C order without gaps; or images with their channels last."""
        array = self.array()
        if "channels_last" in str(memory_format):
            ndim = 5 if "3d" in str(memory_format) else 4
            return array.ndim == ndim and bool(np.moveaxis(array, 1, -1).flags.c_contiguous)
        return bool(array.flags.c_contiguous)

    def is_floating_point(self) -> bool:
        """Whether the elements are floating point numbers."""
        return self.dtype.kind == "f"

    # Python's protocols.

    __hash__ = object.__hash__

    def item(self) -> Any:
        """The only element as a Python number."""
        if self.numel() != 1:
            raise RuntimeError(
                f"item: a tensor must have one element to be a number, "
                f"got shape {tuple(self.shape)}"
            )
        return self.array().item()

    def tolist(self) -> Any:
        """The elements as nested lists."""
        return self.array().tolist()

    def __len__(self) -> int:
        if not self.ndim:
            raise TypeError("len: a tensor must have an axis to have a length, got a 0-d tensor")
        return int(self.shape[0])

    def __iter__(self) -> Iterator[Tensor]:
        if not self.ndim:
            raise TypeError("iter: a tensor must have an axis to be iterated over, got a 0-d one")
        return (self[i] for i in range(self.shape[0]))

    def __bool__(self) -> bool:
        if self.numel() != 1:
            raise RuntimeError(
                f"bool: a tensor must have one element to be true or false, got shape "
                f"{tuple(self.shape)}: its boolean value is ambiguous; use any() or all()"
            )
        return bool(self.array().item())

    def __float__(self) -> float:
        return float(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __complex__(self) -> complex:
        return complex(self.item())

    def __index__(self) -> int:
        if self.dtype.kind not in "iub" or self.numel() != 1:
            raise TypeError(
                f"index: only an integer tensor of one element can be an index, got {self.dtype} "
                f"of shape {tuple(self.shape)}"
            )
        return int(self.item())

    def __format__(self, spec: str) -> str:
        if not self.ndim:
            return format(self.item(), spec)
        return object.__format__(self, spec)

    def __repr__(self) -> str:
        from fastlayers.autograd.printing import text

        return text(self)  # type: ignore[arg-type]
