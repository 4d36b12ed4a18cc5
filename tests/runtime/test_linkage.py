"""Kernels that are called by address."""

import pytest

# The GEMM's compilation ends by an error, and works at the next call.
CODE = """
import numpy as np
from fastlayers import ops
from fastlayers.kernels.gemm.gemm import gemm_batch
from numba import types

shared = gemm_batch.kernels[types.float32]
address, shared._address = shared._address, None

def fail():
    raise {error}

shared._address = fail
dy, x, weight = (np.ones(shape, np.float32) for shape in ((20, 40), (20, 8), (40, 8)))
try:
    ops.linear_backward(dy, x, weight)
except {caught} as error:
    print("caught", type(error).__name__)
shared._address = address
assert (ops.linear_backward(dy, x, weight)[0] == 40).all()
"""


@pytest.mark.parametrize(
    ("error", "caught"),
    [
        ("OSError('no space left')", "RuntimeError"),
        ("KeyboardInterrupt", "RuntimeError"),
    ],
    ids=["error", "interrupt"],
)
def test_failed_compilation_is_an_error_and_no_crash(run, error, caught):
    result = run(CODE.format(error=error, caught=caught))
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("caught")


FORK = """
import os
import numpy as np
import fastlayers as fl
from fastlayers.runtime import parallel

x, weight = np.ones((200, 64), np.float32), np.ones((64, 64), np.float32)
fl.set_num_threads(2)
assert (fl.ops.linear(x, weight) == 64).all()
if os.fork() == 0:
    parallel.threading_layer()
    assert (fl.ops.linear(x, weight) == 64).all()
    os._exit(0)
assert os.waitstatus_to_exitcode(os.wait()[1]) == 0
"""


@pytest.mark.parametrize("threading", ["auto", "numba"])
def test_threading_layer_in_a_forked_child(run, threading):
    result = run(FORK, FASTLAYERS_THREADING=threading)
    assert result.returncode == 0, result.stderr
