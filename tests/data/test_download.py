import hashlib
import importlib
import os
import stat
from pathlib import Path

import pytest

from fastlayers.data import data_folder, fetch
from fastlayers.data.download import atomic_write

CONTENT = b"some bytes" * 100_000
MD5 = hashlib.md5(CONTENT).hexdigest()


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "source.bin"
    path.write_bytes(CONTENT)
    return path.as_uri()


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "deep" / "target"


def test_fetch(source, folder):
    path = fetch("file.bin", source, MD5, folder)
    assert path == folder / "file.bin"
    assert path.read_bytes() == CONTENT
    assert os.listdir(folder) == ["file.bin"]
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask


def test_fetch_keeps_a_verified_file(source, folder, tmp_path):
    fetch("file.bin", source, MD5, folder)
    assert fetch("file.bin", "file:///nowhere", MD5, folder).read_bytes() == CONTENT


def test_fetch_replaces_a_file_of_other_content(source, folder):
    folder.mkdir(parents=True)
    (folder / "file.bin").write_bytes(b"old")
    assert fetch("file.bin", source, MD5, folder).read_bytes() == CONTENT


def test_fetch_tries_mirrors_in_turn(source, folder, tmp_path):
    missing = (tmp_path / "missing").as_uri()
    assert fetch("file.bin", [missing, source], MD5, folder).read_bytes() == CONTENT


def test_wrong_checksum_leaves_no_file(source, folder):
    with pytest.raises(FileNotFoundError, match=rf"expected md5 {'0' * 32}, got {MD5}"):
        fetch("file.bin", source, "0" * 32, folder)
    assert os.listdir(folder) == []


def test_wrong_checksum_keeps_what_was_there(source, folder):
    folder.mkdir(parents=True)
    (folder / "file.bin").write_bytes(b"old")
    with pytest.raises(FileNotFoundError):
        fetch("file.bin", source, "0" * 32, folder)
    assert (folder / "file.bin").read_bytes() == b"old"
    assert os.listdir(folder) == ["file.bin"]


def test_message_tells_what_where_why_and_how(folder, tmp_path):
    urls = [(tmp_path / "missing").as_uri(), "nonsense"]
    with pytest.raises(FileNotFoundError) as caught:
        fetch("file.bin", urls, MD5, folder)
    message = str(caught.value)
    assert f"fetch: looked for file.bin (md5 {MD5}) in {folder}" in message
    assert f"{urls[0]}: URLError: " in message and "No such file" in message
    assert "nonsense: ValueError: unknown url type" in message
    assert f"put it at {folder / 'file.bin'}" in message


@pytest.mark.parametrize("name", ["../file", "a/b", "", ".", "..", "/file"])
def test_fetch_rejects_paths_as_names(source, folder, name):
    with pytest.raises(ValueError, match="fetch: name must be a plain file name"):
        fetch(name, source, MD5, folder)


def test_fetch_without_tqdm(source, folder, monkeypatch):
    def no_tqdm(name):
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", no_tqdm)
    assert fetch("file.bin", source, MD5, folder).read_bytes() == CONTENT


def test_interruption_leaves_no_file(source, folder, monkeypatch):
    class Interrupting:
        def __init__(self, **options):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *exception):
            return None

        def update(self, count):
            raise KeyboardInterrupt

    tqdm = type("tqdm", (), {"tqdm": Interrupting})
    monkeypatch.setattr(importlib, "import_module", lambda name: tqdm)
    with pytest.raises(KeyboardInterrupt):
        fetch("file.bin", source, MD5, folder)
    assert os.listdir(folder) == []


def test_atomic_write_is_all_or_nothing(tmp_path):
    target = tmp_path / "file"
    with pytest.raises(RuntimeError), atomic_write(target) as stream:
        stream.write(b"half")
        raise RuntimeError
    assert os.listdir(tmp_path) == []
    with atomic_write(target) as stream:
        stream.write(b"whole")
        assert not target.exists()
    assert target.read_bytes() == b"whole"
    assert os.listdir(tmp_path) == ["file"]


def test_data_folder(monkeypatch):
    monkeypatch.setenv("FASTLAYERS_DATA_DIR", "/data/here")
    monkeypatch.setenv("XDG_DATA_HOME", "/xdg")
    monkeypatch.setenv("HOME", "/home/someone")
    assert data_folder("/root/given") == Path("/root/given")
    assert data_folder("~/given") == Path("/home/someone/given")
    assert data_folder() == Path("/data/here")
    monkeypatch.setenv("FASTLAYERS_DATA_DIR", "")
    assert data_folder() == Path("/xdg/fastlayers")
    monkeypatch.setenv("XDG_DATA_HOME", "relative")
    assert data_folder() == Path("/home/someone/.local/share/fastlayers")
    monkeypatch.delenv("XDG_DATA_HOME")
    assert data_folder() == Path("/home/someone/.local/share/fastlayers")
