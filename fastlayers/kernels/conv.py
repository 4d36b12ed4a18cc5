"""Two-dimensional convolution by im2col in blocks and GEMM, on channels-last arrays.

Arrays are C-contiguous: images (N, H, W, C), im2col rows (pixel, R*S*C) with the kernel's
columns and channels innermost. A `geometry` is the tuple
``(kernel, stride, padding, dilation, out_size)`` of (height, width) pairs, where padding is the
one before the first row and column. Only a block of im2col rows that stays in L2 exists at a time.
"""

from __future__ import annotations

import numpy as np

from fastlayers.kernels.gemm import gemm, pack, packed_size, panel_width, prepare_gemm
from fastlayers.kernels.layout import inside
from fastlayers.kernels.micro import add_run, clear_run, copy_run
from fastlayers.runtime.cache import kernel
from fastlayers.runtime.threads import parallel_for

__all__ = [
    "col2im",
    "conv2d",
    "conv2d_backward_input",
    "conv2d_backward_weight",
    "im2col",
    "pack_weight",
    "padded_row",
]


@kernel
def im2col(x, geometry, channels, first, count, out, out_at, out_row):
    """Copy the receptive fields of output pixels ``[first, first + count)`` to rows of `out`.

    Pixels are numbered through (N, OH, OW); ``channels = (first, count)`` picks a group. Row i
    starts at ``out[out_at + i * out_row]`` of the flat `out` and is ordered (R, S, C); cells in
    the padding are 0.
    """
    _, height, width, all_channels = x.shape
    (kh, kw), (sh, sw), (ph, pw), (dh, dw), (oh, ow) = geometry
    c0, depth = channels
    flat = x.reshape(x.size)
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
                copy_run(out, at + low * depth, flat, cell + low * depth, run)
                clear_run(out, at + high * depth, (kw - high) * depth)
            else:
                for s in range(kw):
                    if low <= s < high:
                        copy_run(out, at + s * depth, flat, cell + s * dw * all_channels, depth)
                    else:
                        clear_run(out, at + s * depth, depth)
            at += kw * depth
        n, i, j = _next_pixel(n, i, j, oh, ow)


@kernel
def col2im(columns, columns_at, columns_row, geometry, channels, first, count, x):
    """Add rows of receptive fields back onto the images `x`: the adjoint of `im2col`."""
    _, height, width, all_channels = x.shape
    (kh, kw), (sh, sw), (ph, pw), (dh, dw), (oh, ow) = geometry
    c0, depth = channels
    flat = x.reshape(x.size)
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
                    add_run(flat, cell + low * depth, columns, at + low * depth, run)
                else:
                    for s in range(low, high):
                        tap = cell + s * dw * all_channels
                        add_run(flat, tap, columns, at + s * depth, depth)
            at += kw * depth
        n, i, j = _next_pixel(n, i, j, oh, ow)


@kernel
def _next_pixel(n, i, j, oh, ow):
    if j + 1 < ow:
        return n, i, j + 1
    if i + 1 < oh:
        return n, i + 1, 0
    return n + 1, 0, 0


@kernel
def pack_weight(weight, groups, transposed, lanes, packed):
    """Pack a contiguous (M, C/G, R, S) weight as the GEMM's B, one group after the other.

    Forward wants (R*S*C, M) per group, the input's gradient its transpose.
    """
    m, depth, kh, kw = weight.shape
    k, taps, per_group = depth * kh * kw, kh * kw, m // groups
    rows = weight.reshape(m * k)
    if depth > 1 and taps > 1:  # (C, R, S) -> (R, S, C); otherwise both orders are the same
        source, rows = rows, np.empty_like(rows)
        for i in range(m):
            for t in range(taps):
                for c in range(depth):
                    rows[i * k + t * depth + c] = source[i * k + c * taps + t]
    # One call with chosen strides: each copy of the packing loops takes 0.5 s to compile.
    size = (per_group, k) if transposed else (k, per_group)
    strides = (k, 1) if transposed else (1, k)
    length = packed_size(size[0], size[1], lanes)
    for g in range(groups):
        source = (rows, g * per_group * k, strides[0], strides[1])
        pack(source, size[0], size[1], lanes, packed, g * length)


@kernel
def _conv2d_block(block, worker, x, packed, bias, geometry, groups, step, lanes, work, y):
    """Forward for one block of `step` output pixels."""
    (kh, kw), (sh, sw), (ph, pw), _, (oh, ow) = geometry
    pixels, m = y.shape
    first = block * step
    count = min(step, pixels - first)
    depth, per_group = x.shape[3] // groups, m // groups
    k = kh * kw * depth
    width, size = panel_width(per_group, lanes), packed_size(k, per_group, lanes)
    pointwise = kh * kw * sh * sw == 1 and (oh, ow) == x.shape[1:3] and ph == 0 and pw == 0
    for g in range(groups):
        if pointwise:
            a = (x.reshape(x.size), first * x.shape[3] + g * depth, x.shape[3], 1)
        else:
            im2col(x, geometry, (g * depth, depth), first, count, work, worker * step * k, k)
            a = (work, worker * step * k, k, 1)
        b = (packed, g * size, width * k, width)
        c = (y.reshape(y.size), first * m + g * per_group, m)
        gemm(count, per_group, k, a, b, (bias, g * per_group, 0), c, lanes)


@kernel
def conv2d(x, packed, bias, geometry, groups, step, lanes, workers, work, y):
    """Convolution: x (N, H, W, C), bias (M,), y (N*OH*OW, M); `packed` from `pack_weight`.

    `step` pixels a block; `work` holds ``workers * step * R*S*C/G`` elements.
    """
    prepare_gemm(y)
    blocks = (y.shape[0] + step - 1) // step
    arguments = (x, packed, bias, geometry, groups, step, lanes, work, y)
    parallel_for(_conv2d_block, blocks, workers, arguments)


@kernel
def _backward_input_image(n, worker, dy, packed, geometry, groups, step, lanes, zeros, work, dx):
    """Input gradient of one image: receptive fields' gradients by GEMM, added up by col2im."""
    (kh, kw), _, _, _, (oh, ow) = geometry
    m, depth = dy.shape[1], dx.shape[3] // groups
    per_group, k = m // groups, kh * kw * depth
    width, size = panel_width(k, lanes), packed_size(per_group, k, lanes)
    dx[n] = 0
    flat = dy.reshape(dy.size)
    for first in range(n * oh * ow, (n + 1) * oh * ow, step):
        count = min(step, (n + 1) * oh * ow - first)
        for g in range(groups):
            a = (flat, first * m + g * per_group, m, 1)
            b = (packed, g * size, width * per_group, width)
            at = worker * step * k
            gemm(count, k, per_group, a, b, (zeros, 0, 0), (work, at, k), lanes)
            col2im(work, at, k, geometry, (g * depth, depth), first, count, dx)


@kernel
def conv2d_backward_input(dy, packed, geometry, groups, step, lanes, zeros, workers, work, dx):
    """Input gradient: dy (N*OH*OW, M), dx (N, H, W, C); `packed` is the transposed weight.

    `zeros` holds R*S*C/G zeros, `work` ``workers * step * R*S*C/G`` elements.
    """
    prepare_gemm(dx)
    arguments = (dy, packed, geometry, groups, step, lanes, zeros, work, dx)
    parallel_for(_backward_input_image, dx.shape[0], workers, arguments)


@kernel
def _backward_weight_chunk(chunk, worker, x, dy, geometry, groups, step, span, lanes, work, parts):
    """Weight gradient of pixels ``[chunk * span, (chunk + 1) * span)``, into its row of `parts`."""
    kh, kw = geometry[0]
    pixels, m = dy.shape
    depth, per_group = x.shape[3] // groups, m // groups
    k = kh * kw * depth
    row = padded_row(k, lanes)
    at, out = worker * step * row, chunk * m * k
    width = panel_width(k, lanes)
    flat, sums = dy.reshape(dy.size), parts.reshape(parts.size)
    parts[chunk] = 0
    for first in range(chunk * span, min((chunk + 1) * span, pixels), step):
        count = min(step, (chunk + 1) * span - first, pixels - first)
        for g in range(groups):
            im2col(x, geometry, (g * depth, depth), first, count, work, at, row)
            a = (flat, first * m + g * per_group, 1, m)
            c = (sums, out + g * per_group * k, k)
            gemm(per_group, k, count, a, (work, at, width, row), c, c, lanes)


@kernel
def padded_row(k, lanes):
    """Row length of im2col when it is the GEMM's B: whole panels, of which the last is read."""
    width = panel_width(k, lanes)
    return (k + width - 1) // width * width


@kernel
def _sum_parts(m, worker, parts, dw):
    """Add the chunks of one output channel in order, and turn (R, S, C) into (C, R, S)."""
    channels, depth, kh, kw = dw.shape
    taps = kh * kw
    k = taps * depth
    sums, out = parts.reshape(parts.size), dw.reshape(dw.size)
    for chunk in range(1, parts.shape[0]):
        add_run(sums, m * k, sums, (chunk * channels + m) * k, k)
    for t in range(taps):
        for c in range(depth):
            out[m * k + c * taps + t] = sums[m * k + t * depth + c]


@kernel
def conv2d_backward_weight(x, dy, geometry, groups, step, span, lanes, workers, work, parts, dw):
    """Weight gradient (M, C/G, R, S) of x (N, H, W, C) and dy (N*OH*OW, M).

    Each chunk of `span` pixels has a row of M*R*S*C/G in `parts`, so the order of additions, and
    with it every bit of the result, is the same for any number of threads.
    `work` holds ``workers * step * padded_row(R*S*C/G)`` elements.
    """
    prepare_gemm(dw)
    arguments = (x, dy, geometry, groups, step, span, lanes, work, parts)
    parallel_for(_backward_weight_chunk, parts.shape[0], workers, arguments)
    parallel_for(_sum_parts, dw.shape[0], workers, (parts, dw))
