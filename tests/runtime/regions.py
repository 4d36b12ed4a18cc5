"""Parallel regions that check themselves, for `test_pool`, whose processes import this.

Numba keeps the code in ``NUMBA_CACHE_DIR``.
"""

import contextlib
import os
import signal

import numpy as np
from llvmlite import ir
from numba import njit, types

from fastlayers.runtime.parallel import parallel_for
from fastlayers.runtime.system import clock
from fastlayers.runtime.words import extern, primitive

compiled = njit(nogil=True, cache=True)


@primitive(types.void(types.int64))
def sleep(builder, microseconds):
    """Sleep, without its core."""
    i32 = ir.IntType(32)
    builder.call(extern(builder, "usleep", i32, i32), [builder.trunc(microseconds, i32)])


@compiled
def nap(microseconds):
    """Sleep for a time, or compute for one that is negative."""
    if microseconds > 0:
        sleep(microseconds)
    end = clock() - 1000 * microseconds
    while clock() < end:
        pass


@compiled
def _task(i, worker, naps, visits, inside, wrong):
    if not 0 <= worker < len(inside):
        wrong[:] = True
        return
    if inside[worker]:  # another task has the same worker at the same time
        wrong[worker] = True
    inside[worker] = i + 1
    nap(naps[i])
    visits[i, worker] += 1
    if inside[worker] != i + 1:
        wrong[worker] = True
    inside[worker] = 0


@compiled
def _region(naps, workers, visits, inside, wrong):
    parallel_for(_task, len(naps), workers, (naps, visits, inside, wrong))


class Region:
    """A region of `count` tasks, the first of which `naps` are for."""

    def __init__(self, count, workers, naps=()):
        self.naps = np.zeros(count, np.int64)
        self.naps[: len(naps)] = naps
        self.visits = np.zeros((count, workers), np.int64)
        self.inside, self.wrong = np.zeros(workers, np.int64), np.zeros(workers, np.bool_)

    def run(self):
        _region(self.naps, len(self.inside), self.visits, self.inside, self.wrong)

    def check(self, times=1):
        """Assert that each task ran, `times` times, and as its worker's only one."""
        assert (self.visits.sum(1) == times).all(), self.visits.tolist()
        assert not self.wrong.any() and not self.inside.any(), self.wrong.tolist()


def launch(count, workers, naps=()):
    """Run a region and check it."""
    region = Region(count, workers, naps)
    region.run()
    region.check()


def launches(seed, number):
    """Run regions of random sizes, some of whose tasks nap."""
    rng = np.random.default_rng(seed)
    for count, workers in rng.integers((0, 1), (201, 10), (number, 2)).tolist():
        naps = rng.integers(-200, 201, count) * (rng.random(count) < 0.03)
        launch(count, workers, naps)


@compiled
def _innermost(k, worker, i, j, visits):
    visits[i, j, k, worker] += 1


@compiled
def _inner(j, worker, i, visits):
    visits[i, j, 0, 2 + worker] += 1
    parallel_for(_innermost, visits.shape[2], 2, (i, j, visits))


@compiled
def _outer(i, worker, visits):
    parallel_for(_inner, visits.shape[1], 2, (i, visits))


@compiled
def _nested(visits, workers):
    parallel_for(_outer, visits.shape[0], workers, (visits,))


def nested(workers):
    """Run and check regions in tasks of regions in tasks of a region."""
    visits = np.zeros((5, 4, 6, 4), np.int64)
    _nested(visits, workers)
    assert (visits[..., :2].sum(-1) == 1).all()
    assert (visits[:, :, 0, 2:].sum(-1) == 1).all()


def signal_masks():
    """Which signals each thread of this process blocks, as bits, by the system's number for it."""
    masks = {}
    for thread in os.listdir("/proc/self/task"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
            with open(f"/proc/self/task/{thread}/status") as file:
                (blocked,) = [line.split()[1] for line in file if line.startswith("SigBlk")]
            masks[int(thread)] = int(blocked, 16)
    return masks


def workers():
    """How many threads the pool has: those that block SIGINT.

    The C library blocks SIGSEGV as well in threads that start or end; those are waited for.
    """

    def blocks(mask, number):
        return mask >> (number - 1) & 1

    while any(blocks(mask, signal.SIGSEGV) for mask in signal_masks().values()):
        pass
    return sum(blocks(mask, signal.SIGINT) for mask in signal_masks().values())
