"""Functions that only kernels call."""

import numpy as np
import pytest

from fastlayers.kernels import batchnorm
from fastlayers.runtime.cache import cache_dir, kernel
from fastlayers.runtime.linkage import SharedKernel


@kernel
def _twice(x):
    if x < 0:
        raise ValueError("negative")
    return 2 * x


@kernel
def four_times(x):
    return _twice(_twice(x))


def test_kernels_call_them():
    assert four_times(3) == 12
    with pytest.raises(ValueError, match="negative"):
        four_times(-1)


def test_python_cannot():
    with pytest.raises(TypeError, match="^_twice: only kernels can call it"):
        _twice(3)
    with pytest.raises(TypeError, match="cannot be called by address"):
        SharedKernel("a_symbol", _twice, ())


def test_they_are_not_cached():
    x, out = np.ones(4, np.float32), np.empty((2, 2), np.float32)
    form, work = (2, 2, 1, 2), np.empty(64, np.float32)
    batchnorm.batch_norm_statistics(x, form, True, x[:2], x[:2], -1.0, 0.0, 1, work, out)
    names = {path.name.split("-")[0] for path in cache_dir().glob("batchnorm.*")}
    assert "batchnorm.batch_norm_statistics" in names
    assert not [name for name in names if "._" in name]
