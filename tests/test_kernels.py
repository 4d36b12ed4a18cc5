"""Kernels as a user's own compiled code calls them."""

import numpy as np
import pytest
from numba import njit

from fastlayers import kernels, reference
from fastlayers.reference.windows import add_windows, pad, windows

im2col, col2im = kernels.im2col, kernels.col2im

SIZE = (5, 6, 4)
# Kernel, stride, padding and dilation, of (height, width): a square one, taps in the padding alone,
# each dilation with and without.
WINDOWS = (
    ((3, 2), (1, 2), (1, 0), (1, 1)),
    ((2, 3), (2, 1), (0, 1), (1, 2)),
    ((2, 2), (1, 1), (3, 2), (2, 1)),
    ((1, 1), (2, 3), (0, 0), (1, 1)),
    ((3, 3), (1, 1), (2, 2), (2, 2)),
)
# First channel and number of them: all, and groups.
CHANNELS = ((0, 4), (0, 2), (1, 2), (3, 1))
# Elements before the first row, and of a row beyond the receptive field.
BEFORE, BEYOND = 3, 2


@njit
def unfolded(x, geometry, channels, first, count, out, row):
    im2col(x, geometry, channels, first, count, out, BEFORE, row)


@njit
def folded(columns, geometry, channels, first, count, x, row):
    col2im(columns, BEFORE, row, geometry, channels, first, count, x)


def case(window, channels):
    """Give images, a geometry, and the receptive fields (pixels, R * S * C) by the reference."""
    kernel, stride, padding, dilation = window
    generator = np.random.default_rng(0)
    x = generator.integers(-8, 8, (2, *SIZE)).astype(np.float32)
    pads = tuple((p, p) for p in padding)
    part = x[..., channels[0] : sum(channels)].transpose(0, 3, 1, 2)
    cells = windows(pad(part, pads), kernel, stride, dilation)
    fields = cells.transpose(0, 4, 5, 2, 3, 1)
    pixels = cells.shape[-2:]
    return x, (*window, pixels), fields.reshape(2 * pixels[0] * pixels[1], -1)


@pytest.mark.parametrize("window", WINDOWS, ids=str)
@pytest.mark.parametrize("channels", CHANNELS, ids=str)
def test_im2col(window, channels):
    """Any range of the pixels, at any place of what it fills, and nothing beside it."""
    x, geometry, fields = case(window, channels)
    pixels, k = fields.shape
    for first, count in ((0, pixels), (1, pixels - 1), (pixels // 2 + 1, 3), (pixels - 1, 1)):
        count = min(count, pixels - first)
        out = np.full(BEFORE + pixels * (k + BEYOND), 99, np.float32)
        unfolded(x, geometry, channels, first, count, out, k + BEYOND)
        rows = out[BEFORE:].reshape(pixels, k + BEYOND)
        assert np.array_equal(rows[:count, :k], fields[first : first + count])
        assert (
            (out[:BEFORE] == 99).all() and (rows[:, k:] == 99).all() and (rows[count:] == 99).all()
        )


@pytest.mark.parametrize("window", WINDOWS, ids=str)
@pytest.mark.parametrize("channels", CHANNELS, ids=str)
def test_col2im(window, channels):
    """It adds each field to what its pixels hold, and touches no other channel."""
    x, geometry, fields = case(window, channels)
    pixels, k = fields.shape
    _, stride, (top, left), dilation, out_size = geometry
    height, width, _ = SIZE
    rows = np.zeros((pixels, k + BEYOND), np.float32)
    rows[:, :k] = fields + 1
    flat = np.concatenate([np.zeros(BEFORE, np.float32), rows.ravel()])
    for first, count in ((0, pixels), (pixels // 3, pixels // 2)):
        padded = np.zeros((2, channels[1], height + 2 * top, width + 2 * left))
        kept = np.zeros_like(fields)
        kept[first : first + count] = rows[:count, :k]
        shape = (2, *out_size, *window[0], channels[1])
        add_windows(padded, kept.reshape(shape).transpose(0, 5, 3, 4, 1, 2), stride, dilation)
        expected = x.copy()
        inside = padded[..., top : top + height, left : left + width].transpose(0, 2, 3, 1)
        expected[..., channels[0] : sum(channels)] += inside
        given = x.copy()
        folded(flat, geometry, channels, first, count, given, k + BEYOND)
        assert np.array_equal(given, expected)


def test_convolution_by_im2col():
    window = WINDOWS[0]
    x, geometry, _ = case(window, (0, 4))
    weight = np.random.default_rng(1).integers(-8, 8, (7, 4, 3, 2)).astype(np.float32)
    pixels, k = 2 * geometry[4][0] * geometry[4][1], 3 * 2 * 4
    columns = np.empty(BEFORE + pixels * k, np.float32)
    unfolded(x, geometry, (0, 4), 0, pixels, columns, k)
    y = columns[BEFORE:].reshape(pixels, k) @ weight.transpose(2, 3, 1, 0).reshape(k, 7)
    expected = reference.conv2d(x.transpose(0, 3, 1, 2), weight, None, *window[1:3])
    assert np.array_equal(y.reshape(2, *geometry[4], 7).transpose(0, 3, 1, 2), expected)
