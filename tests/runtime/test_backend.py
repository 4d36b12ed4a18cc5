import json

import backend_cases
import numba
import numpy as np
import pytest

from fastlayers import ops

HIDDEN = "import sys; sys.modules['numba'] = sys.modules['llvmlite'] = None\n"
MAIN = "import backend_cases; backend_cases.main({!r})"


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compiled")
    return backend_cases.ops_results() | backend_cases.training_results(folder)


def test_every_op_is_called(compiled):
    assert {key.split()[0] for key in compiled} >= set(ops.__all__)


@pytest.mark.parametrize("missing", [False, True], ids=["asked", "missing"])
def test_results_are_those_of_kernels(run, tmp_path, compiled, missing):
    code = MAIN.format(str(tmp_path))
    variables = {"FASTLAYERS_BACKEND": "" if missing else "numpy"}
    result = run(HIDDEN + code if missing else code, **variables)
    assert result.returncode == 0, result.stderr
    reason = "numba is not installed" if missing else "FASTLAYERS_BACKEND is numpy"
    assert result.stderr.count("Warning") == result.stderr.count(reason) == 1
    with np.load(tmp_path / "results.npz") as found:
        assert set(found.files) == set(compiled)
        for key, expected in compiled.items():
            value = found[key]
            assert value.dtype == expected.dtype and value.shape == expected.shape, key
            tolerance = 1e-12 if expected.dtype == np.float64 else 2e-5
            scale = max(1.0, np.abs(np.nan_to_num(expected, posinf=0, neginf=0)).max(initial=0))
            np.testing.assert_allclose(
                value, expected, rtol=tolerance, atol=tolerance * scale, err_msg=key
            )
    for name in ("sgd", "adamw"):
        with np.load(tmp_path / f"{name}.npz") as state:
            for key in state.files:
                np.testing.assert_allclose(
                    state[key], compiled[f"{name} {key}"], rtol=1e-4, atol=1e-4
                )


HIDING = """
import sys
class Finder:
    def find_spec(name, path=None, target=None):
        if name == "numba":
            raise ModuleNotFoundError("numba is hidden")
sys.meta_path.insert(0, Finder)
"""
RELU = """
import numpy as np, fastlayers as fl
from fastlayers.runtime import backend
for _ in range(2):
    assert fl.ops.relu(np.array([-1, 2], np.float32)).tolist() == [0, 2]
x = fl.tensor(np.ones((2, 3, 8, 8), np.float32))
assert fl.nn.Conv2d(3, 4, 3)(x).shape == (2, 4, 6, 6)
assert backend.name() == "numpy" and backend.NUMPY
"""


def test_hidden_by_a_finder(run):
    result = run(HIDING + RELU, FASTLAYERS_BACKEND="")
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("Warning") == result.stderr.count("numba is not installed") == 1


BROKEN = {
    "ImportError": "raise ImportError('needs another NumPy')",
    "OSError": "raise OSError('libllvmlite.so: cannot open shared object file')",
    "AttributeError": "import numpy\nnumpy.removed",
    "empty": "class config: DISABLE_JIT = 0",  # what is left of a package that was removed by hand
}


@pytest.mark.parametrize("how", BROKEN)
def test_installed_but_broken(run, tmp_path, how):
    (tmp_path / "numba").mkdir()
    (tmp_path / "numba" / "__init__.py").write_text(BROKEN[how])
    path = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
    result = run(path + RELU, FASTLAYERS_BACKEND="")
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("Warning") == result.stderr.count("numba does not work here") == 1
    missing = "AttributeError: module 'numba' has no attribute 'njit'"
    error = missing if how == "empty" else f"{how}: "
    assert error in result.stderr
    result = run(path + RELU, FASTLAYERS_BACKEND="numba")
    assert result.returncode == 1 and "fastlayers runs on NumPy" not in result.stderr
    assert error in result.stderr.splitlines()[-1]


MOVED = {
    "name": "del numba.core.compiler._LowerResult",
    "module": "sys.modules['numba.core.codegen'] = None",
    "function": "del numba.core.event.register",
}


@pytest.mark.parametrize("what", MOVED)
def test_numba_that_has_moved_its_internals_is_an_error(run, what):
    code = f"import sys, numba.core.compiler\n{MOVED[what]}\n"
    result = run(code + RELU, FASTLAYERS_BACKEND="")
    assert result.returncode == 1 and "Warning" not in result.stderr
    last = result.stderr.splitlines()[-1]
    assert last.startswith(f"ImportError: numba {numba.__version__} has moved internals that")
    assert "python -m pip install 'numba<" in last
    result = run(code + RELU, FASTLAYERS_BACKEND="numpy")
    assert result.returncode == 0, result.stderr


def test_number_of_threads_that_numba_refuses_is_named(run):
    result = run(RELU, FASTLAYERS_BACKEND="", NUMBA_NUM_THREADS=0)
    message = "ValueError: NUMBA_NUM_THREADS: expected a positive integer, got '0'"
    assert result.stderr.splitlines()[-1] == message


def test_compilation_turned_off(run):
    result = run(RELU, FASTLAYERS_BACKEND="", NUMBA_DISABLE_JIT=1)
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("Warning") == result.stderr.count("NUMBA_DISABLE_JIT is set") == 1


def test_numba_is_imported_by_the_first_op_alone(run):
    code = "import sys\nfrom fastlayers import data, nn, ops, optim, training, utils, vision\n"
    code += "assert not {'numba', 'llvmlite'} & set(sys.modules)\n"
    result = run(code, FASTLAYERS_BACKEND="")
    assert result.returncode == 0 and not result.stderr, result.stderr


def test_info(run):
    result = run(
        HIDDEN + "from fastlayers.__main__ import main; main(['info', '--json'])",
        FASTLAYERS_BACKEND="",
    )
    assert json.loads(result.stdout)["backend"] == "numpy"


@pytest.mark.parametrize(
    ("asked", "hidden", "text"),
    [
        ("torch", False, "FASTLAYERS_BACKEND: expected numba or numpy, got 'torch'"),
        ("numba", True, "FASTLAYERS_BACKEND: numba is not installed"),
    ],
)
def test_wrong_backend(run, asked, hidden, text):
    result = run(HIDDEN * hidden + "import fastlayers.ops", FASTLAYERS_BACKEND=asked)
    assert result.returncode == 1 and text in result.stderr
