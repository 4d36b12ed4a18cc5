"""Convolution of few channels a group, depthwise above all, on channels-last arrays.

Lanes run over channels: a vector holds `per_vector` whole groups, whose inputs are permuted to
the order in which the vector's output channels read them. `grouped_tile` has the tile and its
steps, `ops.conv.depthwise` makes the tables that tell where the taps of an output pixel lie.

``channels = (read, written, groups, per_vector, lanes)``.
``sizes = (input size, output size, input step, output step)``, pairs for height and width: row u
of a phase is row ``first + u * output step`` of the output and its taps are rows
``u * input step + delta`` of the input. Forward has one phase; the gradient by the input has one
for each remainder of its rows and columns by the stride, with the taps that fall on it.
``phases`` has rows ``(first row, first column, rows, columns, first step, last step, masks)``,
``deltas`` the delta of each step's row, `steps` is described by `correlate_tile`.
"""

from __future__ import annotations

from fastlayers.kernels.conv.grouped_tile import correlate_tile, weight_tile
from fastlayers.kernels.ir.runs import add_run, clear_run, prefetch_run
from fastlayers.runtime.cache import kernel
from fastlayers.runtime.parallel import parallel_for

__all__ = ["correlate", "correlate_weight", "pack_taps"]


@kernel
def pack_taps(weight, taps, swapped, channels, packed):
    """Pack a (M, C/G, R*S) weight as ``[vector][tap][lane]``.

    A row of `taps` is a cell of the kernel and a channel that is read, counted in its group.
    Channels are written for M, or with `swapped` for C: the gradient by the input.
    """
    m, depth, cells = weight.shape
    _, written, groups, per_vector, lanes = channels
    flat = weight.reshape(weight.size)
    each, vectors = written // groups, (groups + per_vector - 1) // per_vector
    # Strides of a group, of a channel written and of a channel read.
    group_stride, out_stride, in_stride = m // groups * depth * cells, depth * cells, cells
    if swapped:
        out_stride, in_stride = in_stride, out_stride
    count = taps.shape[0]
    for v in range(vectors):
        first = min(v * per_vector, groups - per_vector)
        at = v * count * lanes
        for lane in range(per_vector * each):
            g, c = lane // each, lane % each
            source = (first + g) * group_stride + c * out_stride
            for k in range(count):
                packed[at + k * lanes + lane] = flat[source + taps[k, 0] + taps[k, 1] * in_stride]
        for lane in range(per_vector * each, lanes):
            for k in range(count):
                packed[at + k * lanes + lane] = 0


@kernel
def _correlate_piece(
    task,
    worker,
    shape,
    x,
    packed,
    init,
    least,
    sizes,
    channels,
    phases,
    deltas,
    steps,
    order,
    rows_of,
    pixels,
    y,
):
    """One piece of an image, band by band, in all phases.

    Tiles go down a band, so most of their inputs are in L1. Pieces are whole images where there
    are many: two threads in neighbouring bands took each other's lines of y, twice as slow.
    """
    span, shuffled = shape
    (height, width), (out_height, out_width), (row_in, column_in), (row_out, column_out) = sizes
    read, written, groups, per_vector, lanes = channels
    each_in, each_out = read // groups, written // groups
    vectors = (groups + per_vector - 1) // per_vector
    vector_size = deltas.size * len(span) * lanes
    piece, band = rows_of
    pieces = (phases[0, 2] + piece - 1) // piece
    reach = deltas[deltas.size - 1] + 1 if deltas.size else 0  # no tap may meet any pixel
    n, top = task // pieces, task % pieces * piece
    for start in range(top, min(top + piece, phases[0, 2]), band):
        for phase in range(phases.shape[0]):
            i, j = phases[phase, 0], phases[phase, 1]
            rows, columns = phases[phase, 2], phases[phase, 3]
            first, last, masks = phases[phase, 4], phases[phase, 5], phases[phase, 6]
            x_row = (n * height + start * row_in) * width * read
            here = max(0, min(band, top + piece - start, rows - start))
            ahead = x_row + (reach + (here - 1) * row_in) * width * read
            share = row_in * width * read // (vectors * ((columns + pixels - 1) // pixels))
            for t in range(0, columns, pixels):
                for v in range(vectors):
                    group = min(v * per_vector, groups - per_vector)
                    for r in range(here):
                        u = start + r
                        # Not a function of its own: threads would contend for counts of references.
                        low, high = first, last
                        while low < high and u * row_in + deltas[low] < 0:
                            low += 1
                        while low < high and u * row_in + deltas[high - 1] >= height:
                            high -= 1
                        x_row = (n * height + u * row_in) * width * read
                        y_row = ((n * out_height + i + u * row_out) * out_width + j) * written
                        if phase == 0:
                            prefetch_run(x, ahead, share)
                            ahead += share
                        y_at = y_row + t * column_out * written + group * each_out
                        x_at = x_row + t * column_in * read + group * each_in
                        correlate_tile(
                            span,
                            shuffled,
                            (y, y_at, column_out * written, per_vector * each_out),
                            columns - t,
                            (init, group * each_out),
                            least,
                            (x, x_at, column_in * read, per_vector * each_in),
                            (steps, low, high, masks),
                            (packed, v * vector_size),
                            order,
                        )
                masks += last - first


@kernel
def correlate(
    shape,
    x,
    packed,
    init,
    least,
    sizes,
    channels,
    phases,
    deltas,
    steps,
    order,
    rows_of,
    pixels,
    images,
    workers,
    y,
):
    """``y = max(least, init + weights * x)`` for the taps of the tables; all arrays are flat.

    ``rows_of = (piece, band)``: the rows of a task, and of a band within it.
    """
    pieces = (phases[0, 2] + rows_of[0] - 1) // rows_of[0]
    arguments = (
        shape,
        x,
        packed,
        init,
        least,
        sizes,
        channels,
        phases,
        deltas,
        steps,
        order,
        rows_of,
        pixels,
        y,
    )
    parallel_for(_correlate_piece, images * pieces, workers, arguments)


@kernel
def _weight_chunk(
    chunk,
    worker,
    shape,
    x,
    dy,
    sizes,
    channels,
    phases,
    deltas,
    steps,
    order,
    rows,
    every,
    pixels,
    parts,
):
    """Sums over rows ``[chunk * rows, (chunk + 1) * rows)`` of all images."""
    span, shuffled = shape
    (height, width), (out_height, out_width), (row_in, column_in), _ = sizes
    read, written, groups, per_vector, lanes = channels
    each_in, each_out = read // groups, written // groups
    vectors = (groups + per_vector - 1) // per_vector
    size = parts.shape[1]
    flat = parts.reshape(parts.size)
    clear_run(flat, chunk * size, size)
    for row in range(chunk * rows, min((chunk + 1) * rows, every)):
        n, u = row // out_height, row % out_height
        low, high = 0, deltas.size
        while low < high and u * row_in + deltas[low] < 0:
            low += 1
        while low < high and u * row_in + deltas[high - 1] >= height:
            high -= 1
        x_row = (n * height + u * row_in) * width * read
        ahead = x_row + (deltas[deltas.size - 1] + 1) * width * read
        calls = vectors * ((out_width + pixels - 1) // pixels)
        share = row_in * width * read // calls
        yahead = (row + 1) * out_width * written
        yshare = out_width * written // calls
        for t in range(0, out_width, pixels):
            masks = phases[0, 6] + t // pixels * deltas.size
            for v in range(vectors):
                prefetch_run(x, ahead, share)
                ahead += share
                prefetch_run(dy, yahead, yshare)
                yahead += yshare
                group = min(v * per_vector, groups - per_vector)
                y_at = (row * out_width + t) * written + group * each_out
                x_at = x_row + t * column_in * read + group * each_in
                weight_tile(
                    span,
                    shuffled,
                    (dy, y_at, written, per_vector * each_out),
                    out_width - t,
                    (x, x_at, column_in * read, per_vector * each_in),
                    (steps, low, high, masks),
                    (flat, chunk * size + v * (size // vectors), size // vectors - lanes),
                    order,
                )


@kernel
def correlate_weight(
    shape,
    x,
    dy,
    taps,
    sizes,
    channels,
    phases,
    deltas,
    steps,
    order,
    rows,
    every,
    pixels,
    workers,
    parts,
    dw,
    db,
):
    """Gradients by weight (M, C/G, R*S) and bias (M,), of flat x and dy and forward tables.

    Each chunk of `rows` of the `every` rows of all images has a row of `parts`, which has one
    vector more than there are taps for each vector of channels: the sum of dy.
    """
    arguments = (
        shape,
        x,
        dy,
        sizes,
        channels,
        phases,
        deltas,
        steps,
        order,
        rows,
        every,
        pixels,
        parts,
    )
    parallel_for(_weight_chunk, parts.shape[0], workers, arguments)
    size = parts.shape[1]
    flat, out = parts.reshape(parts.size), dw.reshape(dw.size)
    for chunk in range(1, parts.shape[0]):
        add_run(flat, 0, flat, chunk * size, size)
    _, written, groups, per_vector, lanes = channels
    each = written // groups
    _, depth, cells = dw.shape
    for v in range((groups + per_vector - 1) // per_vector):
        first = min(v * per_vector, groups - per_vector) * each
        at = v * (taps.shape[0] + 1) * lanes
        for k in range(taps.shape[0]):
            for lane in range(per_vector * each):
                place = ((first + lane) * depth + taps[k, 1]) * cells + taps[k, 0]
                out[place] = flat[at + k * lanes + lane]
        at += taps.shape[0] * lanes
        for lane in range(per_vector * each):
            db[first + lane] = flat[at + lane]
