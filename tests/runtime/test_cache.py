import os
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fastlayers.runtime import cache, cpu, sources

RELU = """
import gc, json, numba, numpy as np
from fastlayers import ops

assert ops.relu(np.array([-1, 2], np.float32)).tolist() == [0, 2]
used = [d for d in gc.get_objects() if isinstance(d, numba.core.dispatcher.Dispatcher)]
hits, misses = (sum(sum(getattr(d.stats, name).values()) for d in used)
                for name in ("cache_hits", "cache_misses"))
print(json.dumps([hits, misses]))
"""


def run_relu(run, **variables):
    result = run(RELU, **variables)
    assert result.returncode == 0, result.stderr
    return tuple(map(int, result.stdout.strip(" []\n").split(",")))


def test_second_process_finds_the_kernels(run, tmp_path):
    hits, misses = run_relu(run, FASTLAYERS_CACHE_DIR=tmp_path / "cache")
    assert hits == 0 < misses
    (folder,) = (tmp_path / "cache").iterdir()
    assert folder.name == cache.sources_hash() and list(folder.glob("*.nbc"))
    assert run_relu(run, FASTLAYERS_CACHE_DIR=tmp_path / "cache")[1] == 0


CONV = """
import numpy as np
import fastlayers as fl
from fastlayers import ops
from fastlayers.runtime.cache import progress
fl.set_num_threads(2)
x, w = np.ones((8, 3, 32, 32), np.float32), np.ones((16, 3, 3, 3), np.float32)
assert (ops.conv2d(x, w) == 27).all()
print(progress().kernels)
"""


def test_second_process_runs_parallel_kernels_and_shared_code(run, tmp_path):
    counts = []
    for _ in range(2):
        result = run(CONV, FASTLAYERS_CACHE_DIR=tmp_path, FASTLAYERS_QUIET=1)
        assert result.returncode == 0, result.stderr
        counts.append(int(result.stdout))
    assert counts[0] > 3 and counts[1] == 0


def test_unwritable_folder_falls_back_to_the_temporary_one(run, tmp_path):
    file, temporary = tmp_path / "file", tmp_path / "temporary"
    file.touch()
    temporary.mkdir()
    run_relu(run, FASTLAYERS_CACHE_DIR=file / "below", TMPDIR=temporary)
    assert list(temporary.glob(f"fastlayers-*/{cache.sources_hash()}/*.nbc"))


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """Give the temporary folder, where the named one cannot be written."""
    (tmp_path / "file").touch()
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("FASTLAYERS_CACHE_DIR", str(tmp_path / "file" / "below"))
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path / "temporary"))
    return tmp_path / "temporary"


def check_nowhere():
    with pytest.warns(RuntimeWarning, match="no cache folder .* set FASTLAYERS_CACHE_DIR"):
        assert cache.cache_dir.__wrapped__() is None


def test_warns_without_any_folder(temporary):
    temporary.rmdir()
    check_nowhere()


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="needs user numbers")
def test_temporary_folder_that_others_can_write_is_not_used(tmp_path, monkeypatch):
    blocked = tmp_path / "file"
    blocked.touch()
    monkeypatch.setenv("FASTLAYERS_CACHE_DIR", str(blocked / "below"))
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path))
    private = tmp_path / f"fastlayers-{os.getuid()}"
    assert cache.cache_dir.__wrapped__() == private / cache.sources_hash()
    private.chmod(0o777)
    with pytest.warns(RuntimeWarning, match="no cache folder"):
        assert cache.cache_dir.__wrapped__() is None


def test_folder_without_a_variable(monkeypatch, tmp_path):
    monkeypatch.delenv("FASTLAYERS_CACHE_DIR", raising=False)
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache._cache_root() == tmp_path / "fastlayers"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache._cache_root() == Path.home() / ".cache" / "fastlayers"


def test_hash_covers_sources_and_vector_width(tmp_path, monkeypatch):
    hashes = {cache.sources_hash.__wrapped__()}
    monkeypatch.setattr(sources, "_PACKAGE", tmp_path)
    for folder in ("kernels", "runtime"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.py").touch()
    for path in ("kernels/a.py", "runtime/a.py", "kernels/conv/a.py"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        for content in ("a = 1", "a = 2"):
            (tmp_path / path).write_text(content)
            hashes.add(cache.sources_hash.__wrapped__())
    monkeypatch.setattr(cpu, "vector_bytes", lambda: 8)
    hashes.add(cache.sources_hash.__wrapped__())
    assert len(hashes) == 8


def test_files_are_named_by_the_whole_module():
    def found(module):
        def forward():
            pass

        forward.__module__, forward.__qualname__ = module, "forward"
        return cache._KernelCacheImpl(forward).filename_base

    names = [
        "fastlayers.kernels.conv.direct.forward",
        "fastlayers.kernels.pool.max_pool.forward",
        "own.forward",
    ]
    names = [found(name) for name in names]
    assert len(set(names)) == 3
    assert names[0].startswith("kernels.conv.direct.forward-forward-")


def test_damaged_files_are_compiled_anew(run, tmp_path):
    code = "import fastlayers as fl; fl.set_num_threads(2)\n" + RELU.replace(
        "assert", "ops.relu(np.ones(1 << 18, np.float32))\nassert"
    )
    run(code, FASTLAYERS_CACHE_DIR=tmp_path)
    files = list(tmp_path.glob("*/*.nbc"))
    assert len(files) == 2
    for file in files:
        content = file.read_bytes()
        file.write_bytes(content[: len(content) // 2])
    result = run(code, FASTLAYERS_CACHE_DIR=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("is damaged, its kernel is compiled again") == 1
    result = run(code, FASTLAYERS_CACHE_DIR=tmp_path)
    assert result.returncode == 0 and not result.stderr
    assert run_relu(run, FASTLAYERS_CACHE_DIR=tmp_path)[1] == 0


FULL = """
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))  # a write of more fails, as on a full disk
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs limits of file sizes")
def test_full_disk(run, tmp_path):
    result = run(FULL + RELU, FASTLAYERS_CACHE_DIR=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("kernels cannot be saved in") == 1
    assert not [file for file in tmp_path.glob("*/*") if file.stat().st_size]


def test_without_home(run, tmp_path):
    code = "import os\nos.environ.pop('HOME')\nos.getuid = lambda: 123456\n"
    code += "import tempfile; tempfile.tempdir = " + repr(str(tmp_path)) + "\n"
    code += "import pathlib\ndef home(): raise RuntimeError('no home')\npathlib.Path.home = home\n"
    result = run(code + RELU, FASTLAYERS_CACHE_DIR="", XDG_CACHE_HOME="")
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("no cache folder can be written") == 1


def test_processes_that_start_together(run, tmp_path):
    with ThreadPoolExecutor(3) as pool:
        counts = list(pool.map(lambda _: run_relu(run, FASTLAYERS_CACHE_DIR=tmp_path), range(3)))
    assert all(hits + misses > 0 for hits, misses in counts)
    assert run_relu(run, FASTLAYERS_CACHE_DIR=tmp_path)[1] == 0
    assert not list(tmp_path.glob("*/*.nbc?*"))
