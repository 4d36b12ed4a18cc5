import numpy as np
import pytest
from cases import DTYPES, LAYOUTS

from fastlayers.ops import arithmetic
from fastlayers.runtime.threads import set_num_threads

SHAPES = ((9001,), (90, 101), (3, 17, 19, 23), (2, 3, 5, 7, 51), (2, 3))


@pytest.mark.parametrize("dtype", [*DTYPES, np.int64, ">f4"])
@pytest.mark.parametrize("shape", SHAPES)
def test_sum_of_equal_shapes(shape, dtype):
    rng = np.random.default_rng(0)
    a, b = (rng.integers(-9, 9, shape).astype(dtype) for _ in range(2))
    for left in LAYOUTS:
        for right in LAYOUTS:
            for threads in (1, 2):
                set_num_threads(threads)
                got = arithmetic.add(left(a), right(b))
                np.testing.assert_array_equal(got, a + b)
                assert got.dtype == (a + b).dtype


def test_large_sums_of_images_keep_their_memory_layout():
    x = np.moveaxis(np.ones((4, 32, 32, 8), np.float32), -1, 1)
    assert np.moveaxis(arithmetic.add(x, x), 1, -1).flags.c_contiguous


def test_gradients_of_a_sum_are_the_same_array():
    x = np.ones((2, 3))
    da, db = arithmetic.add_backward(x, x, x, (True, True))
    assert da is x and db is x
