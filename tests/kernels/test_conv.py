"""The weight as direct convolution reads it."""

import numpy as np
import pytest

from fastlayers.kernels.conv import direct
from fastlayers.kernels.gemm.gemm import panel_width
from fastlayers.ops.conv.gather import Gather
from fastlayers.ops.conv.slabs import backward_axis, forward_axis
from fastlayers.runtime import cpu

SIZE = 11


def operands(weight, groups, stride, transposed):
    """The GEMM operands (k, columns) of all groups, of the phases one below the other."""
    m, depth, kh, kw = weight.shape
    grouped = weight.reshape(groups, m // groups, depth, kh, kw)
    if not transposed:
        return grouped.transpose(0, 3, 4, 2, 1).reshape(groups, kh * kw * depth, -1)
    taps = [
        grouped[:, :, :, r, s]
        for i in range(stride)
        for j in range(stride)
        for r in reversed(range(kh))
        for s in reversed(range(kw))
        if (i - r) % stride == (j - s) % stride == 0
    ]
    return np.concatenate(taps, axis=1)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("kernel", [(1, 1), (3, 3), (1, 2), (5, 4)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_pack_weight(dtype, kernel, stride, transposed):
    lanes = cpu.lanes(np.dtype(dtype).itemsize)
    make = backward_axis if transposed else forward_axis
    for groups, m, depth in [
        (1, 1, 1),
        (1, 3, 5),
        (2, 7, 9),
        (1, 33, 16),
        (3, 17, 40),
        (1, 72, 65),
    ]:
        shape = (groups * m, depth, *kernel)
        weight = np.random.default_rng(0).standard_normal(shape).astype(dtype)
        axes = [make(SIZE, (SIZE - k) // stride + 1, k, stride, 0, 1) for k in kernel]
        channels = groups * (m if transposed else depth)
        images = (1, *(axis.size for axis in axes), channels)
        plan = Gather(images, *axes, shape, groups, weight.itemsize, transposed)
        memory = np.full(plan.packed_size + 64, np.nan, dtype)
        packed = memory[: plan.packed_size]
        direct.pack_weight(weight.reshape(-1), plan.packing, 1, packed)

        want = operands(weight, groups, stride, transposed)
        width = panel_width(want.shape[2], lanes)
        padding = -want.shape[2] % width
        want = np.pad(want, ((0, 0), (0, 0), (0, padding)))
        want = want.reshape(groups, want.shape[1], -1, width).transpose(0, 2, 1, 3)
        np.testing.assert_array_equal(packed, want.ravel())
        assert np.isnan(memory[plan.packed_size :]).all()
