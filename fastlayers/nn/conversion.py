"""Conversion of a module to another dtype, or to the only device."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from numpy.typing import DTypeLike

from fastlayers.autograd import Tensor
from fastlayers.nn.traversal import Traversal
from fastlayers.ops import check

__all__ = ["Conversion"]


class Conversion(Traversal):
    """The conversions of a module; a part of `Module`."""

    def to(
        self,
        *target: Any,
        device: Any = None,
        dtype: DTypeLike | None = None,
        non_blocking: bool = False,
        memory_format: Any = None,
    ) -> Self:
        """Move to "cpu", the only device, or convert floating point values to a dtype.

        Parameters
        ----------
        *target
            A device, a dtype, both in this order, or a tensor whose dtype is taken.
        device, dtype
            The same by name.
        non_blocking, memory_format
            Accepted; the values are copied at once, and their layout is not changed.

        Raises
        ------
        TypeError
            If the dtype is not float32 or float64, or there are too many arguments.
        RuntimeError
            For another device.
        """
        for item in target:
            value = item.dtype if isinstance(item, Tensor) else item
            if check.is_device(value) and device is None and dtype is None:
                device = value
            elif dtype is None and not isinstance(value, bool):
                dtype = value
            elif not isinstance(value, bool):
                raise TypeError(
                    f"Module.to: target must be a device, a dtype or both, got {target!r}"
                )
        check.device("Module.to", device)
        if dtype is not None:
            self._convert(check.float_type("Module.to", "dtype", dtype))
        return self

    def _convert(self, dtype: np.dtype) -> None:
        for module in self.modules():
            for parameter in module._parameters.values():
                if parameter is not None:
                    grad, parameter.grad = parameter.grad_array(), None
                    parameter.data = parameter.array().astype(dtype)
                    parameter.grad = None if grad is None else grad.astype(dtype)
            for buffer in module._buffers.values():
                if buffer is not None and buffer.dtype.kind == "f":
                    buffer.data = buffer.array().astype(dtype)

    def float(self) -> Self:
        """Convert floating point values to float32."""
        return self.to(np.float32)

    def double(self) -> Self:
        """Convert floating point values to float64."""
        return self.to(np.float64)

    def half(self) -> Self:
        """There is no float16: a TypeError."""
        return self.to(np.float16)

    def bfloat16(self) -> Self:
        """There is no bfloat16: a TypeError."""
        return self.to(dtype="bfloat16")

    def cpu(self) -> Self:
        """The module itself, which is on the CPU."""
        return self

    def cuda(self, device: Any = None) -> Self:
        """There is no GPU: a RuntimeError."""
        return self.to(device="cuda" if device is None else device)
