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


@pytest.mark.parametrize(
    ("error", "argument", "axes"),
    [
        (ValueError, "start_dim", (4,)),
        (ValueError, "end_dim", (0, -5)),
        (ValueError, "end_dim", (2, 1)),
        (TypeError, "start_dim", (0.5,)),
    ],
)
def test_errors(error, argument, axes):
    with pytest.raises(error, match=rf"^flatten: .*{argument}.* got"):
        ops.flatten(np.zeros((2, 3, 4, 5)), *axes)


def test_wrong_gradient():
    with pytest.raises(ValueError, match=r"^flatten_backward: grad_output .* got"):
        ops.flatten_backward(np.zeros((2, 3)), (2, 4))
