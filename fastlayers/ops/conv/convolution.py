"""A convolution of given shapes and options: checked once, and kept with its algorithms."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from fastlayers.ops import check
from fastlayers.ops.conv import routes
from fastlayers.ops.conv.algorithm import Algorithm, Grads, Pass
from fastlayers.ops.conv.shape import conv_shape
from fastlayers.ops.layout import from_channels_last, kernel_ready, to_channels_last
from fastlayers.ops.reduce import column_sums
from fastlayers.runtime import memory

__all__ = ["Convolution", "Grads", "Padding", "prepare"]

Padding = int | Sequence[int] | str
_FLOATS = (np.dtype(np.float32), np.dtype(np.float64))


class Convolution:
    """Checked shapes and options of a call, and the algorithms that serve it."""

    def __init__(
        self,
        op: str,
        images: tuple[int, ...],
        weight: tuple[int, ...],
        dtype: np.dtype,
        stride: Any,
        padding: Any,
        dilation: Any,
        groups: Any,
        algorithm: Any,
    ) -> None:
        check.one_of(op, "algorithm", algorithm, routes.ALGORITHMS)
        stride = check.pair(op, "stride", stride, 1)
        dilation = check.pair(op, "dilation", dilation, 1)
        groups = check.integer(op, "groups", groups, 1)
        if isinstance(padding, str):
            check.one_of(op, "padding", padding, ("same", "valid"))
            if padding == "same" and stride != (1, 1):
                raise ValueError(f"{op}: padding 'same' needs a stride of 1, got stride {stride}")
        else:
            padding = check.pair(op, "padding", padding, 0)
        n, c, h, w = images if len(images) == 4 else (1, *images)
        m, depth, kh, kw = weight
        options = (stride, padding, dilation, groups, dtype.itemsize)
        shape = self.shape = conv_shape(op, (n, c, h, w), (m, depth, kh, kw), *options)
        routes.check(op, shape, algorithm)
        self.unbatched = len(images) == 3
        self.out_shape = shape.out_shape[1:] if self.unbatched else shape.out_shape
        self.zeros = np.zeros(m, dtype)  # for no bias; nobody writes to them
        self.choice = algorithm
        self.algorithms = routes.algorithms(shape, algorithm)
        # Whether its forward pass reads images in the layout that they come in.
        self.any_layout = self.algorithms.forward.any_layout

    def algorithm(self, which: Pass) -> Algorithm:
        """The algorithm that serves a pass."""
        served: Algorithm = getattr(self.algorithms, which)
        return served

    def reasons(self) -> list[tuple[str, str, str]]:
        """Each pass, what computes it, and why."""
        return routes.reasons(self.shape, self.algorithms, self.choice)

    def bias(self, op: str, bias: Any) -> np.ndarray:
        """The bias as kernels take it, zeros for None."""
        zeros = self.zeros
        if bias is None:
            return zeros
        if type(bias) is np.ndarray and bias.dtype is zeros.dtype and bias.shape == zeros.shape:
            return bias if bias.flags.carray else kernel_ready(bias)
        return memory.writable_view(check.vector(op, "bias", bias, len(zeros), zeros.dtype))

    def forward(
        self, input: np.ndarray, weight: np.ndarray, bias: np.ndarray, relu: bool
    ) -> np.ndarray:
        """Output of arrays that were checked."""
        if not input.size:  # there are no images, and maybe no pixels that plans could cut
            return memory.empty(self.out_shape, input.dtype)
        x = input[None] if self.unbatched else input
        w = weight if weight.flags.carray else kernel_ready(weight)
        y = from_channels_last(self.algorithms.forward.forward(x, w, bias, relu))
        return y[0] if self.unbatched else y

    def backward(
        self,
        grad_output: np.ndarray,
        input: np.ndarray,
        weight: np.ndarray,
        needs: tuple[bool, bool, bool],
    ) -> Grads:
        """Gradients of arrays that were checked."""
        if not input.size:
            shapes = (input.shape, weight.shape, weight.shape[:1])
            wanted = zip(shapes, needs, strict=True)
            dx, dw, db = (memory.zeros(s, input.dtype) if need else None for s, need in wanted)
            return dx, dw, db
        if self.algorithms.backward:
            return self.algorithms.backward.backward(grad_output, input, weight, needs)
        if self.unbatched:
            grad_output, input = grad_output[None], input[None]
        dx = dw = db = None
        dy = to_channels_last(grad_output)
        if needs[0]:
            dx = self.algorithms.backward_input.backward_input(dy, kernel_ready(weight))
            dx = from_channels_last(dx)
            dx = dx[0] if self.unbatched else dx
        if needs[1]:
            dw, db = self.algorithms.backward_weight.backward_weight(input, dy)
        if needs[2] and db is None:
            db = column_sums(dy.reshape(self.shape.pixels, self.shape.out_channels))
        return dx, dw, db if needs[2] else None


@functools.lru_cache(maxsize=1024, typed=True)
def _known(*arguments: Any) -> Convolution:
    return Convolution("conv2d", *arguments)


def prepare(
    op: str,
    input: Any,
    weight: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: Any,
    algorithm: Any,
) -> tuple[np.ndarray, np.ndarray, Convolution]:
    """Check a call's arguments; the arrays, and what follows from shapes and options."""
    if not (
        type(input) is type(weight) is np.ndarray
        and input.dtype is weight.dtype
        and input.dtype in _FLOATS
        and weight.ndim == 4
        and 3 <= input.ndim <= 4
    ):  # the checks in detail take 1.5 us
        input = check.array(op, "input", input, (3, 4))
        weight = check.array(op, "weight", weight, (4,))
        check.same_dtype(op, "weight", weight, input.dtype)
    sizes = (input.shape, weight.shape, input.dtype, stride, padding, dilation, groups, algorithm)
    try:
        return input, weight, _known(*sizes)
    except (MemoryError, TypeError, ValueError):  # told in the op's name; or lists have no hash
        return input, weight, Convolution(op, *sizes)
