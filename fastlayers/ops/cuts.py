"""Into how many chunks an op cuts its work, for any number of threads.

The number follows from shapes and facts of the CPU alone, never from the number of threads: chunks
have partial sums of their own, so every bit of a result would depend on it.
"""

from __future__ import annotations

from fastlayers.runtime import threads

__all__ = ["LEAST_BYTES", "LEAST_WORK", "MOST_CHUNKS", "chunks"]

# Vector operations of a chunk, as `threads.workers_for` counts them: 10 to 30 us, of which taking
# a chunk costs 1 or 2 %. Two chunks are there as soon as a second thread pays.
LEAST_WORK = threads.SERIAL_WORK / 2
# The same where memory is all: about 10 us at the 10 GB/s of a core.
LEAST_BYTES = 128 * 1024
# Two for each of 64 threads, so that a slow one holds up none of the others for long.
MOST_CHUNKS = 128


def chunks(work: float, least: float = LEAST_WORK, most: int = MOST_CHUNKS) -> int:
    """Number of chunks of at least `least` of the `work`: a power of two, or at most `most`.

    So 2, 4, ... 64 threads get the same number each, where 3 chunks would take two threads as long
    as 4. Pass a lower `most` where each chunk has partial sums, which cost memory.

    Parameters
    ----------
    work, least : float
        Vector operations, or for `LEAST_BYTES` bytes that are moved.
    most : int
        At least 1.
    """
    wanted = max(1, int(work // least))
    return max(1, min(1 << (wanted.bit_length() - 1), most))
