"""Each version of the package runs its own kernels, however it was installed."""

import compileall
import shutil
import zipfile
from pathlib import Path

import pytest

import fastlayers as fl
from fastlayers.runtime import cache, sources

PACKAGE = Path(fl.__file__).parent
# A folder of kernels, as there may be one for each family of them.
KERNEL = """
from fastlayers.runtime.cache import kernel

@kernel
def scaled(x):
    return {factor} * x
"""
PROGRAM = """
from fastlayers.kernels.sub.scale import scaled
from fastlayers.runtime.cache import progress
print(scaled(2.0), progress().kernels)
"""
# Imports from a folder under another name, as from an archive that is no file system.
IMPORTER = """
import importlib.util, os, sys

class Importer:
    def __init__(self, path):
        if not path.startswith("archive:"):
            raise ImportError
        self.path, self.folder = path, path.removeprefix("archive:")

    def find_spec(self, name, target=None):
        path = os.path.join(self.folder, name.rpartition(".")[2])
        if not os.path.isdir(path) and not os.path.exists(path + ".py"):
            return None
        spec = importlib.util.spec_from_file_location(name, "archive:" + path, loader=self)
        if os.path.isdir(path):
            spec.submodule_search_locations = ["archive:" + path]
        return spec

    def create_module(self, spec):
        return None

    def exec_module(self, module):
        exec(self.get_code(module.__name__), vars(module))

    def get_code(self, name):
        path = os.path.join(self.folder, name.rpartition(".")[2])
        path = os.path.join(path, "__init__.py") if os.path.isdir(path) else path + ".py"
        with open(path) as file:
            return compile(file.read(), os.path.basename(path), "exec")

    def iter_modules(self, prefix=""):
        for name in sorted(os.listdir(self.folder)):
            if name != "__init__.py" and not name.startswith("__pycache__"):
                yield prefix + name.removesuffix(".py"), not name.endswith(".py")

sys.path_hooks.insert(0, Importer)
sys.path.insert(0, "archive:" + ROOT)
"""


def release(folder, factor):
    """Make a copy of the package whose kernel multiplies by `factor`."""
    shutil.copytree(PACKAGE, folder / "fastlayers", ignore=shutil.ignore_patterns("__pycache__"))
    sub = folder / "fastlayers" / "kernels" / "sub"
    sub.mkdir()
    (sub / "__init__.py").touch()
    (sub / "scale.py").write_text(KERNEL.format(factor=factor))
    return folder


def as_sources(folder):
    return [folder], PROGRAM


def as_bytecode(folder):
    compileall.compile_dir(folder, quiet=2, legacy=True)
    for path in folder.rglob("*.py"):
        path.unlink()
    return [folder], PROGRAM


def as_zip(folder):
    path = folder.with_suffix(".zip")
    with zipfile.ZipFile(path, "w") as file:
        for found in folder.rglob("*"):
            file.write(found, found.relative_to(folder))
    return [path], PROGRAM


def as_archive(folder):
    return [], f"ROOT = {str(folder)!r}\n{IMPORTER}{PROGRAM}"


@pytest.mark.parametrize("installed", [as_sources, as_bytecode, as_zip, as_archive])
def test_every_release_runs_its_own_kernels(run, tmp_path, installed):
    releases = [installed(release(tmp_path / str(factor), factor)) for factor in (3, 5)]
    start = {"FASTLAYERS_CACHE_DIR": tmp_path / "cache", "options": {"cwd": tmp_path}}
    found = [run(code, paths, **start) for paths, code in (*releases, releases[0])]
    assert [result.stderr for result in found] == [""] * 3
    assert [result.stdout for result in found] == [
        f"{line}\n" for line in ("6.0 1", "10.0 1", "6.0 0")
    ]


def test_an_edit_below_kernels_is_seen(run, tmp_path):
    release(tmp_path, 3)
    start = {"paths": [tmp_path], "options": {"cwd": tmp_path}}
    start["FASTLAYERS_CACHE_DIR"] = tmp_path / "cache"
    assert run(PROGRAM, **start).stdout == "6.0 1\n"
    (tmp_path / "fastlayers/kernels/sub/scale.py").write_text(KERNEL.format(factor="17"))
    assert run(PROGRAM, **start).stdout == "34.0 1\n"


def test_contents_are_all_modules_and_nothing_else(monkeypatch, tmp_path):
    monkeypatch.setattr(sources, "_PACKAGE", tmp_path)
    names = ["kernels/a.py", "kernels/b/a.py", "kernels/b/c.pyc", "runtime/a.py"]
    for name in [*names, "kernels/__pycache__/a.cpython-311.pyc", "kernels/notes.txt", "ops/a.py"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    assert sources.contents() == [(name, name.encode()) for name in names]


def test_without_its_code_nothing_is_kept(monkeypatch):
    monkeypatch.setattr(sources, "_in_files", lambda folder, path: iter(()))
    monkeypatch.setattr(sources, "_imported", lambda module: iter(()))
    with pytest.raises(OSError, match="cannot be read: there is nothing of fastlayers.kernels"):
        sources.contents()
    monkeypatch.setattr(cache, "sources_hash", cache.sources_hash.__wrapped__)
    monkeypatch.setattr(cache, "_warned", set())
    with pytest.warns(RuntimeWarning, match="so kernels are compiled in every process"):
        assert cache.cache_dir.__wrapped__() is None
    assert cache._warmed_dir.__wrapped__() is None


def test_code_has_one_text_in_every_process(run):
    code = """
from fastlayers.runtime.sources import _text
def function(x):
    return [x in {"a", "b", "c", "d"}, (1, -0.0), x[1:2], lambda y: y + 1]
print(_text(function.__code__))
"""
    first, second = (run(code, PYTHONHASHSEED=seed) for seed in (1, 2))
    assert first.stdout == second.stdout and first.stdout, first.stderr
    assert run(code.replace("y + 1", "y + 2")).stdout != first.stdout
