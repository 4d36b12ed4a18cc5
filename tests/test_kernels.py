"""Kernels as a user's own compiled code calls them."""

import numpy as np
from numba import njit

from fastlayers import kernels, reference

im2col, col2im = kernels.im2col, kernels.col2im

# kernel, stride, padding, dilation, output size
GEOMETRY = ((3, 2), (1, 2), (1, 0), (1, 1), (5, 3))
PIXELS = 2 * 5 * 3
K = 3 * 2 * 4


@njit
def columns_of(x, geometry, pixels, k):
    out = np.empty(pixels * k, x.dtype)
    im2col(x, geometry, (0, x.shape[3]), 0, pixels, out, 0, k)
    return out.reshape(pixels, k)


@njit
def images_of(columns, geometry, shape):
    x = np.zeros(shape, columns.dtype)
    pixels, k = columns.shape
    col2im(columns.reshape(columns.size), 0, k, geometry, (0, shape[3]), 0, pixels, x)
    return x


def test_convolution_by_im2col():
    generator = np.random.default_rng(0)
    x = generator.integers(-8, 8, (2, 5, 6, 4)).astype(np.float32)
    weight = generator.integers(-8, 8, (7, 4, 3, 2)).astype(np.float32)
    columns = columns_of(x, GEOMETRY, PIXELS, K)
    y = (columns @ weight.transpose(2, 3, 1, 0).reshape(K, 7)).reshape(2, 5, 3, 7)
    expected = reference.conv2d(x.transpose(0, 3, 1, 2), weight, None, (1, 2), (1, 0))
    assert np.array_equal(y.transpose(0, 3, 1, 2), expected)


def test_col2im_is_the_adjoint_of_im2col():
    generator = np.random.default_rng(0)
    x = generator.integers(-8, 8, (2, 5, 6, 4)).astype(np.float64)
    columns = generator.integers(-8, 8, (PIXELS, K)).astype(np.float64)
    forward = columns_of(x, GEOMETRY, PIXELS, K)
    assert np.vdot(forward, columns) == np.vdot(x, images_of(columns, GEOMETRY, x.shape))
