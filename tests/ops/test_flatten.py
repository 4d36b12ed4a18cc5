"""Flatten against its reference, on every memory layout."""

import numpy as np
import pytest

from fastlayers import ops, reference

LAYOUTS = {
    "channels-first": lambda x: x,
    "channels-last": lambda x: np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2),
    "fortran": np.asfortranarray,
    "negative": lambda x: x[::-1],
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64])
@pytest.mark.parametrize("axes", [(), (1,), (1, 2), (-2, -1), (0, 0)])
def test_flatten(layout, dtype, axes):
    x = LAYOUTS[layout](np.arange(2 * 3 * 4 * 5).astype(dtype).reshape(2, 3, 4, 5))
    y = ops.flatten(x, *axes)
    assert np.array_equal(y, reference.flatten(x, *axes)) and y.flags.c_contiguous
    if dtype != np.int64:
        dx = ops.flatten_backward(y, x.shape)
        assert np.array_equal(dx, reference.flatten_backward(y, x.shape))
        assert np.array_equal(dx, x)


def test_scalar():
    assert ops.flatten(np.array(3.0)).shape == (1,)
