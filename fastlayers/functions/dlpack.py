"""Memory shared with other libraries' tensors, by DLPack.

https://dmlc.github.io/dlpack/latest/python_spec.html
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastlayers.autograd.tensor import Tensor
from fastlayers.functions.registry import method
from fastlayers.ops import check

__all__ = ["from_dlpack", "to_dlpack"]


def _dlpack(
    self: Tensor,
    *,
    stream: Any = None,
    max_version: tuple[int, int] | None = None,
    dl_device: tuple[Any, int] | None = None,
    copy: bool | None = None,
) -> Any:
    """The capsule of the tensor's memory, for another library's `from_dlpack`.

    A copy is exported for negative strides, which many libraries can't read, and for read-only
    memory if the library knows no read-only flag (before DLPack 1.0).

    Raises
    ------
    BufferError
        If the tensor requires a gradient; if a copy is needed but `copy` is False, or another
        device is requested.
    """
    if self.requires_grad:
        raise BufferError(
            "__dlpack__: the tensor must not require a gradient, got one that does (can't export "
            "tensors that require gradient, use tensor.detach())"
        )
    array = self.settled()
    knows_flag = max_version is not None and max_version[0] >= 1
    plain = all(step >= 0 for step in array.strides)
    if not (plain and (array.flags.writeable or knows_flag)):
        if copy is False:
            raise BufferError(
                "__dlpack__: copy must be None or True for a tensor of negative strides or "
                "read-only memory, got False"
            )
        array = array.copy()
    return array.__dlpack__(stream=stream, max_version=max_version, dl_device=dl_device, copy=copy)


def _dlpack_device(self: Tensor) -> tuple[int, int]:
    """The kind of the device and its number: the CPU."""
    return self.settled().__dlpack_device__()


def from_dlpack(ext_tensor: Any, *, device: Any = None, copy: bool | None = None) -> Tensor:
    """A tensor on the memory of another library's tensor or array.

    Parameters
    ----------
    ext_tensor : object with ``__dlpack__``
        On the CPU. If its memory is read-only, or this is unknown, the tensor can't be changed.
    device : str or device, optional
        Must be the CPU.
    copy : bool, optional
        Whether to copy; by default only where it can't be shared.

    Raises
    ------
    TypeError
        If it has no ``__dlpack__``.
    BufferError, RuntimeError
        If it is on another device.
    """
    check.device("from_dlpack", device)
    if not hasattr(ext_tensor, "__dlpack__"):
        raise TypeError(
            f"from_dlpack: ext_tensor must have __dlpack__, got {type(ext_tensor).__name__}"
        )
    out = Tensor(np.from_dlpack(ext_tensor, copy=copy))
    if isinstance(ext_tensor, Tensor) and np.may_share_memory(out.array(), ext_tensor.array()):
        out._storage = ext_tensor.storage  # so that changes through it are counted
    return out


def to_dlpack(tensor: Tensor) -> Any:
    """The capsule of a tensor's memory, without a read-only flag."""
    return _dlpack(tensor)


method(_dlpack, "__dlpack__")
method(_dlpack_device, "__dlpack_device__")
