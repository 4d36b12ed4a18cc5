import enum
import io
import json
import math
from collections import OrderedDict, namedtuple
from types import MappingProxyType

import numpy as np
import pytest
from state.loading import load_arrays

import fastlayers as fl
from fastlayers import nn, optim

SUFFIXES = pytest.mark.parametrize("suffix", ["npz", "safetensors", "pth"])


def bits(value):
    """All that a value holds, with the types of its parts."""
    if isinstance(value, dict):
        return [(bits(key), bits(item)) for key, item in value.items()]
    if isinstance(value, list | tuple):
        return type(value), [bits(item) for item in value]
    if isinstance(value, np.ndarray | np.generic):
        return type(value), value.dtype, value.shape, value.tobytes()
    return type(value), value.hex() if isinstance(value, float) else value


def kept(value, path):
    fl.save(value, path)
    return load_arrays(path)


VALUES = {
    "checkpoint": {
        "model": {"0.weight": np.ones((2, 3), np.float32), "0.bias": np.zeros(2, np.float32)},
        "optimizer": {"state": {0: {"step": np.array(3)}}, "param_groups": [{"betas": (0.9, 1)}]},
        "epoch": 3, "loss": 0.5, "history": [[1, 0.25], [2, 0.125]], "name": "größe", "best": None,
    },
    "tuples": {"a": ((), (1,), [(2, [3])]), "b": []},
    "floats": [0.1, 1e-320, -0.0, math.inf, -math.inf, math.nan, 1.0, 5e-324, 1.797e308],
    "ints": [0, -1, 2**63, -(2**63), 2**64 - 1, 2**64, -(2**64), 2**70, 10**5000, -(10**5000)],
    "keys": {"": 0, 0: 1, -1: 2, "0": 3, 2**70: 4, "a/b": 5, "\ud800\0": 6, None: 7, 0.5: 8},
    "like JSON": {"array": 1, "dict": {"tuple": [2]}, "int": "0x1", "__structure__": 3},
    "names": {"a/b": np.ones(1), "a": {"b": np.ones(2), "/b": np.ones(3)}, "": np.ones(4), "n": 1},
    "the own name": {"__structure__": np.ones(2)},
    "scalars": [np.float32(0.1), np.True_, np.int8(3), np.array(0.1), np.zeros((0, 3)), True],
    "empty": {"a": {}},
    "an array": np.arange(6).reshape(2, 3).T,
    "a number": 7,
    "nothing": None,
    "text": "x" * 100_000,
}  # fmt: skip


@SUFFIXES
@pytest.mark.parametrize("name", VALUES)
def test_round_trip(name, suffix, tmp_path):
    value = VALUES[name]
    assert bits(kept(value, tmp_path / f"m.{suffix}")) == bits(value)


def test_subclasses_become_what_they_are_based_on(tmp_path):
    pair = namedtuple("pair", "a b")
    kind = enum.IntEnum("kind", "first second")
    value = {
        "o": OrderedDict(b=1, a=2),
        "p": pair(1, [2]),
        "e": kind.second,
        "m": MappingProxyType({}),
    }
    expected = {"o": {"b": 1, "a": 2}, "p": (1, [2]), "e": 2, "m": {}}
    assert bits(kept(value, tmp_path / "m.npz")) == bits(expected)


def test_a_training_goes_on_from_its_file(tmp_path):
    def step(model, optimizer):
        optimizer.zero_grad()
        model(fl.tensor(np.ones((2, 3), np.float32))).sum().backward()
        optimizer.step()

    fl.manual_seed(0)
    model = nn.Linear(3, 2)
    optimizer = optim.Adam(model.parameters(), 0.1)
    step(model, optimizer)
    path = tmp_path / "last.pth"
    fl.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 1}, path)
    checkpoint = load_arrays(path, map_location="cpu", weights_only=True)
    again = nn.Linear(3, 2)
    other = optim.Adam(again.parameters())
    again.load_state_dict(checkpoint["model"])
    other.load_state_dict(checkpoint["optimizer"])
    assert checkpoint["epoch"] == 1
    step(model, optimizer)
    step(again, other)
    for a, b in zip(model.parameters(), again.parameters(), strict=True):
        np.testing.assert_array_equal(a.array(), b.array())


def test_floating_point_arrays_are_converted(tmp_path):
    fl.save(
        {"a": [np.ones(2), np.ones(2, np.float16)], "n": np.ones(2, int), "f": 0.5}, tmp_path / "m"
    )
    found = load_arrays(tmp_path / "m", dtype=np.float32)
    assert [a.dtype for a in found["a"]] == [np.float32] * 2
    assert found["n"].dtype == int and found["f"] == 0.5


CYCLE = []
CYCLE.append({"x": CYCLE})


@SUFFIXES
@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        ({"a": [1, 2, 3, {4}]}, TypeError, r"state\['a'\]\[3\] must be a numeric array.*got set"),
        ({"a": {3: b"x"}}, TypeError, r"state\['a'\]\[3\] must be .*got bytes"),
        ({1, 2}, TypeError, "state must be a numeric array, a number.*got set"),
        ({"a": 1j}, TypeError, r"state\['a'\] must be .*got complex"),
        ({"a": [np.array([1j])]}, TypeError, r"state\['a'\]\[0\] must be .*got ndarray \(complex"),
        ({"a": np.array(["x"])}, TypeError, r"state\['a'\] must be a numeric array"),
        ({"a": np.array([{}])}, TypeError, r"state\['a'\] must be a numeric array"),
        ({"a": np.ma.array([1, 2], mask=[0, 1])}, TypeError, r"state\['a'\] must .*got Masked"),
        ({"a": {(1, 2): 3}}, TypeError, r"state\['a'\] must have text .* for keys, got tuple"),
        ({"a": {b"x": 3}}, TypeError, r"state\['a'\] must have text .* for keys, got bytes"),
        ({"a": {np.int64(1): 3}}, TypeError, r"state\['a'\] must have text .*, got int64"),
        ({"a": nn.ReLU()}, TypeError, r"state\['a'\] must .*got ReLU, which has a state_dict\(\)"),
        (CYCLE, ValueError, r"state\[0\]\['x'\]\[0\] must be nested at most 100 deep"),
        ({"a": {"b\0": np.ones(1)}}, ValueError, "names must be text"),
    ],
)  # fmt: skip
def test_other_data_is_refused(value, error, message, suffix, tmp_path):
    with pytest.raises(error, match=f"^save: {message}"):
        fl.save(value, tmp_path / f"m.{suffix}")
    assert not list(tmp_path.iterdir())


def file_of(structure, **arrays):
    text = structure if isinstance(structure, bytes) else json.dumps(structure).encode()
    file = io.BytesIO()
    np.savez(file, __structure__=np.frombuffer(text, np.uint8), **arrays)
    file.seek(0)
    return file


@pytest.mark.parametrize(
    ("structure", "message"),
    [
        (b"", "Expecting value"),
        (b"[" * 100_000, "recursion"),
        ([{"array": "y"}], "'y'"),
        ([{"array": "x"}, {"array": "x"}], "'x'"),
        ([], r"its structure does not have the arrays \['x'\]"),
        ([{"array": "x"}, {"set": []}], "its structure has an entry 'set'"),
        ([{"array": "x"}, {"dict": [[1, 2], [1, 3]]}], "its structure has an entry 'dict' of 2"),
        ([{"array": "x"}, {"dict": [[[1], 2]]}], "unhashable"),
        ([{"array": "x"}, {"dict": [[{"tuple": [1]}, 2]]}], "'int'"),
        ([{"array": "x"}, {"dict": [1]}], "not iterable|unpack"),
        ([{"array": "x"}, {"int": "x"}], "invalid literal"),
        ([{"array": "x"}, {"int": 1}], "int"),
        ([{"array": ["x"]}], "unhashable"),
        ([{"array": "x", "tuple": []}], "too many values"),
        ([{"array": "x"}, {}], "not enough values"),
    ],
)
def test_damaged_structures_are_errors(structure, message):
    with pytest.raises(
        ValueError, match=f"^load: BytesIO cannot be read as an npz file: .*{message}"
    ):
        load_arrays(file_of(structure, x=np.ones(1)))


def test_a_packed_structure_is_bounded():
    """Of 4 MB in 5 kB, for which Python would take 90 MB."""
    file = io.BytesIO()
    np.savez_compressed(
        file, __structure__=np.frombuffer(b"[" + b"[]," * 1_400_000 + b"[]]", np.uint8)
    )
    file.seek(0)
    with pytest.raises(ValueError, match="its structure has 4200004 bytes in a file of "):
        load_arrays(file)
