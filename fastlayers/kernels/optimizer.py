"""Gradient descent's updates of all parameters in one call, in place and in one pass over memory.

The arrays of so many parameters are a table: a row for each has the addresses of its values, its
gradient and what the algorithm keeps, and at last the number of elements up to its end. Chunks
are cut from all elements in a row, so that small parameters share one. Scalars are float64 and
rounded to the arrays' type once. The updates are elementwise, so their bits do not depend on the
number of threads.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numba.np.arrayobj import populate_array

from fastlayers.runtime.cache import kernel
from fastlayers.runtime.threads import parallel_for

__all__ = ["adam", "gather", "sgd"]

# Elements of a task: some microseconds of work, where taking the next task costs about 0.1.
CHUNK = 16384

# The beginning of NumPy's PyArrayObject_fields, which is part of its ABI, behind Python's header.
HEADER = object.__basicsize__
DATA, RANK, LENGTHS, DTYPE, FLAGS = (HEADER + at for at in (0, 8, 16, 40, 48))
# The pointer to the elements of Python's PyListObject, behind its header and its length.
ITEMS = HEADER + 8
CONTIGUOUS, WRITABLE = 0x101, 0x400  # and aligned


def _peek(integer: types.Integer) -> Any:
    def codegen(cgctx: Any, builder: Any, sig: Any, values: Any) -> Any:
        pointer = ir.IntType(integer.bitwidth).as_pointer()
        return builder.sext(builder.load(builder.inttoptr(values[0], pointer)), ir.IntType(64))

    return types.int64(types.int64), codegen


@intrinsic
def _peek32(typingctx: Any, address: Any) -> Any:
    """The 32-bit integer at an address."""
    return _peek(types.int32)


@intrinsic
def _peek64(typingctx: Any, address: Any) -> Any:
    """The 64-bit integer at an address."""
    return _peek(types.int64)


@intrinsic
def _array_at(typingctx: Any, like: Any, address: Any, count: Any) -> Any:
    """Flat array of so many elements of the type of `like` at an address."""

    def codegen(cgctx: Any, builder: Any, sig: Any, values: Any) -> Any:
        out = cgctx.make_array(like)(cgctx, builder)
        itemsize = ir.IntType(64)(like.dtype.bitwidth // 8)
        populate_array(
            out,
            data=builder.inttoptr(values[1], out.data.type),
            shape=[values[2]],
            strides=[itemsize],
            itemsize=itemsize,
            meminfo=None,
        )
        return out._getvalue()

    return like(like, types.int64, types.int64), codegen


@kernel
def gather(arrays, dtype, array_type, table):
    """Fill `table` from NumPy arrays of the shape of their parameter, read where they are.

    `arrays` is ``id(list)``, of the values of all parameters, then the gradients, then each other
    role; `dtype` and `array_type` are ``id(np.dtype(...))`` and ``id(np.ndarray)``. Returns the
    number of elements, or -1 if an array is of another type or shape, not contiguous, or, unless
    it is a gradient, read-only. Getting an address in Python costs 0.3 us an array, this 0.05.
    """
    count, roles = table.shape[0], table.shape[1] - 1
    items, total = _peek64(arrays + ITEMS), 0
    for i in range(count):
        # The type of an object is the last field of its header.
        values = _peek64(items + 8 * i)
        if _peek64(values + HEADER - 8) != array_type:
            return -1
        rank, lengths = _peek32(values + RANK), _peek64(values + LENGTHS)
        size = 1
        for axis in range(rank):
            size *= _peek64(lengths + 8 * axis)
        for role in range(roles):
            array = _peek64(items + 8 * (role * count + i))
            needed = CONTIGUOUS if role == 1 else CONTIGUOUS | WRITABLE
            if (
                _peek64(array + HEADER - 8) != array_type
                or _peek64(array + DTYPE) != dtype
                or _peek32(array + FLAGS) & needed != needed
                or _peek32(array + RANK) != rank
            ):
                return -1
            own_lengths = _peek64(array + LENGTHS)
            for axis in range(rank):
                if _peek64(own_lengths + 8 * axis) != _peek64(lengths + 8 * axis):
                    return -1
            table[i, role] = _peek64(array + DATA)
        total += size
        table[i, roles] = total
    return total


@kernel
def _first(table, at):
    """The parameter that holds element `at` of all."""
    low, high = 0, table.shape[0] - 1
    while low < high:
        middle = (low + high) // 2
        if table[middle, -1] > at:
            high = middle
        else:
            low = middle + 1
    return low


@kernel
def _sgd_run(p, g, b, scalars, nesterov):
    sign, decay, lr, momentum, fresh = scalars
    if b.size == 0:
        for i in range(p.size):
            p[i] -= lr * (sign * g[i] + decay * p[i])
    else:
        for i in range(p.size):
            d = sign * g[i] + decay * p[i]
            b[i] = momentum * b[i] + fresh * d
            p[i] -= lr * (d + momentum * b[i] if nesterov else b[i])


@kernel
def _sgd_chunk(chunk, worker, like, table, scalars, nesterov):
    at, roles = chunk * CHUNK, table.shape[1] - 1
    stop = min(at + CHUNK, table[-1, -1])
    i = _first(table, at)
    while at < stop:
        begin = table[i - 1, -1] if i else 0
        count, skipped = min(table[i, -1], stop) - at, (at - begin) * like.itemsize
        _sgd_run(
            _array_at(like, table[i, 0] + skipped, count),
            _array_at(like, table[i, 1] + skipped, count),
            _array_at(like, table[i, roles - 1] + skipped, count if roles > 2 else 0),
            scalars,
            nesterov,
        )
        at, i = at + count, i + 1


@kernel
def sgd(like, table, sign, decay, lr, momentum, dampening, nesterov, workers):
    """``b = momentum * b + (1 - dampening) * d; p -= lr * b``, with ``d = sign * g + decay * p``.

    Nesterov's form subtracts ``lr * (d + momentum * b)``. `table` has the arrays p, g and b, or
    without b there is no momentum: ``p -= lr * d``. `like` is any flat array of their type.
    """
    real = like.dtype.type
    scalars = (real(sign), real(decay), real(lr), real(momentum), real(1 - dampening))
    chunks = (table[-1, -1] + CHUNK - 1) // CHUNK
    parallel_for(_sgd_chunk, chunks, workers, (like, table, scalars, nesterov))


@kernel
def _adam_run(p, g, m, v, top, scalars):
    sign, decay, shrink, beta1, fresh1, beta2, fresh2, scale, eps, step_size = scalars
    amsgrad = top.size > 0
    for i in range(p.size):
        d = sign * g[i] + decay * p[i]
        m[i] = beta1 * m[i] + fresh1 * d
        v[i] = beta2 * v[i] + fresh2 * d * d
        bound = v[i]
        if amsgrad:
            bound = top[i] if top[i] >= bound else bound
            top[i] = bound
        p[i] = shrink * p[i] - step_size * (m[i] / (np.sqrt(bound) * scale + eps))


@kernel
def _adam_chunk(chunk, worker, like, table, scalars):
    at, roles = chunk * CHUNK, table.shape[1] - 1
    stop = min(at + CHUNK, table[-1, -1])
    i = _first(table, at)
    while at < stop:
        begin = table[i - 1, -1] if i else 0
        count, skipped = min(table[i, -1], stop) - at, (at - begin) * like.itemsize
        _adam_run(
            _array_at(like, table[i, 0] + skipped, count),
            _array_at(like, table[i, 1] + skipped, count),
            _array_at(like, table[i, 2] + skipped, count),
            _array_at(like, table[i, 3] + skipped, count),
            _array_at(like, table[i, roles - 1] + skipped, count if roles > 4 else 0),
            scalars,
        )
        at, i = at + count, i + 1


@kernel
def adam(like, table, step, sign, decay, shrink, lr, beta1, beta2, eps, workers):
    """``p = shrink * p - lr * m_hat / (sqrt(v_hat) + eps)`` for step number `step` = 1, 2, ...

    `table` has p, g, and the running means m and v of ``d = sign * g + decay * p`` and its
    square; ``m_hat = m / (1 - beta1^step)``, ``v_hat = v / (1 - beta2^step)``. A fifth array keeps
    the largest v so far, which takes v's place (AMSGrad). `like` is any flat array of their type.
    """
    real = like.dtype.type
    step_size, scale = lr / (1 - beta1**step), 1 / np.sqrt(1 - beta2**step)
    scalars = (
        *(real(sign), real(decay), real(shrink)),
        *(real(beta1), real(1 - beta1), real(beta2), real(1 - beta2)),
        *(real(scale), real(eps), real(step_size)),
    )
    chunks = (table[-1, -1] + CHUNK - 1) // CHUNK
    parallel_for(_adam_chunk, chunks, workers, (like, table, scalars))
