"""Receptive fields as rows of a matrix, and their adjoint, on channels-last images.

The library's own convolutions read the images themselves (`kernels/conv/direct.py`); these are for
kernels of your own that need the rows. Rows are (pixel, R*S*C) with the kernel's columns and
channels innermost. A `geometry` is the tuple ``(kernel, stride, padding, dilation, out_size)`` of
(height, width) pairs, where padding is the one before the first row and column.
"""

from __future__ import annotations

from fastlayers.kernels.ir.runs import add_run, clear_run, copy_run, flat
from fastlayers.kernels.layout import inside
from fastlayers.runtime.cache import kernel

__all__ = ["col2im", "im2col"]


@kernel
def im2col(x, geometry, channels, first, count, out, out_at, out_row):
    """Copy the receptive fields of output pixels ``[first, first + count)`` to rows of `out`.

    Pixels are numbered through (N, OH, OW); ``channels = (first, count)`` picks a group. Row i
    starts at ``out[out_at + i * out_row]`` of the flat `out` and is ordered (R, S, C); cells in
    the padding are 0.
    """
    image = flat(x)
    _, height, width, all_channels = x.shape
    (kh, kw), (sh, sw), (ph, pw), (dh, dw), (oh, ow) = geometry
    c0, depth = channels
    n, rest = divmod(first, oh * ow)
    i, j = divmod(rest, ow)
    for row in range(count):
        at = out_at + row * out_row
        low, high = inside(j * sw - pw, dw, kw, width)
        for r in range(kh):
            y = i * sh - ph + r * dh
            cell = ((n * height + y) * width + j * sw - pw) * all_channels + c0
            if y < 0 or y >= height:
                clear_run(out, at, kw * depth)
            elif dw == 1 and depth == all_channels:  # the kernel's row is one contiguous run
                clear_run(out, at, low * depth)
                run = (high - low) * depth
                copy_run(out, at + low * depth, image, cell + low * depth, run)
                clear_run(out, at + high * depth, (kw - high) * depth)
            else:
                for s in range(kw):
                    if low <= s < high:
                        copy_run(out, at + s * depth, image, cell + s * dw * all_channels, depth)
                    else:
                        clear_run(out, at + s * depth, depth)
            at += kw * depth
        n, i, j = _next_pixel(n, i, j, oh, ow)


@kernel
def col2im(columns, columns_at, columns_row, geometry, channels, first, count, x):
    """Add rows of receptive fields back onto the images `x`: the adjoint of `im2col`."""
    image = flat(x)
    _, height, width, all_channels = x.shape
    (kh, kw), (sh, sw), (ph, pw), (dh, dw), (oh, ow) = geometry
    c0, depth = channels
    n, rest = divmod(first, oh * ow)
    i, j = divmod(rest, ow)
    for row in range(count):
        at = columns_at + row * columns_row
        low, high = inside(j * sw - pw, dw, kw, width)
        for r in range(kh):
            y = i * sh - ph + r * dh
            cell = ((n * height + y) * width + j * sw - pw) * all_channels + c0
            if 0 <= y < height:
                if dw == 1 and depth == all_channels:
                    run = (high - low) * depth
                    add_run(image, cell + low * depth, columns, at + low * depth, run)
                else:
                    for s in range(low, high):
                        tap = cell + s * dw * all_channels
                        add_run(image, tap, columns, at + s * depth, depth)
            at += kw * depth
        n, i, j = _next_pixel(n, i, j, oh, ow)


@kernel
def _next_pixel(n, i, j, oh, ow):
    if j + 1 < ow:
        return n, i, j + 1
    if i + 1 < oh:
        return n, i + 1, 0
    return n + 1, 0, 0
