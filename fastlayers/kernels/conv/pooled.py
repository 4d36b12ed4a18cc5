"""Convolution with ReLU and max pooling, of images whose output stays in L2, and its gradients.

A max pooling passes gradients to one cell of each window. So each of its outputs stands for one
pixel of the convolution, and both gradients need the products of the pooled outputs only: for
windows of 2x2 a quarter of those of the convolution. The cells of a window see a common field of
the padded image, of which the receptive field of each is a part:

    dw[m, r, s, c] = sum over p of g[p, m] * field(p)[offset(cell[p, m]) + (r, s, c)]
    field(p) += sum over m of g[p, m] * (weight m, moved to its place for cell[p, m])
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from fastlayers.kernels.conv.padded import Images, load_image
from fastlayers.kernels.conv.pooled_tile import PooledGradients, Sums, add_fields, mix_rows
from fastlayers.kernels.gemm.gemm import gemm, panel_width, prepare_gemm
from fastlayers.kernels.gemm.operands import STORE, Bias, Epilogue, Left, Right, Size, Target
from fastlayers.kernels.ir.lanes import lanes_of
from fastlayers.kernels.ir.named import named
from fastlayers.kernels.ir.runs import add_run, clear_run, copy_run, no_table
from fastlayers.kernels.layout import inside
from fastlayers.kernels.pool.windows import max_window
from fastlayers.kernels.reduce import add_rows, sum_workers
from fastlayers.runtime.cache import kernel
from fastlayers.runtime.parallel import parallel_for

__all__ = [
    "Call",
    "Facts",
    "GradientCall",
    "GradientFacts",
    "Taps",
    "Window",
    "conv2d_max_pool2d",
    "conv2d_max_pool2d_backward",
]

NO_FLOOR = math.nan  # the convolution has applied the ReLU


class Window(NamedTuple):
    """A pooling window on the convolution's output."""

    rows: int
    columns: int
    row_step: int
    column_step: int
    top: int  # padding
    left: int
    row_gap: int  # dilation
    column_gap: int


class Facts(NamedTuple):
    """A convolution as the sum of products of runs of the image and of the packed weight."""

    images: Images
    image_count: int
    out_height: int
    out_width: int
    filters: int
    window: Window
    pooled_height: int
    pooled_width: int
    run_length: int
    pixels: Any  # tables of offsets: of the output's pixels in the image, and of the runs
    image_runs: Any
    weight_runs: Any
    packed: int  # elements of the packed weight, and of a worker behind it
    worker_elements: int


class Call(NamedTuple):
    """What changes from call to call."""

    channels_first: bool
    floor: float
    workers: int


@kernel
def _pack_panel(panel, worker, weight, facts, packed):
    """Panel of the weight (M, C, R*S) as columns of a matrix of rows (tap, channel)."""
    m, depth = facts.filters, facts.images.channels
    taps, width = weight.size // (m * depth), panel_width(m, lanes_of(packed))
    at = panel * width * depth * taps
    for tap in range(taps):
        for c in range(depth):
            for j in range(width):
                k = min(panel * width + j, m - 1)  # what is beyond is not stored
                packed[at + (tap * depth + c) * width + j] = weight[(k * depth + c) * taps + tap]


@kernel
def _pooled_image(n, worker, inputs, facts, call, work, outputs):
    """One image: its convolution goes to memory that stays in L2, and is pooled from there."""
    x, bias = inputs
    pixels, m = facts.out_height * facts.out_width, facts.filters
    runs, length = facts.weight_runs, facts.run_length
    width = panel_width(m, lanes_of(work))
    at = facts.packed + worker * facts.worker_elements
    image = at + facts.images.elements
    load_image(x, n, call.channels_first, facts.images, work, at)
    a = Left(work, at, 0, 1, facts.pixels, facts.image_runs)
    b = Right(work, 0, runs.size * length * width, width, runs)
    c, epilogue = Target(work, image, m, no_table()), Epilogue(call.floor, 0, STORE)
    gemm(Size(pixels, m, runs.size, length), a, b, Bias(bias, 0), c, epilogue)
    y, cells = outputs
    window, oh, ow, line = facts.window, facts.out_height, facts.out_width, facts.pooled_width * m
    for i in range(facts.pooled_height):
        top = i * window.row_step - window.top
        r0, r1 = inside(top, window.row_gap, window.rows, oh)
        for j in range(facts.pooled_width):
            left = j * window.column_step - window.left
            s0, s1 = inside(left, window.column_gap, window.columns, ow)
            first, out = image + (top * ow + left) * m, (n * facts.pooled_height + i) * line + j * m
            rows = (r0, r1, window.row_gap * ow * m)
            columns = (s0, s1, window.column_gap * m, window.columns)
            max_window((y, cells, out), (work, first), rows, columns, m, NO_FLOOR)


@kernel
def conv2d_max_pool2d(x, weight, bias, facts, call, work, y, cells):
    """``y = max_pool2d(max(floor, bias + x * weight))`` and the cells of the maxima; flat arrays.

    `facts` are `Facts`, `call` is a `Call`; the weight is packed to the begin of `work`.
    """
    facts, call = named(Facts, facts), named(Call, call)
    prepare_gemm(y)
    width = panel_width(facts.filters, lanes_of(work))
    panels = (facts.filters + width - 1) // width
    parallel_for(_pack_panel, panels, min(call.workers, panels), (weight, facts, work))
    arguments = ((x, bias), facts, call, work, (y, cells))
    parallel_for(_pooled_image, facts.image_count, call.workers, arguments)


class Taps(NamedTuple):
    """A kernel of which `Sums` has as many rows and vectors as stay in registers."""

    rows: int
    columns: int
    steps: int  # in which all of its rows are gone through


class Field(NamedTuple):
    """What all cells of a window see of an image, and the table of offsets.

    The table has those of the pooled outputs' fields in an image, then those of the cells in an
    image, then those of the cells in a copy of the field.
    """

    rows: int
    row_elements: int
    cell_count: int
    pooled_count: int  # pooled outputs of an image
    table: Any
    steps: int  # in which all vectors of a field are gone through


class Places(NamedTuple):
    """Where in the workspace, behind the partial sums, the kernel keeps what; in elements."""

    chunk_sums: int  # of one chunk
    placed: int  # the weight, moved to its place for each cell
    workers: int
    worker_elements: int


class GradientFacts(NamedTuple):
    """Gradients of a convolution by those of the max pooling that follows."""

    sums: Sums
    images: Images
    image_count: int
    filters: int
    taps: Taps
    field: Field
    chunks: int
    places: Places


class GradientCall(NamedTuple):
    """What changes from call to call."""

    channels_first: bool
    relu: bool
    by_input: bool
    by_weight: bool
    workers: int


@kernel
def _place_filter(k, worker, weight, sizes, facts, work):
    """A filter as (cell, field), each where its window's cell sees it.

    ``sizes = (channels, elements of a placed field)``. The worker's memory has room for the filter
    with its channels innermost.
    """
    depth, row = sizes
    taps, field, places = facts.taps, facts.field, facts.places
    cells_at = field.pooled_count + field.cell_count
    count, length = taps.rows * taps.columns, taps.columns * depth
    by_tap = places.workers + worker * places.worker_elements
    for c in range(depth):
        for tap in range(count):
            work[by_tap + tap * depth + c] = weight[(k * depth + c) * count + tap]
    for cell in range(field.cell_count):
        at = places.placed + (k * field.cell_count + cell) * row
        clear_run(work, at, row)
        for r in range(taps.rows):
            place = at + field.table[cells_at + cell] + r * field.row_elements
            copy_run(work, place, work, by_tap + r * length, length)


@kernel
def _gradients_chunk(chunk, worker, outputs, x, facts, call, work, dx):
    """Gradients of one chunk of images; those by weight and bias are the chunk's partial sums.

    ``outputs = (dy, y, cells)``, of the pooling.
    """
    (dy, y, cells), places, count = outputs, facts.places, facts.image_count
    field, steps, m = facts.field, facts.taps.steps, facts.filters
    pitch, rows = facts.images.pitch * facts.images.channels, len(facts.sums.rows)
    size = rows * len(facts.sums.vectors) * lanes_of(work)
    sums, at = chunk * places.chunk_sums, places.workers + worker * places.worker_elements
    clear_run(work, sums, places.chunk_sums)
    for n in range(count * chunk // facts.chunks, count * (chunk + 1) // facts.chunks):
        if call.by_weight:
            load_image(x, n, call.channels_first, facts.images, work, at)
            first = n * field.pooled_count * m
            for k in range(m):
                gradients = PooledGradients(dy, y, cells, first + k, m, call.relu, field.cell_count)
                for step in range(steps):
                    total = add_fields(
                        facts.sums,
                        field.pooled_count,
                        gradients,
                        (field.table, 0, field.pooled_count),
                        (work, at + step * rows * pitch, pitch),
                        (work, sums + (k * steps + step) * size),
                    )
                    if step == 0:
                        work[sums + m * steps * size + k] += total
        if call.by_input:
            _input_gradient(n, outputs, facts, call.relu, work, at + facts.images.elements, dx)


@kernel
def _input_gradient(n, outputs, facts, relu, work, image, dx):
    """Input gradient of an image, summed at ``work[image]`` with its padding."""
    dy, y, cells = outputs
    images, field, m = facts.images, facts.field, facts.filters
    pitch, width = images.pitch * images.channels, images.width * images.channels
    mixed = len(facts.sums.field_vectors) * lanes_of(work)
    first, block = n * field.pooled_count * m, image + images.elements
    clear_run(work, image, images.elements)
    for p in range(field.pooled_count):
        gradients = PooledGradients(dy, y, cells, first + p * m, 1, relu, field.cell_count)
        for step in range(field.steps):
            rows = (work, facts.places.placed + step * mixed, field.steps * mixed)
            mix_rows(facts.sums, m, gradients, rows, (work, block + step * mixed))
        for r in range(field.rows):
            place = image + field.table[p] + r * pitch
            add_run(work, place, work, block + r * field.row_elements, field.row_elements)
    for row in range(images.height):
        source = image + (row + images.top) * pitch + images.left * images.channels
        copy_run(dx, (n * images.height + row) * width, work, source, width)


@kernel
def _unpack_sums(k, worker, taps, sizes, work, dw, db):
    """One filter's weight (M, C, R, S) and bias gradients of the first chunk's sums.

    ``sizes = (channels, elements of a row of sums, of a filter's sums)``.
    """
    depth, row, size = sizes
    for r in range(taps.rows):
        for s in range(taps.columns):
            for c in range(depth):
                place = ((k * depth + c) * taps.rows + r) * taps.columns + s
                dw[place] = work[k * size + r * row + s * depth + c]
    db[k] = work[db.size * size + k]


@kernel
def conv2d_max_pool2d_backward(outputs, x, weight, facts, call, work, dx, weight_gradients):
    """Gradients of ``max_pool2d(relu(conv2d(x)))`` by x, weight and bias; all arrays are flat.

    ``outputs = (dy, y, cells)``, channels-last (N, PH, PW, M), and ``weight_gradients = (dw, db)``.
    `facts` are `GradientFacts` and `call` is a `GradientCall`.
    """
    facts, call = named(GradientFacts, facts), named(GradientCall, call)
    depth, filters, taps = facts.images.channels, facts.filters, facts.taps
    if call.by_input:
        placed = facts.field.steps * len(facts.sums.field_vectors) * lanes_of(work)
        few = sum_workers(filters * facts.field.cell_count * placed, call.workers)
        arguments = (weight, (depth, placed), facts, work)
        parallel_for(_place_filter, filters, few, arguments)
    images = (outputs, x, facts, call, work, dx)
    parallel_for(_gradients_chunk, facts.chunks, call.workers, images)
    if not call.by_weight:
        return
    size = facts.places.chunk_sums
    add_rows(work, size, facts.chunks, call.workers)
    dw, db = weight_gradients
    row = len(facts.sums.vectors) * lanes_of(work)
    sizes = (depth, row, taps.steps * len(facts.sums.rows) * row)
    few = sum_workers(size, call.workers)
    parallel_for(_unpack_sums, filters, few, (taps, sizes, work, dw, db))
