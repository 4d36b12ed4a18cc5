"""All ops at many shapes, and memory that shows what is read or written outside of its arrays.

``python tests/guards.py {ends,starts,checked,reversed} {float32,float64} [call ...]`` runs them in
a process of their own, which a read beyond a page ends; the name of each is printed before it runs.
"""

import contextlib
import ctypes
import importlib.util
import itertools
import math
import mmap
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
from specs import SPECS
from specs.spec import Arrays, Place, Watched, guarded, named, normals

from fastlayers import kernels, nn, optim
from fastlayers.ops import arithmetic, layout
from fastlayers.ops.conv import winograd
from fastlayers.ops.conv.shape import conv_shape
from fastlayers.runtime import memory, threads
from fastlayers.runtime.cache import kernel
from fastlayers.runtime.compiler import Kernel
from fastlayers.runtime.parallel import parallel_for

Empty = Callable[[Any, Any], np.ndarray]

# On either side of an array: eight of the widest vectors.
GUARD = 512
# By dtype, what memory holds before it is written: a signalling NaN and a large number, in either
# type of floats; other integers. As 64-bit words.
POISONS = (
    {"f": 0x7FA00001_7FA00001, "d": 0x7FF40000_00000001, "": 0xA5A5A5A5_A5A5A5A5},
    {"": 0x7B7B7B7B_7B7B7B7B},
)


@contextlib.contextmanager
def served(empty: Empty) -> Iterator[None]:
    """Let ops take all their arrays from `empty`."""

    def scratch(counts: tuple[int, ...], dtype: Any) -> tuple[np.ndarray, ...]:
        return tuple([empty(count, dtype) for count in counts])

    def zeros(shape: Any, dtype: Any) -> np.ndarray:
        array = empty(shape, dtype)
        array.fill(0)
        return array

    # Some small outputs are NumPy's.
    numpy = SimpleNamespace(**vars(np) | {"empty": empty, "zeros": zeros})
    homes = [m for name, m in sys.modules.items() if name.startswith("fastlayers.ops.")]
    with contextlib.ExitStack() as stack:
        for name, value in (("empty", empty), ("scratch", scratch)):
            stack.enter_context(mock.patch.object(memory, name, value))
        for home in homes:
            if hasattr(home, "np"):
                stack.enter_context(mock.patch.object(home, "np", numpy))
        yield


class Guarded:
    """Gives arrays between guard bytes, all of it filled with one of `POISONS`."""

    def __init__(self, poison: dict[str, int]) -> None:
        self._poison = poison
        self._blocks: list[tuple[np.ndarray, int, np.uint64]] = []

    def empty(self, shape: Any, dtype: Any) -> np.ndarray:
        dtype = np.dtype(dtype)
        nbytes = math.prod(shape if isinstance(shape, tuple) else (shape,)) * dtype.itemsize
        word = np.uint64(self._poison.get(dtype.char, self._poison[""]))
        block = np.empty(2 * GUARD // 8 + -(-nbytes // 8) + memory.ALIGNMENT // 8, np.uint64)
        block = block[-block.ctypes.data % memory.ALIGNMENT // 8 :]
        block.fill(word)
        self._blocks.append((block, nbytes, word))
        return block.view(np.uint8)[GUARD : GUARD + nbytes].view(dtype).reshape(shape)

    def check(self) -> int:
        """Assert that no guard was written to, and forget the arrays; gives their number."""
        for block, nbytes, word in self._blocks:
            behind = (GUARD + nbytes) // 8
            assert (block[: GUARD // 8] == word).all(), "written before an array"
            assert (block[behind + 1 :] == word).all(), "written behind an array"
            last = block[behind : behind + 1].view(np.uint8)[nbytes % 8 :]
            assert last.tobytes() == word.tobytes()[nbytes % 8 :], "written behind an array"
        count = len(self._blocks)
        self._blocks.clear()
        return count


class Fenced:
    """Gives arrays that end, or begin, where a page begins, or ends, that nobody may touch."""

    def __init__(self, at_end: bool) -> None:
        self._at_end = at_end
        self._protect = ctypes.CDLL(None, use_errno=True).mprotect
        self._protect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)

    def empty(self, shape: Any, dtype: Any) -> np.ndarray:
        dtype = np.dtype(dtype)
        nbytes = math.prod(shape if isinstance(shape, tuple) else (shape,)) * dtype.itemsize
        # As large arrays are; smaller ones are NumPy's.
        alignment = memory.ALIGNMENT if nbytes >= memory.SMALLEST_BLOCK else dtype.itemsize
        room, page = -(-nbytes // alignment) * alignment, mmap.PAGESIZE
        inside = -(-room // page) * page
        block = mmap.mmap(-1, inside + 2 * page)
        start = np.frombuffer(block, np.uint8).ctypes.data
        for fence in (start, start + page + inside):
            if self._protect(fence, page, 0):
                raise OSError(ctypes.get_errno(), "mprotect")
        return np.ndarray(shape, dtype, block, page + (inside - room if self._at_end else 0))

    def place(self, array: np.ndarray) -> np.ndarray:
        copy = self.empty(array.shape, array.dtype)
        copy[...] = array
        return copy


class Endless:
    """Gives arrays of any size, of which all but 8 MiB at either end are the same 2 MiB."""

    PIECE, ENDS = 2 << 20, 5

    def __init__(self) -> None:
        self._map = ctypes.CDLL(None, use_errno=True).mmap
        self._map.restype = ctypes.c_void_p
        integers = (ctypes.c_int,) * 3
        self._map.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *integers, ctypes.c_long)

    def empty(self, shape: Any, dtype: Any) -> np.ndarray:
        dtype, size, page = np.dtype(dtype), self.PIECE, mmap.PAGESIZE
        nbytes = math.prod(shape if isinstance(shape, tuple) else (shape,)) * dtype.itemsize
        pieces = max(-(-nbytes // size), 2 * self.ENDS)
        no_reserve = 0x4000
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | no_reserve
        space = mmap.mmap(-1, pieces * size + page, flags=flags)
        start, fixed = np.frombuffer(space, np.uint8).ctypes.data, 0x10
        file = os.memfd_create("endless")
        os.ftruncate(file, (2 * self.ENDS + 1) * size)
        for i in range(pieces):
            at = min(i, max(self.ENDS, i - pieces + 2 * self.ENDS + 1)) * size
            place = start + i * size
            protection = mmap.PROT_READ | mmap.PROT_WRITE
            if self._map(place, size, protection, mmap.MAP_SHARED | fixed, file, at) != place:
                raise OSError(ctypes.get_errno(), "mmap")
        os.close(file)
        return np.ndarray(shape, dtype, space, pieces * size - -(-nbytes // 64) * 64)


def channels_last(place: Place) -> Place:
    """`place` for the memory of images whose channels are innermost."""

    def placed(array: np.ndarray) -> np.ndarray:
        last = place(np.ascontiguousarray(np.moveaxis(array, 1, -1))) if array.ndim > 2 else None
        return place(array) if last is None else np.moveaxis(last, -1, 1)

    return placed


def _tables(stem: str) -> ModuleType:
    """A module of tests/ops, for its tables of shapes."""
    path = Path(__file__).parent / "ops" / f"{stem}.py"
    spec = importlib.util.spec_from_file_location(f"tables_of_{stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _winograd(row: Any, tile: int, streamed: bool = False) -> Watched:
    tables = _tables("test_winograd")

    def run(place: Place, dtype: type) -> Arrays:
        shape, padding, dilation = row
        arrays = [place(a) for a in tables.draw(shape, padding, dtype, dilation)]
        limits = {"STREAMED": 1 << 15, "STREAMED_GRADIENT": 1 << 15} if streamed else {}
        with mock.patch.multiple(winograd, **limits) if limits else contextlib.nullcontext():
            return named(*tables.run(*arrays, padding, tile, dilation))

    return run


def _add(shape: Any) -> Watched:
    def run(place: Place, dtype: type) -> Arrays:
        a, b = normals(place, dtype, shape, shape)
        return named(arithmetic.add(a, b), layout.contiguous(a), layout.raveled(a))

    return run


def _im2col(n: int, c: int, size: tuple[int, int], kernel: Any, step: int, gap: int) -> Watched:
    def run(place: Place, dtype: type) -> Arrays:
        (x,) = normals(place, dtype, (n, *size, c))
        shape = conv_shape(
            "im2col", (n, c, *size), (1, c, *kernel), (step,) * 2, (1, 1), (gap,) * 2, 1, 4
        )
        rows, cells = shape.pixels, c * math.prod(kernel)
        out = memory.zeros(rows * cells, dtype)
        kernels.im2col(x, shape.geometry, (0, c), 0, rows, out, 0, cells)
        back = memory.zeros(x.shape, dtype)
        kernels.col2im(out, 0, cells, shape.geometry, (0, c), 0, rows, back)
        return named(out, back)

    return run


def _optimiser(kind: Any, sizes: tuple[int, ...], **options: Any) -> Watched:
    def run(place: Place, dtype: type) -> Arrays:
        shapes = [(size,) for size in sizes]
        params = [nn.Parameter(a) for a in normals(place, dtype, *shapes)]
        for p, values in zip(params, normals(place, dtype, *shapes), strict=True):
            p.data, p.grad = place(p.array()), place(values)
        update = kind(params, lr=0.1, **options)
        for _ in range(2):
            update.step()
        return named(*(p.array() for p in params))

    return run


def _all() -> Iterator[tuple[str, Watched]]:
    for spec in SPECS.values():
        for case in spec.samples:
            yield case.id, guarded(case)
        yield from spec.watched.items()
    for case in _tables("test_winograd_rows").CASES:
        yield case.id, guarded(case)
    for row, tile in itertools.product(_tables("test_winograd").SHAPES, (2, 4)):
        yield f"winograd {row} {tile}", _winograd(row, tile)
    for row in (((4, 15, 21, 32, 48), (0, 2), (1, 1)), ((4, 16, 16, 32, 33), (1, 1), (1, 1))):
        yield f"winograd streamed {row}", _winograd(row, 4, streamed=True)
    for shape in ((9001,), (3, 17, 19, 23), (2, 3, 5, 7, 51), (33, 31, 9)):
        yield f"arithmetic {shape}", _add(shape)
    for row in (
        (2, 3, (7, 6), (3, 2), 1, 1),
        (1, 17, (5, 9), (2, 3), 2, 1),
        (1, 5, (9, 9), (3, 3), 1, 2),
    ):
        yield f"im2col {row}", _im2col(*row)
    sizes = (1, 7, 16, 33, 20011)
    for momentum in (0, 0.9):
        yield f"SGD {momentum}", _optimiser(optim.SGD, sizes, momentum=momentum)
    for amsgrad in (False, True):
        yield f"Adam {amsgrad}", _optimiser(optim.Adam, sizes, amsgrad=amsgrad)
    yield "Adadelta", _optimiser(optim.Adadelta, sizes)


CALLS: dict[str, Watched] = dict(_all())


# Kernels that are wrong: an inner one, and a task of a parallel loop.
@kernel
def _element(x, i):
    return x[i]


@kernel
def element(x, i):
    return _element(x, i)


@kernel
def _set_one(i, worker, x):
    x[i] = 1


@kernel
def set_ones(x, count, workers):
    parallel_for(_set_one, count, workers, (x,))


@kernel(inner=True)
def descending(task, count, workers, arguments):
    for i in range(count):
        task(count - 1 - i, 0, *arguments)


def reverse() -> None:
    """Let all kernels that are compiled from now on run their tasks from the last to the first."""
    for home in [getattr(kernels, name) for name in kernels.__all__]:
        if hasattr(home, "parallel_for"):
            home.parallel_for = descending


def reached() -> list[str]:
    """Names of the library's kernels that Python called."""
    homes = [m for name, m in sys.modules.items() if name.startswith("fastlayers.kernels.")]
    found = {k for home in homes for k in vars(home).values() if isinstance(k, Kernel)}
    return sorted(k.py_func.__qualname__ for k in found if k.overloads)


def main(mode: str, dtype: str, *names: str) -> None:
    """Run calls and save their results as ``$GUARDS_RESULTS``, if that is set."""
    threads.SERIAL_WORK = 1  # so that all is used that a worker has of its own
    threads.set_num_threads(2)
    fence = Fenced(mode == "ends") if mode in ("ends", "starts") else None
    if mode == "reversed":
        reverse()
    place: Place = np.copy if fence is None else fence.place
    found: Arrays = {}
    for name in names or CALLS:
        print(name, flush=True)
        with contextlib.nullcontext() if fence is None else served(fence.empty):
            for order, put in (("first", place), ("last", channels_last(place))):
                results = CALLS[name](put, np.dtype(dtype).type)
                found |= {f"{name} {order} {key}": np.array(a) for key, a in results.items()}
    found["kernels"] = np.array(reached())
    if path := os.environ.get("GUARDS_RESULTS"):
        np.savez(path, **found)
    print("done", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
