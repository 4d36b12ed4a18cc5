import io
import os
import stat
import zipfile
from types import MappingProxyType

import numpy as np
import pytest
from state.loading import load_arrays

import fastlayers as fl
from fastlayers import nn, optim

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


def arrays(model):
    return {name: np.array(value) for name, value in model.state_dict().items()}


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
    check_equal(load_arrays(tmp_path / name), content)
    check_equal(load_arrays(str(tmp_path / name)), content)


def test_other_suffixes_hold_npz(tmp_path):
    fl.save(state(), tmp_path / "m.pth")
    assert zipfile.is_zipfile(tmp_path / "m.pth")
    with np.load(tmp_path / "m.pth", allow_pickle=False) as members:
        check_equal(dict(members), state())


@pytest.mark.parametrize("before", SUFFIXES)
def test_format_is_found_by_content(tmp_path, before):
    fl.save(state(), tmp_path / f"m.{before}")
    os.rename(tmp_path / f"m.{before}", tmp_path / "m.pth")
    check_equal(load_arrays(tmp_path / "m.pth"), state())


@FORMATS
def test_tensors_are_saved_as_arrays(tmp_path, suffix):
    path = tmp_path / f"m.{suffix}"
    fl.save({"t": fl.tensor([1.0, 2]), "scalar": np.float32(2.5)}, path)
    check_equal(
        load_arrays(path), {"t": np.array([1, 2], np.float32), "scalar": np.array(2.5, np.float32)}
    )


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
        load_arrays(tmp_path / name)


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_arrays(tmp_path / "m.npz")


@FORMATS
def test_what_has_a_state_dict_is_saved_by_it(tmp_path, suffix):
    model = nn.Linear(2, 3)
    fl.save(model, tmp_path / f"m.{suffix}")
    check_equal(load_arrays(tmp_path / f"m.{suffix}"), arrays(model))
    fl.save(optim.SGD(model.parameters(), 0.5), tmp_path / f"o.{suffix}")
    assert load_arrays(tmp_path / f"o.{suffix}")["param_groups"][0]["lr"] == 0.5


@pytest.mark.parametrize("content", [state(), {"a": [1, np.ones(2)]}])
def test_open_files(tmp_path, content):
    fl.save(content, tmp_path / "m.npz")
    with open(tmp_path / "other", "wb") as file:
        fl.save(content, file)
    buffer = io.BytesIO(b"begin")
    buffer.seek(5)
    fl.save(content, buffer)
    buffer.seek(5)
    for path in (tmp_path / "m.npz", tmp_path / "other", None):
        with open(path, "rb") if path else buffer as file:
            found = load_arrays(file)
        assert found.keys() == content.keys()
        if "a" not in content:
            check_equal(found, content)


def test_an_open_file_at_its_end():
    """As it is after a save."""
    file = io.BytesIO()
    fl.save({"x": np.ones(2)}, file)
    with pytest.raises(ValueError, match="^load: BytesIO must be an npz.*got one without content"):
        load_arrays(file)


def test_files_and_options_of_other_kinds(tmp_path):
    path = tmp_path / "m.npz"
    with open(tmp_path / "text", "w") as file:
        for bad in (3, {}, None, file):
            kind = type(bad).__name__
            for call in (lambda bad=bad: fl.save({}, bad), lambda bad=bad: load_arrays(bad)):
                with pytest.raises(
                    TypeError, match=f"path must be a path or a file .*, got {kind}"
                ):
                    call()
    fl.save({}, path)
    with pytest.raises(ValueError, match="load: weights_only must be True.*executed, got False"):
        load_arrays(path, weights_only=False)
    for place in ("cuda", "cuda:0", {"cuda:0": "cpu"}, lambda storage, location: storage):
        with pytest.raises(ValueError, match="load: map_location must be None or 'cpu', got "):
            load_arrays(path, place)
    for dtype in (np.int32, "junk", np.complex64, np.longdouble):
        with pytest.raises(TypeError, match="load: dtype must be float16, float32 or float64, got"):
            load_arrays(path, dtype=dtype)
    for place in (None, "cpu", "cpu:0"):
        assert load_arrays(path, place, weights_only=None, dtype="f4") == {}


def test_the_former_module():
    from fastlayers import checkpoint

    assert checkpoint.save is fl.save and checkpoint.load is fl.load


@FORMATS
def test_model_round_trip(tmp_path, suffix):
    path = tmp_path / f"m.{suffix}"
    first, second = (nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)) for _ in range(2))
    first(np.random.default_rng(0).standard_normal((2, 1, 5, 5)).astype(np.float32))
    fl.save(first.state_dict(), path)
    second.load_state_dict(fl.load(path))
    check_equal(arrays(second), arrays(first))


@FORMATS
@pytest.mark.parametrize(
    "other", [nn.Linear(2, 3), nn.Linear(3, 2, bias=False), nn.Sequential(nn.Linear(3, 2))]
)
def test_failed_load_leaves_the_model_alone(tmp_path, suffix, other):
    path, model = tmp_path / f"m.{suffix}", nn.Linear(3, 2)
    before = arrays(model)
    fl.save(other.state_dict(), path)
    with pytest.raises(ValueError, match="load_state_dict"):
        model.load_state_dict(fl.load(path))
    check_equal(arrays(model), before)
