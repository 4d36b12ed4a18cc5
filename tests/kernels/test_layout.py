"""The exchange of axes by transposed blocks."""

import numpy as np
import pytest

from fastlayers.kernels import layout

SIZES = (1, 2, 3, 7, 8, 9, 15, 16, 17, 33, 64)


@pytest.mark.parametrize("dtype", ["f4", "f8", "u1", "?", "i2", "i8"])
def test_swap_axes_writes_its_output_only(dtype):
    generator = np.random.default_rng(0)
    for rows in SIZES:
        for columns in SIZES:
            x = generator.integers(0, 100, (2, rows, columns)).astype(dtype)
            for pieces in (1, 3):
                memory = np.ones(x.size + 128, dtype)
                out = memory[64:-64].reshape(2, columns, rows)
                layout.swap_axes(x, pieces, 1, out)
                np.testing.assert_array_equal(out, x.transpose(0, 2, 1))
                assert memory[:64].all()
                assert memory[-64:].all()


@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 0, 4), (2, 3, 0)])
def test_swap_axes_of_nothing(shape):
    layout.swap_axes(np.empty(shape), 2, 1, np.empty((shape[0], shape[2], shape[1])))
