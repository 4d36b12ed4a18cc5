import gzip
import struct
import tracemalloc

import numpy as np
import pytest

from fastlayers.data import read_idx

CODES = {"u1": 0x08, "i1": 0x09, "i2": 0x0B, "i4": 0x0C, "f4": 0x0D, "f8": 0x0E}


def idx_bytes(array):
    header = struct.pack(
        f">BBBB{array.ndim}I", 0, 0, CODES[array.dtype.str[1:]], array.ndim, *array.shape
    )
    return header + array.astype(array.dtype.newbyteorder(">")).tobytes()


SMALL = np.arange(6, dtype=np.int16).reshape(3, 2) - 3


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
@pytest.mark.parametrize("dtype", CODES)
@pytest.mark.parametrize("shape", [(), (5,), (2, 3), (4, 3, 2), (2, 1, 2, 3), (0, 3)])
def test_round_trip(tmp_path, pack, dtype, shape):
    array = (np.arange(np.prod(shape, dtype=int)) * 5).astype(dtype).reshape(shape)
    path = tmp_path / "array-idx"
    path.write_bytes(pack(idx_bytes(array)))
    read = read_idx(path)
    assert read.dtype == array.dtype and read.dtype.isnative
    assert read.flags.writeable
    np.testing.assert_array_equal(read, array)
    assert read.shape == shape


def test_published_layout(tmp_path):
    """The first bytes of t10k-labels-idx1-ubyte, for 2 labels."""
    path = tmp_path / "labels"
    path.write_bytes(bytes.fromhex("00000801 00000002 0702"))
    assert read_idx(str(path)).tolist() == [7, 2]


@pytest.mark.parametrize("length", range(len(idx_bytes(SMALL))))
def test_every_truncation(tmp_path, length):
    path = tmp_path / "short-idx"
    path.write_bytes(idx_bytes(SMALL)[:length])
    with pytest.raises(ValueError, match=r"read_idx: .*short-idx: expected \d+ bytes for .*got \d"):
        read_idx(path)


@pytest.mark.parametrize("length", range(len(gzip.compress(idx_bytes(SMALL)))))
def test_every_truncation_of_gzip(tmp_path, length):
    path = tmp_path / "short-idx.gz"
    path.write_bytes(gzip.compress(idx_bytes(SMALL))[:length])
    with pytest.raises(ValueError, match=r"read_idx: .*short-idx\.gz: expected .*got"):
        read_idx(path)


def test_counts_in_messages(tmp_path):
    path = tmp_path / "bad"
    path.write_bytes(idx_bytes(SMALL)[:-5])
    with pytest.raises(ValueError, match=r"expected 12 bytes for an array \(3, 2\) .* got 7$"):
        read_idx(path)
    path.write_bytes(idx_bytes(SMALL) + b"abc")
    with pytest.raises(ValueError, match=r"expected 12 bytes for an array \(3, 2\) .* got 15$"):
        read_idx(path)
    path.write_bytes(gzip.compress(idx_bytes(SMALL) + b"abc"))
    with pytest.raises(ValueError, match=r"expected 12 bytes .* got 15$"):
        read_idx(path)


@pytest.mark.parametrize("magic", ["01000801", "00010801", "00000a01", "00000001", "504b0304"])
def test_wrong_magic(tmp_path, magic):
    path = tmp_path / "bad"
    path.write_bytes(bytes.fromhex(magic) + bytes(20))
    with pytest.raises(ValueError, match=r"read_idx: .*bad: expected a magic number .* got"):
        read_idx(path)


@pytest.mark.parametrize("position", [-1, -5, 12])
def test_damaged_gzip(tmp_path, position):
    data = bytearray(gzip.compress(idx_bytes(SMALL)))
    data[position] ^= 0xFF
    path = tmp_path / "bad.gz"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"bad\.gz: expected .*got"):
        read_idx(path)


def test_garbage_after_gzip(tmp_path):
    path = tmp_path / "bad.gz"
    path.write_bytes(gzip.compress(idx_bytes(SMALL)) + b"garbage")
    with pytest.raises(ValueError, match="expected a whole gzip file, got a damaged one"):
        read_idx(path)


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_huge_claim_allocates_nothing(tmp_path, pack):
    path = tmp_path / "huge"
    path.write_bytes(pack(struct.pack(">BBBB2I", 0, 0, 0x0E, 2, 10**6, 10**6) + bytes(64)))
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="expected 8000000000000 bytes .* got 64"):
            read_idx(path)
        assert tracemalloc.get_traced_memory()[1] < 8e6
    finally:
        tracemalloc.stop()


def test_shape_beyond_numpy(tmp_path):
    path = tmp_path / "deep"
    path.write_bytes(struct.pack(">BBBB200I", 0, 0, 0x08, 200, *[1] * 200) + b"\1")
    with pytest.raises(ValueError, match="read_idx: .*deep: expected a shape that NumPy can hold"):
        read_idx(path)


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read_idx(tmp_path / "nowhere")
