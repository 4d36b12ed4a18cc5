"""GFLOP/s of products compared with the CPU's peak, GB/s of all other ops with a copy's.

The marked layers of the table. Op and reference alternate in one process, which asv runs once for
all of them, since the host's speed varies from minute to minute.
"""

import functools
import itertools
import statistics
import time

from benchmarks.cases import CASES, marked, tracked
from benchmarks.suite import Attributes, prepared

# Turns of an op and its reference, and seconds per turn.
ROUNDS, TURN = 5, 0.01


def _layers(products):
    """Marked layers by op, pass and name: of ops with products, or of others that move data."""
    passes = dict.fromkeys((case.op, which) for case in CASES for which in case.passes)
    found = {}
    for op, which in passes:
        cases = tracked(op, which)
        for layer in marked(op, which):
            case, batch = cases[layer]
            counted = case.flops(batch, which) if products else not case.flops(batch, which)
            if counted and case.bytes(batch, which):
                found[f"{op} {which} {layer}"] = op, which, layer
    return found


PRODUCTS, MOVES = _layers(True), _layers(False)


def _alternating(*works):
    """Median seconds of each."""
    times = [[] for _ in works]
    for _, (work, found) in itertools.product(range(ROUNDS), zip(works, times, strict=True)):
        end = time.perf_counter() + TURN
        work()
        while not found or time.perf_counter() < end:
            start = time.perf_counter()
            work()
            found.append(time.perf_counter() - start)
    return [statistics.median(found) for found in times]


def _work(op, which, layer):
    case, batch = tracked(op, which)[layer]
    return case, batch, prepared(op, which, layer)


class Products(Attributes):
    """Shares above 1 use Winograd, whose operations are counted as those of direct arithmetic."""

    params = [list(PRODUCTS)]
    param_names = ("layer",)

    def setup_cache(self):
        import fastlayers as fl
        from benchmarks.compare import peak

        found = {}
        fastest, operations = peak.prepare(fl.get_num_threads())
        for name, (op, which, layer) in PRODUCTS.items():
            case, batch, work = _work(op, which, layer)
            ours, theirs = _alternating(work, fastest)
            speed = case.flops(batch, which) / ours
            found[name] = speed / 1e9, speed * theirs / operations
        return found

    setup_cache.timeout = 300

    def track_gflops(self, found, layer):
        return found[layer][0]

    def track_share_of_peak(self, found, layer):
        return found[layer][1]

    track_gflops.unit = "GFLOP/s"
    track_share_of_peak.unit = "of the measured FMA peak"


class Moves(Attributes):
    """The least bytes that must be moved, compared with a copy of as many on the same threads."""

    params = [list(MOVES)]
    param_names = ("layer",)

    def setup_cache(self):
        import numpy as np

        import fastlayers as fl
        from fastlayers.kernels.speed import copy
        from fastlayers.runtime import memory

        found, threads = {}, fl.get_num_threads()
        for name, (op, which, layer) in MOVES.items():
            case, batch, work = _work(op, which, layer)
            moved = case.bytes(batch, which)
            source, out = (memory.empty(moved // 8, np.float32) for _ in range(2))
            source.fill(1)  # of pages that nobody has touched, all reads are of one
            ours, theirs = _alternating(work, functools.partial(copy, source, threads, out))
            found[name] = moved / ours / 1e9, theirs / ours
        return found

    setup_cache.timeout = 300

    def track_gbytes(self, found, layer):
        return found[layer][0]

    def track_share_of_copy(self, found, layer):
        return found[layer][1]

    track_gbytes.unit = "GB/s"
    track_share_of_copy.unit = "of a copy's speed"
