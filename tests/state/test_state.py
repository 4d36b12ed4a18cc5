import os
import stat
import sys
import zipfile
from types import MappingProxyType

import numpy as np
import pytest

import fastlayers as fl
from fastlayers import __main__, nn

SUFFIXES = ("npz", "safetensors")
FORMATS = pytest.mark.parametrize("suffix", SUFFIXES)


def state():
    rng = np.random.default_rng(0)
    kinds = {np.dtype(t).name: t for t in (bool, "u1", "i2", "i8", "f2", "f4", "f8")}
    return {name: rng.integers(0, 2, (2, 3)).astype(kind) for name, kind in kinds.items()} | {
        "scalar": np.array(3, np.int64),
        "empty": np.zeros((0, 3), np.float32),
        "channels.last": rng.standard_normal((2, 4, 5, 3)).transpose(0, 3, 1, 2),
        "every second": rng.standard_normal(8)[::-2],
        "file": np.ones(2),
        "a/b.c": np.full(2, 2.0),
        "arr_0": np.full(2, 3.0),
        "größe": np.full(2, 4.0),
    }


def check_equal(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert isinstance(found[name], np.ndarray)
        assert (found[name].dtype, found[name].shape) == (value.dtype, value.shape), name
        np.testing.assert_array_equal(found[name], value)


@pytest.mark.parametrize("name", ["m.npz", "m.safetensors", "m.pth", "m", "new/folder/m.npz"])
@pytest.mark.parametrize("content", [state(), {}], ids=["full", "empty"])
def test_round_trip(tmp_path, name, content):
    fl.save(MappingProxyType(content), tmp_path / name)
    check_equal(fl.load(tmp_path / name), content)
    check_equal(fl.load(str(tmp_path / name)), content)


def test_other_suffixes_hold_npz(tmp_path):
    fl.save(state(), tmp_path / "m.pth")
    assert zipfile.is_zipfile(tmp_path / "m.pth")
    with np.load(tmp_path / "m.pth", allow_pickle=False) as members:
        check_equal(dict(members), state())


@pytest.mark.parametrize("before", SUFFIXES)
def test_format_is_found_by_content(tmp_path, before):
    fl.save(state(), tmp_path / f"m.{before}")
    os.rename(tmp_path / f"m.{before}", tmp_path / "m.pth")
    check_equal(fl.load(tmp_path / "m.pth"), state())


@FORMATS
def test_tensors_and_numbers_are_saved_as_arrays(tmp_path, suffix):
    path = tmp_path / f"m.{suffix}"
    fl.save({"t": fl.tensor([1.0, 2]), "list": [1, 2], "number": 2.5}, path)
    expected = {"t": np.array([1, 2], np.float32), "list": np.array([1, 2])}
    check_equal(fl.load(path), expected | {"number": np.array(2.5)})


@FORMATS
def test_new_file_has_the_usual_permissions(tmp_path, suffix):
    path = tmp_path / f"m.{suffix}"
    (tmp_path / "plain").touch()
    fl.save({}, path)
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


@pytest.mark.parametrize("data", [b"", b"PK", b"PK\3\4", b"\x80\4N.", b"\xff" * 64, b"{}" * 40])
@pytest.mark.parametrize("name", ["m.npz", "m.safetensors", "m.pth"])
def test_files_of_other_formats(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=f"load: .*{name}"):
        fl.load(tmp_path / name)


def test_without_safetensors(tmp_path, monkeypatch):
    fl.save(state(), tmp_path / "m.safetensors")
    for name in ("safetensors", "safetensors.numpy"):
        monkeypatch.setitem(sys.modules, name, None)
    for call in (lambda path: fl.save(state(), path.with_stem("new")), fl.load):
        with pytest.raises(ModuleNotFoundError, match=r"pip install 'fastlayers\[train\]'.*\.npz"):
            call(tmp_path / "m.safetensors")
    assert os.listdir(tmp_path) == ["m.safetensors"]
    fl.save(state(), tmp_path / "m.npz")
    check_equal(fl.load(tmp_path / "m.npz"), state())
    assert __main__._state_suffix() == ".npz"


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        fl.load(tmp_path / "m.npz")


@FORMATS
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (nn.Linear(1, 1), "save: state must be a mapping.*got Linear"),
        ([np.ones(2)], "save: state must be a mapping.*got list"),
        ({3: np.ones(2)}, "save: names must be strings, got int 3"),
        ({"x": "text"}, r"save: state\['x'\] must be a numeric array, got str"),
        ({"x": None}, r"save: state\['x'\] must be a numeric"),
        ({"x": np.array([{}])}, r"save: state\['x'\] must be a numeric"),
        ({"x": {"y": 1}}, r"save: state\['x'\] must be a numeric"),
        ({"x": 1j}, r"save: state\['x'\] must be a numeric"),
        ({"x": [[1], [1, 2]]}, r"save: state\['x'\] must be a numeric"),
    ],
)
def test_only_named_numeric_arrays_are_saved(tmp_path, suffix, content, message):
    with pytest.raises(TypeError, match=message):
        fl.save(content, tmp_path / f"m.{suffix}")
    assert not os.listdir(tmp_path)


@FORMATS
def test_model_round_trip(tmp_path, suffix):
    path = tmp_path / f"m.{suffix}"
    first, second = (nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)) for _ in range(2))
    first(np.random.default_rng(0).standard_normal((2, 1, 5, 5)).astype(np.float32))
    fl.save(first.state_dict(), path)
    second.load_state_dict(fl.load(path))
    check_equal(second.state_dict(), first.state_dict())


@FORMATS
@pytest.mark.parametrize(
    "other", [nn.Linear(2, 3), nn.Linear(3, 2, bias=False), nn.Sequential(nn.Linear(3, 2))]
)
def test_failed_load_leaves_the_model_alone(tmp_path, suffix, other):
    path, model = tmp_path / f"m.{suffix}", nn.Linear(3, 2)
    before = {key: value.copy() for key, value in model.state_dict().items()}
    fl.save(other.state_dict(), path)
    with pytest.raises(ValueError, match="load_state_dict"):
        model.load_state_dict(fl.load(path))
    check_equal(model.state_dict(), before)
