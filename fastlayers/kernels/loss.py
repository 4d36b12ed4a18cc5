"""Cross entropy of logits against class indices: log-softmax, loss and gradient in one pass."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastlayers.kernels.ir.named import named
from fastlayers.kernels.ir.runs import view
from fastlayers.kernels.ir.vectors import Vectors, element_pointer
from fastlayers.runtime import cpu
from fastlayers.runtime.cache import kernel
from fastlayers.runtime.parallel import parallel_for

__all__ = ["Call", "cross_entropy"]

# Targets whose checking threads share; it takes 1 to 2 ns each.
CHECKED = 1 << 14

_i64 = ir.IntType(64)


class Call(NamedTuple):
    """Options of a cross entropy, the rows of a chunk, and threads."""

    ignore_index: int
    smoothing: float
    mean: bool
    chunk_rows: int
    workers: int


class _Targets(NamedTuple):
    """What is computed of each row, in the dtype of the logits."""

    chunk_rows: int
    target: Any
    weight: Any
    ignore_index: int
    smoothing: Any
    weight_sum: Any
    scale: Any  # of the gradient


def _emit_exp(vectors: Vectors, x):
    """Emit exp(x) for x <= 0 or NaN, within 1 ulp; exact at 0 and minus infinity.

    ``exp(x) = 2^n exp(r)`` with ``n = round(x / log 2)`` and Taylor's series of exp(r), whose
    next term is below a tenth of an ulp for ``|r| <= log(2) / 2``.
    """
    builder, single = vectors.builder, isinstance(vectors.element, ir.FloatType)
    integer = ir.IntType(32 if single else 64)
    integers = ir.VectorType(integer, vectors.lanes)
    mantissa, bias = (23, 127) if single else (52, 1023)

    def splat(value: float):
        return ir.Constant(vectors.vector, [value] * vectors.lanes)

    def whole(value: int):
        return ir.Constant(integers, [value] * vectors.lanes)

    # Below this the result is 0; NaN stays.
    lowest = splat(-104.0 if single else -746.0)
    x = builder.select(builder.fcmp_ordered("<", x, lowest), lowest, x)
    # The sum with 1.5 * 2^mantissa has the rounded quotient in its low bits.
    magic = splat(1.5 * 2.0**mantissa)
    shifted = vectors.fma(x, splat(1 / math.log(2)), magic)
    n = builder.fsub(shifted, magic)
    # log(2) in two parts, of which the first times n is exact.
    high, low = (
        (0.693359375, -2.12194440e-4)
        if single
        else (6.93147180369123816490e-1, 1.90821492927058770002e-10)
    )
    r = vectors.fma(n, splat(-high), x)
    r = vectors.fma(n, splat(-low), r)
    degree = 7 if single else 13
    result = splat(1 / math.factorial(degree))
    for k in reversed(range(degree)):
        result = vectors.fma(result, r, splat(1 / math.factorial(k)))
    exponent = builder.sub(builder.bitcast(shifted, integers), builder.bitcast(magic, integers))
    # In two factors, since 2^n may be subnormal.
    half = builder.ashr(exponent, whole(1))
    for part in (half, builder.sub(exponent, half)):
        bits = builder.shl(builder.add(part, whole(bias)), whole(mantissa))
        result = builder.fmul(result, builder.bitcast(bits, vectors.vector))
    return result


@intrinsic
def _exp_row(typingctx, x, x_at, count, out, out_at):
    """``out[i] = exp(x[i] - max(x))`` for a run of flat arrays; gives the maximum and the sum."""

    def codegen(cgctx, builder, sig, values):
        source = element_pointer(cgctx, builder, x, values[0], values[1])
        target = element_pointer(cgctx, builder, out, values[3], values[4])
        element, count = source.type.pointee, values[2]
        vectors = Vectors(builder, element, cpu.lanes(x.dtype.bitwidth // 8))
        least = ir.Constant(vectors.vector, [float("-inf")] * vectors.lanes)
        zero = ir.Constant(vectors.vector, None)
        tops = cgutils.alloca_once(builder, vectors.vector)
        sums = cgutils.alloca_once(builder, vectors.vector)
        builder.store(least, tops)
        builder.store(zero, sums)

        def loop():
            return cgutils.for_range_slice(builder, _i64(0), count, _i64(vectors.lanes), _i64)

        with loop() as (at, _):
            mask = vectors.first_lanes(builder.sub(count, at))
            value = vectors.load_vector(builder.gep(source, [at]), mask=mask)
            old = builder.load(tops)
            # A NaN is no greater; it comes back in the sum.
            better = builder.and_(mask.bits, builder.fcmp_ordered(">", value, old))
            builder.store(builder.select(better, value, old), tops)
        reduce_max = vectors.declare("llvm.vector.reduce.fmax.{}", element, [vectors.vector])
        top = builder.call(reduce_max, [builder.load(tops)])
        top_vector = vectors.splat(top)
        with loop() as (at, _):
            mask = vectors.first_lanes(builder.sub(count, at))
            value = vectors.load_vector(builder.gep(source, [at]), mask=mask)
            value = _emit_exp(vectors, builder.fsub(value, top_vector))
            value = builder.select(mask.bits, value, zero)
            vectors.store_vector(value, builder.gep(target, [at]), mask=mask)
            builder.store(builder.fadd(builder.load(sums), value), sums)
        reduce_add = vectors.declare(
            "llvm.vector.reduce.fadd.{}", element, [element, vectors.vector]
        )
        start = ir.Constant(element, -0.0)
        # Without the flag, lane after lane: 60 cycles of latency.
        total = builder.call(reduce_add, [start, builder.load(sums)], fastmath=("reassoc",))
        return cgctx.make_tuple(builder, sig.return_type, [top, total])

    i8 = types.int64
    return types.UniTuple(x.dtype, 2)(x, i8, i8, out, i8), codegen


@kernel
def _check_chunk(chunk, worker, target, weight, call, checked):
    """The sum of the weights of a chunk's targets, and whether one of them is no class."""
    total, wrong, first = 0.0, 0, chunk * call.chunk_rows
    for i in range(first, min(first + call.chunk_rows, target.size)):
        label = target[i]
        if label != call.ignore_index:
            if label < 0 or label >= weight.size:
                wrong = 1
            else:
                total += weight[label]
    checked[2 * chunk] = total
    checked[2 * chunk + 1] = wrong


@kernel
def _first_wrong(target, first, classes, ignore_index):
    """The first row from `first` on whose target is no class; there is one."""
    i = first
    while target[i] == ignore_index or 0 <= target[i] < classes:
        i += 1
    return i


@kernel
def _cross_entropy_chunk(chunk, worker, x, targets, losses, slopes, work, parts):
    weight, classes, scale = targets.weight, targets.weight.size, targets.scale
    one, smoothing = x.dtype.type(1), targets.smoothing
    spread = smoothing / x.dtype.type(classes)
    total = 0.0
    first = chunk * targets.chunk_rows
    for k in range(min(targets.chunk_rows, targets.target.size - first)):
        i = first + k
        label, loss = targets.target[i], x.dtype.type(0)
        if label == targets.ignore_index:
            if slopes.size:
                view(slopes, i * classes, classes)[:] = 0
        else:
            row = view(x, i * classes, classes)
            if slopes.size:
                out = view(slopes, i * classes, classes)
            else:
                out = view(work, worker * classes, classes)
            top, exp_sum = _exp_row(row, 0, classes, out, 0)
            log_sum = math.log(exp_sum)
            hard = (one - smoothing) * weight[label]
            loss = hard * (log_sum - (row[label] - top))
            if smoothing > 0:
                for c in range(classes):
                    loss += spread * weight[c] * (log_sum - (row[c] - top))
            if slopes.size:
                if smoothing > 0:
                    factor = (hard + spread * targets.weight_sum) * (one / exp_sum)
                    for c in range(classes):
                        out[c] = scale * (factor * out[c] - spread * weight[c])
                else:
                    factor = scale * hard / exp_sum
                    for c in range(classes):
                        out[c] *= factor
                out[label] -= scale * hard
        total += loss
        if losses.size:
            losses[i] = loss
    parts[chunk] = total


@kernel
def cross_entropy(x, target, weight, call, losses, slopes, work, out):
    """Loss of logits x (rows * classes), and its gradient, each softmax read and written once.

    ``(1 - s) * w[t] * -log p[t] + s / C * sum_c w[c] * -log p[c]`` with ``p = softmax(x)`` for each
    row and s the smoothing of a `Call`, 0 where the target is its `ignore_index`: in `losses`,
    unless that is empty, and their sum in ``out[0]``, with `mean` over the weights of the targets.
    The gradient of that sum, or mean, is in `slopes`, unless that is empty. `work` has three
    elements for each chunk of rows, and without slopes `classes` more for each worker. Returns the
    first row whose target is no class, before anything but work is written, or -1.
    """
    real, call = x.dtype.type, named(Call, call)
    classes, target_weights = weight.size, 0.0
    chunks = (target.size + call.chunk_rows - 1) // call.chunk_rows
    parts, checked = view(work, 0, chunks), view(work, chunks, 2 * chunks)
    checkers = call.workers if target.size >= CHECKED else 1
    parallel_for(_check_chunk, chunks, checkers, (target, weight, call, checked))
    for chunk in range(chunks):
        if checked[2 * chunk + 1]:
            return _first_wrong(target, chunk * call.chunk_rows, classes, call.ignore_index)
        target_weights += checked[2 * chunk]
    weight_sum, scale = real(0), real(1)
    for c in range(classes):
        weight_sum += weight[c]
    if call.mean:
        scale = real(1 / target_weights if target_weights else math.nan)
    smoothing = real(call.smoothing)
    targets = _Targets(
        call.chunk_rows, target, weight, call.ignore_index, smoothing, weight_sum, scale
    )
    rows = view(work, 3 * chunks, work.size - 3 * chunks)
    arguments = (x, targets, losses, slopes, rows, parts)
    parallel_for(_cross_entropy_chunk, chunks, call.workers, arguments)
    total = 0.0
    for chunk in range(chunks):
        total += parts[chunk]
    if call.mean:
        total = total / target_weights if target_weights else math.nan
    out[0] = total
    return -1
