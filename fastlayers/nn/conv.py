"""Convolution layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fastlayers.autograd import Tensor
from fastlayers.nn import functional, init
from fastlayers.nn.module import Module, Parameter
from fastlayers.ops import check, prepared

__all__ = ["Conv2d"]


class Conv2d(Module):
    """Convolution of images (N, C, H, W) or (C, H, W); see `fastlayers.ops.conv2d`.

    Parameters
    ----------
    in_channels, out_channels : int
    kernel_size, stride, dilation : int or (int, int)
    padding : int, (int, int), "same" or "valid"
    groups : int
    bias : bool
    padding_mode : {"zeros"}
    device : "cpu" or None
    dtype : dtype, optional
        float32 by default.
    algorithm : {"auto", "direct", "winograd"}
        See `fastlayers.ops.conv2d`; "direct" gives an image the same bits in every batch.

    Attributes
    ----------
    weight : Parameter
        (out_channels, in_channels / groups, kernel height, kernel width).
    bias : Parameter or None
        (out_channels,).

    Raises
    ------
    TypeError, ValueError
        For options that do not fit.

    References
    ----------
    https://docs.pytorch.org/docs/stable/generated/torch.nn.Conv2d.html
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] | str = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: Any = None,
        dtype: type | np.dtype | None = None,
        *,
        algorithm: str = "auto",
    ) -> None:
        super().__init__()
        check.device("Conv2d", device)
        in_channels = check.integer("Conv2d", "in_channels", in_channels, 1)
        out_channels = check.integer("Conv2d", "out_channels", out_channels, 1)
        groups = check.integer("Conv2d", "groups", groups, 1)
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.kernel_size = check.pair("Conv2d", "kernel_size", kernel_size, 1)
        self.stride = check.pair("Conv2d", "stride", stride, 1)
        self.dilation = check.pair("Conv2d", "dilation", dilation, 1)
        if in_channels % groups or out_channels % groups:
            raise ValueError(
                f"Conv2d: groups must divide in_channels {in_channels} and out_channels "
                f"{out_channels}, got {groups}"
            )
        if isinstance(padding, str):
            check.one_of("Conv2d", "padding", padding, ("same", "valid"))
            if padding == "same" and self.stride != (1, 1):
                raise ValueError(
                    f"Conv2d: padding 'same' needs a stride of 1, got stride {self.stride}"
                )
        self.padding = (
            padding if isinstance(padding, str) else check.pair("Conv2d", "padding", padding, 0)
        )
        check.one_of("Conv2d", "padding_mode", padding_mode, ("zeros",))
        check.one_of("Conv2d", "algorithm", algorithm, prepared.ALGORITHMS)
        self.algorithm = algorithm
        shape = (out_channels, in_channels // groups, *self.kernel_size)
        self.weight = Parameter(init.new("Conv2d", shape, dtype))
        values = Parameter(init.new("Conv2d", (out_channels,), dtype)) if bias else None
        self.register_parameter("bias", values)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw weight and bias again."""
        init.reset_affine(self.weight, self.bias)

    def forward(self, input: Any) -> Tensor:
        """Convolve the input."""
        return functional.conv2d(
            input,
            self.weight,
            self.bias,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
            algorithm=self.algorithm,
        )

    def extra_repr(self) -> str:
        """The options that differ from the defaults."""
        text = (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, "
            f"stride={self.stride}"
        )
        defaults = {"padding": (0, 0), "dilation": (1, 1), "groups": 1, "algorithm": "auto"}
        for name, default in defaults.items():
            value = getattr(self, name)
            if value != default:
                text += f", {name}={value}"
        return text if self.bias is not None else f"{text}, bias=False"
