"""The number of chunks of an op's work."""

import pytest

from fastlayers.ops.cuts import LEAST_BYTES, LEAST_WORK, MOST_CHUNKS, chunks
from fastlayers.runtime import threads


@pytest.mark.parametrize(
    ("wanted", "found"), [(0, 1), (0.9, 1), (1, 1), (2, 2), (3.9, 2), (4, 4), (100, 64), (1e9, 128)]
)
def test_chunks_are_a_power_of_two_of_at_least_the_least_work(wanted, found):
    assert chunks(wanted * LEAST_WORK) == found
    assert chunks(wanted * LEAST_BYTES, LEAST_BYTES) == found


def test_most_chunks_limit_them():
    assert [chunks(1e12, most=most) for most in (1, 16, 24)] == [1, 16, 24]
    assert MOST_CHUNKS == 2 * 64


def test_a_second_thread_has_a_chunk():
    assert chunks(threads.SERIAL_WORK) == 2
    assert threads.workers_for(threads.SERIAL_WORK - 1) == 1
