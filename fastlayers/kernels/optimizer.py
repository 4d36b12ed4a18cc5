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
from fastlayers.runtime.parallel import parallel_for

__all__ = ["adadelta", "adam", "gather", "sgd"]

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
def _sgd_chunk(chunk, worker, like, table, scalars, nesterov):
    sign, decay, lr, momentum, fresh = scalars
    has_momentum = table.shape[1] > 3
    at, i = chunk * CHUNK, 0
    stop = min(at + CHUNK, table[-1, -1])
    while at < stop:
        while table[i, -1] <= at:
            i += 1
        begin = table[i - 1, -1] if i else 0
        count, skipped = min(table[i, -1], stop) - at, (at - begin) * like.itemsize
        p = _array_at(like, table[i, 0] + skipped, count)
        g = _array_at(like, table[i, 1] + skipped, count)
        if has_momentum:
            b = _array_at(like, table[i, 2] + skipped, count)
            for j in range(count):
                d = sign * g[j] + decay * p[j]
                b[j] = momentum * b[j] + fresh * d
                p[j] -= lr * (d + momentum * b[j] if nesterov else b[j])
        else:
            for j in range(count):
                p[j] -= lr * (sign * g[j] + decay * p[j])
        at += count


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
def _adam_chunk(chunk, worker, like, table, scalars):
    sign, decay, shrink, beta1, fresh1, beta2, fresh2, scale, eps, step_size = scalars
    amsgrad = table.shape[1] > 5
    at, i = chunk * CHUNK, 0
    stop = min(at + CHUNK, table[-1, -1])
    while at < stop:
        while table[i, -1] <= at:
            i += 1
        begin = table[i - 1, -1] if i else 0
        count, skipped = min(table[i, -1], stop) - at, (at - begin) * like.itemsize
        p = _array_at(like, table[i, 0] + skipped, count)
        g = _array_at(like, table[i, 1] + skipped, count)
        m = _array_at(like, table[i, 2] + skipped, count)
        v = _array_at(like, table[i, 3] + skipped, count)
        # Two loops: with the choice inside, LLVM makes no vectors: 65 ms instead of 15 for 25.7M.
        if amsgrad:
            top = _array_at(like, table[i, 4] + skipped, count)
            for j in range(count):
                d = sign * g[j] + decay * p[j]
                m[j] = beta1 * m[j] + fresh1 * d
                v[j] = beta2 * v[j] + fresh2 * d * d
                bound = top[j] if top[j] >= v[j] else v[j]
                top[j] = bound
                p[j] = shrink * p[j] - step_size * (m[j] / (np.sqrt(bound) * scale + eps))
        else:
            for j in range(count):
                d = sign * g[j] + decay * p[j]
                m[j] = beta1 * m[j] + fresh1 * d
                v[j] = beta2 * v[j] + fresh2 * d * d
                p[j] = shrink * p[j] - step_size * (m[j] / (np.sqrt(v[j]) * scale + eps))
        at += count


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


@kernel
def _adadelta_chunk(chunk, worker, like, table, scalars):
    sign, decay, lr, rho, fresh, eps = scalars
    at, i = chunk * CHUNK, 0
    stop = min(at + CHUNK, table[-1, -1])
    while at < stop:
        while table[i, -1] <= at:
            i += 1
        begin = table[i - 1, -1] if i else 0
        count, skipped = min(table[i, -1], stop) - at, (at - begin) * like.itemsize
        p = _array_at(like, table[i, 0] + skipped, count)
        g = _array_at(like, table[i, 1] + skipped, count)
        v = _array_at(like, table[i, 2] + skipped, count)
        u = _array_at(like, table[i, 3] + skipped, count)
        for j in range(count):
            d = sign * g[j] + decay * p[j]
            v[j] = rho * v[j] + fresh * d * d
            delta = np.sqrt(u[j] + eps) / np.sqrt(v[j] + eps) * d
            u[j] = rho * u[j] + fresh * delta * delta
            p[j] -= lr * delta
        at += count


@kernel
def adadelta(like, table, sign, decay, lr, rho, eps, workers):
    """``delta = sqrt(u + eps) / sqrt(v + eps) * d; p -= lr * delta``.

    `table` has p, g, and the running means v and u of the squares of ``d = sign * g + decay * p``
    and of delta. `like` is any flat array of their type.
    """
    real = like.dtype.type
    scalars = (real(sign), real(decay), real(lr), real(rho), real(1 - rho), real(eps))
    chunks = (table[-1, -1] + CHUNK - 1) // CHUNK
    parallel_for(_adadelta_chunk, chunks, workers, (like, table, scalars))
