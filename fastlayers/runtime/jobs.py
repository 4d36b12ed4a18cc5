"""Parallel regions as jobs: chunks of work that threads claim from counters.

Each share of a job's chunks has a word that counts those left, beside the number of workers. Who
sets it to one less, by `swap`, has claimed a chunk of the job that is in this place now, be it
another than a moment ago: all else about that job is written before the counts, is read after the
claim, and stays until its last chunk is done. So a thread may look at jobs that have ended.
"""

from __future__ import annotations

from typing import Any

from fastlayers.runtime.cache import kernel
from fastlayers.runtime.words import call, load, load_pointer, store, store_pointer, swap

__all__ = [
    "FIRST",
    "LAST",
    "LEFT",
    "LINE",
    "MOST",
    "OWN",
    "PENDING",
    "SHARES",
    "SIZE",
    "TAKEN",
    "WORKERS",
    "claim",
    "drain",
    "publish",
    "run_alone",
    "run_chunk",
    "take",
]

MOST = 64  # workers of a job
JOBS = 8  # at a time; a region beyond them runs in its caller
LINE = 16  # words; two cache lines, as some CPUs fetch pairs of them
# Words of a job: whether it is taken, the chunk's function, its context, how many workers there
# are, chunks that are not done (twice, see `pool`), the words of the caller's thread, and those of
# each share: chunks left with the number of workers, and the number of the chunk after the last.
TAKEN, CHUNK, CONTEXT, WORKERS, PENDING, OWN, SHARES = 0, LINE, 17, 18, 2 * LINE, 3 * LINE, 4 * LINE
LEFT, LAST = 0, 1
WORKERS_BIT = 56  # of LEFT
LEFT_MASK = (1 << WORKERS_BIT) - 1
SIZE = SHARES + MOST * LINE
FIRST = 128 * LINE  # the first job's place; before it are the words of `pool`


@kernel(inner=True)
def take(memory: Any) -> int:
    """Place of a job that is free, or -1."""
    for k in range(JOBS):
        job = FIRST + k * SIZE
        if swap(memory, job + TAKEN, 0, 1):
            return job
    return -1


@kernel(inner=True)
def publish(memory: Any, job: int, chunk: Any, context: Any, count: int, workers: int) -> None:
    """Write all about a job, and last the counts, from which chunks are claimed."""
    store_pointer(memory, job + CHUNK, chunk)
    store_pointer(memory, job + CONTEXT, context)
    store(memory, job + WORKERS, workers)
    store(memory, job + PENDING, 2 * count)
    for worker in range(workers):
        share = job + SHARES + LINE * worker
        first, last = count * worker // workers, count * (worker + 1) // workers
        store(memory, share + LAST, last)
        store(memory, share + LEFT, (workers << WORKERS_BIT) | (last - first))


@kernel(inner=True)
def claim(memory: Any, share: int, worker: int) -> int:
    """Number of the next chunk of a share, or -1; also -1 if the job is not for this worker."""
    while True:
        word = load(memory, share + LEFT)
        left = word & LEFT_MASK
        if left == 0 or word >> WORKERS_BIT <= worker:
            return -1
        if swap(memory, share + LEFT, word, word - 1):
            return int(load(memory, share + LAST) - left)


@kernel(inner=True)
def run_chunk(memory: Any, job: int, index: int, worker: int) -> None:
    """Run a chunk that was claimed."""
    call(load_pointer(memory, job + CHUNK), load_pointer(memory, job + CONTEXT), index, worker)


@kernel(inner=True)
def run_alone(chunk: Any, context: Any, count: int) -> None:
    """Run all chunks of a region in its caller."""
    for index in range(count):
        call(chunk, context, index, 0)


@kernel(inner=True)
def drain(memory: Any, job: int, worker: int) -> None:
    """Run what is left of a job, first of the worker's own share."""
    workers = load(memory, job + WORKERS)
    for k in range(workers):
        share = job + SHARES + LINE * ((worker + k) % workers)
        index = claim(memory, share, worker)
        while index >= 0:
            run_chunk(memory, job, index, worker)
            index = claim(memory, share, worker)
