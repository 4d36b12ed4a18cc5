"""How kernels are compiled."""

import sys

import numba
import numpy as np
import pytest

from fastlayers.kernels.gemm import gemm
from fastlayers.kernels.norm import batchnorm
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


@kernel
def half(x):
    return x / 2


@kernel
def halve(x, out):
    for i in range(x.size):
        out[i] = half(x[i])


def test_kernels_call_kernels():
    x = np.arange(3.0)
    out = np.empty_like(x)
    halve(x, out)
    assert out.tolist() == [0, 0.5, 1]
    assert not half.overloads  # linked, so that no machine code was made of it alone


def test_compiled_code_of_users_calls_them():
    assert numba.njit(lambda x: four_times(x) + 1)(2) == 9


def test_kernels_call_inner_ones():
    assert four_times(3) == 12
    with pytest.raises(ValueError, match="negative"):
        four_times(-1)


def test_from_python_they_run_uncompiled():
    assert _twice(3) == 6
    with pytest.raises(ValueError, match="negative"):
        _twice(-1)


def test_shared_code():
    with pytest.raises(TypeError, match="^gemm_batch: only compiled code can call it"):
        gemm.gemm_batch.body(1)
    with pytest.raises(TypeError, match="cannot be called by address"):
        SharedKernel("a_symbol", _twice, ())


def test_they_are_not_cached():
    x, out = np.ones(4, np.float32), np.empty((2, 2), np.float32)
    facts, work = (2, 2, 1, 2, 2, 1, False, False), np.empty(64, np.float32)
    call = (facts, True, np.nan, 0.0, 1)
    batchnorm.batch_norm_statistics(x, x[:2], x[:2], call, work, out)
    names = {path.name.split("-")[1] for path in cache_dir().glob("kernels.norm.batchnorm-*")}
    assert "batch_norm_statistics" in names
    assert not [name for name in names if name.startswith("_")]


SVE = """
import fastlayers as fl
from fastlayers import nn, optim
from fastlayers.runtime import cpu
cpu.LEVELS["armv8.2-a"] = cpu.LEVELS["armv8.2-a"]._replace(name={name!r}, features="")
cpu.supports = lambda level: False
cpu.choose("armv8.2-a")
from fastlayers.kernels.optimizer import sgd
from fastlayers.runtime import compiler, cross
if {allowed}:
    compiler._machine = lambda codegen: codegen._tm
parameter = nn.Parameter([1.0])
parameter.grad = fl.Tensor([1.0])
with cross.compiling():
    optim.SGD([parameter], 0.1).step()
(code,) = sgd.inspect_llvm().values()
print("<vscale x " in code)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="compiles for Linux, on Linux")
@pytest.mark.parametrize(
    ("name", "allowed"), [("neoverse-v1", False), ("neoverse-n2", False), ("neoverse-v1", True)]
)
def test_no_kernel_gets_scalable_vectors(run, tmp_path, name, allowed):
    """LLVM's vectoriser would choose them for the loop over parameters, if it was allowed to."""
    code = SVE.format(name=name, allowed=allowed)
    result = run(code, FASTLAYERS_CACHE_DIR=tmp_path, FASTLAYERS_CPU=None)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == str(allowed)
