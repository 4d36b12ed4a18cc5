import gc
import sys
from types import SimpleNamespace

from numba.core import event
from numba.core.caching import NullCache

from fastlayers.runtime import progress
from fastlayers.runtime.cache import kernel
from fastlayers.runtime.cache import progress as the_progress
from fastlayers.runtime.progress import Progress


def compiled(listener, seconds, clock, module="fastlayers.kernels.conv.direct"):
    """Tell the listener of a kernel with a callee that took so long to compile."""

    def function():
        pass

    function.__module__ = module

    class Dispatcher:
        py_func = function

    data = {"dispatcher": Dispatcher}
    for status, later in (("START", 0), ("START", 0), ("END", seconds / 2), ("END", seconds / 2)):
        clock.now += later
        listener.notify(event.Event("numba:compile", event.EventStatus[status], data))


def listener(monkeypatch, folder="the folder"):
    class Clock:
        now = 100.0

        @classmethod
        def perf_counter(cls):
            return cls.now

    monkeypatch.setattr(progress, "time", Clock)
    monkeypatch.delitem(sys.modules, "tqdm", raising=False)
    return Progress(folder), Clock


def test_says_once_that_kernels_are_compiled_then_how_far_it_is(monkeypatch, capsys):
    monkeypatch.delenv("FASTLAYERS_QUIET", raising=False)
    counter, clock = listener(monkeypatch)
    said = []
    for seconds in (0.5, 0.4, 0.3, 2, 3, 1):
        compiled(counter, seconds, clock)
        said.append(capsys.readouterr().err)
    assert [bool(text) for text in said] == [False, False, True, False, True, False]
    assert "compiling kernels for this CPU, kept in the folder" in said[2]
    assert said[4] == "fastlayers: 5 kernels compiled in 6 s\n"


def test_quiet(monkeypatch, capsys):
    monkeypatch.setenv("FASTLAYERS_QUIET", "1")
    counter, clock = listener(monkeypatch)
    compiled(counter, 10, clock)
    assert capsys.readouterr().err == ""
    assert (counter.kernels, counter.seconds) == (1, 10)


def test_functions_of_users_do_not_count(monkeypatch, capsys):
    counter, clock = listener(monkeypatch)
    compiled(counter, 10, clock, module="users.own")
    assert (counter.kernels, counter.seconds, capsys.readouterr().err) == (0, 0, "")


@kernel
def added(x):
    return x + 1


def test_kernels_are_counted_where_they_are_compiled(monkeypatch):
    monkeypatch.setattr(added, "_cache", NullCache())  # an earlier run may have left it there
    monkeypatch.setattr(added.py_func, "__module__", "fastlayers.test")
    before = the_progress().kernels
    added.compile("(int64,)")
    added.compile("(int64,)")
    assert the_progress().kernels == before + 1
    assert added(1) == 2


def test_garbage_is_collected_again_afterwards(monkeypatch):
    counter, clock = listener(monkeypatch)
    for before in (True, False):
        (gc.enable if before else gc.disable)()
        try:
            compiled(counter, 0.1, clock)
            assert gc.isenabled() is before
        finally:
            gc.enable()


def test_leaves_progress_bars_whole(monkeypatch):
    monkeypatch.delenv("FASTLAYERS_QUIET", raising=False)
    counter, clock = listener(monkeypatch)
    written = []
    bar = SimpleNamespace(write=lambda text, file: written.append(text))
    monkeypatch.setitem(sys.modules, "tqdm", SimpleNamespace(tqdm=bar))
    compiled(counter, 2, clock)
    assert len(written) == 1


BROKEN = """
import sys
from fastlayers.runtime import progress
progress.PATIENCE = 0

class Logger:
    def write(self, text):
        raise LookupError(text)

sys.stderr = Logger()
import numpy as np
from fastlayers import ops
for _ in range(2):
    assert ops.relu(np.array([-1, 2], np.float32)).tolist() == [0, 2]
sys.stderr = sys.__stderr__  # Python's own use of it at the end fails too
"""


def test_an_op_runs_where_nothing_can_be_said(run, tmp_path):
    result = run(BROKEN, FASTLAYERS_CACHE_DIR=tmp_path, FASTLAYERS_QUIET=0)
    assert result.returncode == 0, result.stdout
    assert list(tmp_path.glob("*/*.nbc"))  # nor was its kernel lost
