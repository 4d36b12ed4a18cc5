"""What a new process waits for: imports, and the first call with and without compiled kernels."""

import functools
import json
import os
import subprocess
import sys
import tempfile
import textwrap

from benchmarks.suite import Attributes

CALLS = {
    "conv2d": """
        import numpy as np
        from fastlayers import ops
        x = np.ones((8, 3, 32, 32), np.float32)
        ops.conv2d(x, np.ones((16, 3, 3, 3), np.float32), padding=1)
    """,
    "training step of the CIFAR CNN": """
        import numpy as np
        import fastlayers as fl
        model = fl.models.CifarCNN()
        optimizer = fl.optim.SGD(model.parameters(), lr=0.001, momentum=0.9)
        x = fl.tensor(np.ones((4, 3, 32, 32), np.float32))
        fl.nn.CrossEntropyLoss()(model(x), fl.tensor(np.arange(4))).backward()
        optimizer.step()
    """,
}
# Before the clock starts; `exit` removes everything.
EMPTY_FOLDER = """
    import atexit, os, shutil, tempfile
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder)
    os.environ["FASTLAYERS_CACHE_DIR"] = folder
    os.environ["FASTLAYERS_QUIET"] = "1"
"""
COUNT = """
    import json
    from fastlayers.runtime.cache import progress
    print(json.dumps([progress().seconds, progress().kernels]))
"""


def _run(*codes, **environment):
    variables = {**os.environ, "FASTLAYERS_QUIET": "1", **environment}
    command = [sys.executable, "-c", "".join(map(textwrap.dedent, codes))]
    return subprocess.run(command, env=variables, check=True, capture_output=True, text=True).stdout


@functools.cache
def _fill_cache(call):
    _run(CALLS[call])


class Start(Attributes):
    """Each sample is a new process."""

    number = 1
    warmup_time = 0
    repeat = 5


class Import(Start):
    params = [["numpy", "numba", "fastlayers", "fastlayers.nn", "fastlayers.kernels.gemm.gemm"]]
    param_names = ("module",)

    def timeraw_import(self, module):
        return f"import {module}"


class FirstCall(Start):
    params = [list(CALLS)]
    param_names = ("call",)

    def setup(self, call):
        _fill_cache(call)

    def timeraw_cached(self, call):
        return CALLS[call]


class ColdFirstCall(Start):
    params = [list(CALLS)]
    param_names = ("call",)
    repeat = 2
    rounds = 1

    def timeraw_cold(self, call):
        return CALLS[call], EMPTY_FOLDER


class Compilation(Attributes):
    params = [list(CALLS)]
    param_names = ("call",)

    def setup_cache(self):
        found = {}
        for call, code in CALLS.items():
            with tempfile.TemporaryDirectory() as folder:
                lines = _run(code, COUNT, FASTLAYERS_CACHE_DIR=folder)
            found[call] = json.loads(lines)
        return found

    setup_cache.timeout = 300

    def track_compile_seconds(self, found, call):
        return found[call][0]

    def track_kernels_compiled(self, found, call):
        return found[call][1]

    track_compile_seconds.unit = "seconds"
    track_kernels_compiled.unit = "kernels"
