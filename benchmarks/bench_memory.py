"""Peak memory of a process that trains, beside one that only imports.

Compilation takes more memory than most networks, so kernels are compiled in another process.
"""

import functools
import subprocess
import sys
from pathlib import Path

from benchmarks.compare.cases import CASES
from benchmarks.suite import Attributes

MODELS = {f"{case.name}, batch {case.batch}": case for case in CASES if case.shape[-1] < 224}
STEPS = 3


@functools.cache
def _compile(name):
    code = f"from benchmarks.bench_memory import train; train({name!r})"
    # The suite's folder comes last: the library to measure is the installed one.
    places = [*sys.path, str(Path(__file__).resolve().parents[1])]
    path = f"import sys; sys.path[:] = {places!r}; "
    subprocess.run([sys.executable, "-c", path + code], check=True)


def train(name):
    """A few steps, after which the library's networks take no new memory."""
    import fastlayers as fl
    from benchmarks.compare.contestants import prepare_fastlayers

    step, _ = prepare_fastlayers(fl.get_num_threads(), MODELS[name])
    for _ in range(STEPS):
        step()


class Baseline(Attributes):
    def peakmem_import(self):
        import fastlayers.kernels.gemm.gemm
        import fastlayers.nn
        import fastlayers.optim  # noqa: F401


class Training(Attributes):
    params = [list(MODELS)]
    param_names = ("model",)

    def setup(self, model):
        _compile(model)

    def peakmem_steps(self, model):
        train(model)
