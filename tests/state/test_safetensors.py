import io
import json
import struct
import sys
import tracemalloc

import numpy as np
import pytest
import safetensors.numpy
from state.loading import load_arrays

import fastlayers as fl


def file_of(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(dtype, shape, begin, end):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def load(content, **options):
    return load_arrays(io.BytesIO(content), **options)


def refused(content, message):
    with pytest.raises(
        ValueError, match=f"^load: BytesIO cannot be read as a safetensors .*{message}"
    ):
        load(content)


ONE = entry("F32", [1], 0, 4)


def test_bfloat16_is_float32():
    bits = np.array([0x3F80, 0xC000, 0xFF80, 1, 0x3F81, 0x8000], "<u2")
    content = file_of({"x": entry("BF16", [2, 3], 0, 12)}, bits.tobytes())
    found = load(content)["x"]
    assert found.dtype == np.float32 and found.shape == (2, 3) and found.flags.writeable
    assert found.view(np.uint32).ravel().tolist() == [int(b) << 16 for b in bits]
    assert load(content, dtype=np.float64)["x"].tolist() == found.tolist()
    nan = load(file_of({"x": entry("BF16", [], 0, 2)}, b"\xc0\x7f"))["x"]
    assert nan.shape == () and np.isnan(nan)


def test_float16_is_float16_unless_asked():
    values = np.array([1.5, -2, 65504], np.float16)
    content = file_of(
        {"h": entry("F16", [3], 0, 6), "n": entry("U8", [1], 6, 7)}, values.tobytes() + b"\7"
    )
    assert load(content)["h"].dtype == np.float16
    for dtype in (np.float32, "float64", np.dtype("f4")):
        found = load(content, dtype=dtype)
        assert found["h"].dtype == dtype and found["h"].tolist() == values.tolist()
        assert found["n"].dtype == np.uint8  # no floating point


@pytest.mark.parametrize(
    "dtype", ["F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E8M0", "F4", "F6_E2M3", "C64"]
)
def test_dtypes_that_numpy_lacks_are_named(dtype):
    refused(file_of({"w": entry(dtype, [4], 0, 4)}, bytes(4)), f"'w' is an array of {dtype}, ")


def test_the_order_is_that_of_the_header():
    header = {"b": entry("U8", [1], 4, 5), "a": ONE, "z": entry("F32", [0, 7], 5, 5)}
    found = load(file_of(header, bytes(5)))
    assert list(found) == ["b", "a", "z"] and found["z"].shape == (0, 7)
    file = io.BytesIO()
    state = {
        "i": np.ones(3, np.int8),
        "d": np.ones(2),
        "empty": np.zeros((0, 2), "f4"),
        "h": np.ones(1, "f2"),
    }
    fl.save(state, file)
    file.seek(0)
    assert list(load_arrays(file)) == list(state)


def test_written_files_are_aligned_and_read_by_the_package(tmp_path):
    path = tmp_path / "m.safetensors"
    state = {"i": np.ones(3, np.int8), "d": np.ones(2), "n": np.array(2**60), "b": np.ones(1, bool)}
    fl.save(state, path)
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    assert length % 8 == 0 and list(header) == list(state)
    for name, (begin, _) in ((n, e["data_offsets"]) for n, e in header.items()):
        assert begin % state[name].itemsize == 0
    found = safetensors.numpy.load(content)
    assert {n: (a.dtype, a.tolist()) for n, a in found.items()} == {
        n: (a.dtype, a.tolist()) for n, a in state.items()
    }
    fl.save({}, path)
    assert safetensors.numpy.load_file(path) == {} == load_arrays(path)


def test_the_package_is_not_needed(tmp_path, monkeypatch):
    for name in ("safetensors", "safetensors.numpy"):
        monkeypatch.setitem(sys.modules, name, None)
    fl.save({"x": np.ones(2)}, tmp_path / "m.safetensors")
    assert load_arrays(tmp_path / "m.safetensors")["x"].tolist() == [1, 1]


@pytest.mark.parametrize(
    "header",
    [
        b'{"__metadata__":{"format":"pt","a":"}{\\"["},"x":%b}',
        b'{ "x" :\n\t%b , "__metadata__" : { } } \n ',
        b'{"\\u0078":%b}',
    ],
)
def test_headers(header):
    text = header % json.dumps(ONE).encode()
    assert load(file_of(text, struct.pack("<f", 2)))["x"].tolist() == [2]


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b'{"x":%b,"x":%b}', "the name 'x' occurs twice"),
        (b'{"__metadata__":{},"__metadata__":{},"x":%b}', "the name '__metadata__' occurs twice"),
        (b'{"x":%b}}', "its header is not a list of arrays from character 60 on"),
        (b'{"x":%b,}', "its header is not a list of arrays"),
        (b'{"x":%b', "its header is not a list of arrays"),
        (b'{,"x":%b}', "its header is not a list of arrays"),
        (b'{"x":[%b]}', "its header is not a list of arrays"),
        (b'{"x":{"y":%b}}', "its header is not a list of arrays"),
        (b'{"\\ud800":%b}', "surrogates not allowed"),
        (b'{"\n":%b}', "control character"),
        (b'{"x":{"dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4]}}', "must have"),
        (b'{"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"y":1}}', "'x' must have dtype"),
        (b'{"x":{"dtype":"F32","shape":[1.0],"data_offsets":[0,4]}}', "'x' must have dtype"),
        (b'{"x":{"dtype":"F32","shape":[true],"data_offsets":[0,4]}}', "'x' must have dtype"),
        (b'{"x":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}', "'x' must have dtype"),
        (b'{"x":{"dtype":["F32"],"shape":[1],"data_offsets":[0,4]}}', "'x' must have dtype"),
        (b'{"x":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}', "'x' has bytes 0 to 4 after"),
        (b'{"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"a":[%s]}}' % (b"1," * 9999 + b"1"),
         "'x' must have dtype"),
    ],
)  # fmt: skip
def test_other_headers_are_refused(header, message):
    one = json.dumps(ONE).encode()
    for _ in range(2):
        header = header.replace(b"%b", one, 1)
    refused(file_of(header, bytes(4)), message)


def test_a_hostile_header_takes_no_more_memory_than_its_file():
    lists = b"[" + b"[]," * 100_000 + b"[]]"
    for header in (
        b'{"x":%b}' % lists,
        b'{"x":{"shape":%b}}' % lists,
        b'{"__metadata__":{"x":%b},"y":1}' % lists,
        b'{"x":' + b'{"y":' * 100_000,
        b'{"x":{' + b'"\\"' * 100_000,
        b"{" + b" " * 300_000,
        b'{"x"' * 100_000,
    ):
        content = file_of(header, bytes(4))
        tracemalloc.start()
        try:
            refused(content, "")
            taken = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert taken < 6 * len(content), header[:20]


def test_other_lengths_of_a_header(tmp_path, monkeypatch):
    header = b'{"x":%b}' % json.dumps(ONE).encode()
    content = file_of(header, bytes(4))
    assert load(content)["x"].tolist() == [0]
    for length in (0, 1, len(content) - 7, 2**64 - 1):
        damaged = struct.pack("<Q", length) + content[8:]
        refused(damaged, f"its {len(content)} bytes begin with a header of {length} bytes")
    monkeypatch.setattr("fastlayers.state.safetensors._LONGEST_HEADER", len(header) - 1)
    refused(content, f"begin with a header of {len(header)} bytes")
    path = tmp_path / "m.safetensors"  # which the name tells where the content does not
    path.write_bytes(file_of(b" " + header, bytes(4)))
    monkeypatch.undo()
    with pytest.raises(ValueError, match="cannot be read as a safetensors file: its header is no"):
        load_arrays(path)
