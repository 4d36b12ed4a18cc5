"""Two-dimensional convolution as a batch-reduce GEMM that reads the images themselves.

No im2col matrix exists: a tile of the GEMM reads each pixel's receptive field as a few contiguous
runs of the image, found through tables of offsets that `ops/conv/gather.py` makes once. Images
are C-contiguous (N, H, W, C). The input is read in place, or where it must be padded in slabs: a
few images, or a band of rows of one, copied with their zeros into memory that stays in L2.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from fastlayers.kernels.conv.slabs import ImageSize, Slabs, open_slab, slab_at
from fastlayers.kernels.conv.unfold import col2im
from fastlayers.kernels.gemm.gemm import gemm, panel_width, prepare_gemm
from fastlayers.kernels.gemm.operands import PLAIN, Bias, Epilogue, Left, Right, Size, Target
from fastlayers.kernels.ir.lanes import lanes_of
from fastlayers.kernels.ir.named import named
from fastlayers.kernels.ir.runs import (
    clear_run,
    copy_run,
    flat,
    no_table,
    transpose_block,
    view,
)
from fastlayers.runtime.cache import kernel
from fastlayers.runtime.parallel import parallel_for

__all__ = [
    "ColumnFacts",
    "GatherFacts",
    "Packing",
    "conv2d",
    "conv2d_backward_input_columns",
    "pack_weight",
]


# Of each worker, which make up for uneven threads.
TASKS = 4


class Packing(NamedTuple):
    """How a weight becomes the GEMM's right operand; see `pack_weight`."""

    groups: int
    pieces: int
    piece_step: int
    columns: int
    column_step: int
    table: Any


class Phase(NamedTuple):
    """Output pixels that have the same taps, and where its tables begin."""

    row_at: int  # in the tables of rows and targets
    height: int
    across: int
    run_at: int
    runs: int
    length: int  # of a run
    packed_at: int


class GatherFacts(NamedTuple):
    """A convolution, or its input gradient, as a gather over the slabs."""

    source: ImageSize
    target: ImageSize
    slabs: Slabs
    groups: int
    blocks: int  # of output channels, at most
    phase_step: int  # rows of the output from one of a phase to the next
    write: int
    slab_count: int
    phases: Any  # a row for each Phase
    rows: Any  # offsets of pixels in a slab, of their outputs, and of the runs that they read
    targets: Any
    runs: Any


class ColumnFacts(NamedTuple):
    """The input gradient by columns: receptive fields of `pixels_each` pixels at a time."""

    kernel: tuple[int, int]
    geometry: Any
    groups: int
    pixels_each: int


@kernel
def _phase(phases, p):
    """Row p of the table of phases."""
    return Phase(
        phases[p, 0],
        phases[p, 1],
        phases[p, 2],
        phases[p, 3],
        phases[p, 4],
        phases[p, 5],
        phases[p, 6],
    )


@kernel
def _conv2d_task(task, worker, inputs, facts, floor, blocks, work, y):
    """One slab of input pixels, times the columns of one block of output channels."""
    x, packed, bias = inputs
    slabs, target, groups = facts.slabs, facts.target, facts.groups
    number, block = divmod(task, blocks)
    slab = slab_at(number, slabs)
    source, base = open_slab(slab, worker * slabs.elements, x, facts.source, slabs, work)
    lanes = lanes_of(y)
    depth, per_group = facts.source.channels // groups, target.channels // groups
    width = panel_width(per_group, lanes)
    panels = (per_group + width - 1) // width
    panel = packed.size // (groups * panels)  # of all phases
    first, last = panels * block // blocks, panels * (block + 1) // blocks
    j, columns = first * width, min(last * width, per_group) - first * width
    line = slab.image * target.height + slab.row * facts.phase_step
    out, epilogue = line * target.width * target.channels, Epilogue(floor, 0, facts.write)
    for p in range(facts.phases.shape[0]):
        phase = _phase(facts.phases, p)
        m = slab.images * max(0, min(slab.rows, phase.height - slab.row)) * phase.across
        b_runs = view(facts.runs, phase.run_at + phase.runs, phase.runs)
        for g in range(groups):
            a_rows = view(facts.rows, phase.row_at, m)
            a_runs = view(facts.runs, phase.run_at, phase.runs)
            a = Left(source, base + g * depth, 0, 1, a_rows, a_runs)
            b_at = phase.packed_at + (g * panels + first) * panel
            b = Right(packed, b_at, panel, width, b_runs)
            row = Bias(bias, g * per_group + j)
            c = Target(y, out + g * per_group + j, 0, view(facts.targets, phase.row_at, m))
            product = Size(m, columns, phase.runs, phase.length)
            gemm(product, a, b, row, c, epilogue)


@kernel
def conv2d(x, packed, bias, facts, floor, workers, work, y):
    """Convolution, or its input gradient: ``y = max(floor, bias + x * weight)``.

    Arrays are flat, `packed` is from `pack_weight`, `facts` are `GatherFacts`. A task copies its
    slab, so that many blocks of output channels, which change no bit of the result, are for many
    workers only: of 512 x 7 x 7, 8 blocks take 1.1 times as long as one.
    """
    prepare_gemm(y)
    facts = named(GatherFacts, facts)
    wanted = (TASKS * workers + facts.slab_count - 1) // max(1, facts.slab_count)
    blocks = min(facts.blocks, wanted)
    arguments = ((x, packed, bias), facts, floor, blocks, work, y)
    parallel_for(_conv2d_task, facts.slab_count * blocks, workers, arguments)


@kernel
def _pack_task(task, worker, weight, facts, packed):
    """Pack one panel of the weight of one group."""
    lanes = lanes_of(packed)
    width = panel_width(facts.columns, lanes)
    panels = (facts.columns + width - 1) // width
    group, panel = divmod(task, panels)
    at = task * (packed.size // (facts.groups * panels))
    start = group * (weight.size // facts.groups) + panel * width * facts.column_step
    valid = min(width, facts.columns - panel * width)
    if facts.column_step == 1:  # kernels of 1 x 1: nothing to transpose
        for p in range(facts.pieces):
            copy_run(packed, at + p * width, weight, start + p * facts.piece_step, valid)
            clear_run(packed, at + p * width + valid, width - valid)
        return
    for p in range(facts.pieces):
        for first in range(0, facts.table.size, lanes):
            cells = min(lanes, facts.table.size - first)
            for j in range(0, width, lanes):
                from_at = start + p * facts.piece_step + first + j * facts.column_step
                rows = view(facts.table, first, cells)
                out = (packed, at + p * width + j, width, width - j, rows)
                source = (weight, from_at, facts.column_step)
                transpose_block(min(lanes, valid - j), cells, source, out)


@kernel
def pack_weight(weight, facts, workers, packed):
    """Pack a flat (M, C/G, R, S) weight into the panels that `conv2d` multiplies by.

    For each group and panel of columns one GEMM operand (phase, tap, depth) x width, which is
    ``packed[group, panel, p + table[i], j] = weight[group, p * piece_step + j * column_step + i]``
    for the `Packing` `facts`. Negative entries of the table are taps of no phase.
    """
    facts = named(Packing, facts)
    width = panel_width(facts.columns, lanes_of(packed))
    tasks = facts.groups * ((facts.columns + width - 1) // width) if packed.size else 0
    parallel_for(_pack_task, tasks, workers, (weight, facts, packed))


@kernel
def _columns_image(n, worker, inputs, facts, work, dx):
    """Input gradient of one image: those of the receptive fields by GEMM, added up by col2im."""
    dy, packed, zeros = inputs
    groups, step, lanes = facts.groups, facts.pixels_each, lanes_of(dx)
    images, height, width, channels = dx.shape
    _, _, _, _, (out_height, out_width) = facts.geometry
    pixels = out_height * out_width
    m, depth = dy.size // (images * pixels), channels // groups
    per_group, k = m // groups, facts.kernel[0] * facts.kernel[1] * depth
    panel, at = panel_width(k, lanes), worker * step * k
    size = (k + panel - 1) // panel * panel * per_group
    clear_run(flat(dx), n * height * width * channels, height * width * channels)
    for first in range(n * pixels, (n + 1) * pixels, step):
        count = min(step, (n + 1) * pixels - first)
        for g in range(groups):
            a = Left(dy, first * m + g * per_group, m, 1, no_table(), no_table())
            b = Right(packed, g * size, panel * per_group, panel, no_table())
            c = Target(work, at, k, no_table())
            gemm(Size(count, k, 1, per_group), a, b, Bias(zeros, 0), c, PLAIN)
            col2im(work, at, k, facts.geometry, (g * depth, depth), first, count, dx)


@kernel
def conv2d_backward_input_columns(dy, packed, zeros, facts, workers, work, dx):
    """Input gradient dx (N, H, W, C) for few channels, where `conv2d` would waste lanes.

    A vector then runs over the R*S*C/G cells of receptive fields: `packed` is the weight as
    (M/G, R*S*C/G) for each group, `zeros` has R*S*C/G elements and `work` `pixels_each` rows of
    them a worker. `facts` are `ColumnFacts`, with the geometry of `kernels.conv.unfold`.
    """
    prepare_gemm(dx)
    facts = named(ColumnFacts, facts)
    arguments = ((dy, packed, zeros), facts, work, dx)
    parallel_for(_columns_image, dx.shape[0], workers, arguments)
