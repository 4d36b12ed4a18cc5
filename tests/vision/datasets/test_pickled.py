import contextlib
import os
import pickle

import numpy as np
import pytest

from fastlayers.vision.datasets.pickled import read_pickled


def test_what_the_files_have():
    value = {b"a": [1, 300, 70_000, -2], b"b": {b"c": b"x" * 300}, b"n": None, b"t": (True, False)}
    # Under protocol 2 Python 3 has bytes as a call of codecs, which is refused; so by hand.
    data = (
        b"\x80\x02}q\x00(U\x01a]q\x01(K\x01M\x2c\x01J\x70\x11\x01\x00J\xfe\xff\xff\xffeU\x01b}U\x01c"
        b"T\x2c\x01\x00\x00" + b"x" * 300 + b"sU\x01nNU\x01t\x88\x89\x86u."
    )
    assert read_pickled(data) == value == pickle.loads(data, encoding="bytes")


def test_memo_long_tuples_and_single_items():
    data = (
        b"\x80\x02}(U\x01a(K\x01K\x02K\x03K\x04tr\x05\x00\x00\x00U\x01bj\x05\x00\x00\x00"
        b"U\x01c)U\x01d]h\x05au."
    )
    expected = {b"a": (1, 2, 3, 4), b"b": (1, 2, 3, 4), b"c": (), b"d": [(1, 2, 3, 4)]}
    data = data.replace(b"h\x05", b"j\x05\x00\x00\x00")
    assert read_pickled(data) == expected == pickle.loads(data, encoding="bytes")
    assert read_pickled(data.replace(b"j\x05\x00\x00\x00", b"h\x05")) == expected


def test_an_array_in_order_of_columns():
    array = np.asfortranarray(np.arange(6, dtype=np.uint8).reshape(2, 3))
    made = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01K\x02K\x03\x86"
        b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        b"\x88U\x06" + array.tobytes("F") + b"tb"
    )
    found = read_pickled(b"\x80\x02}U\x01a" + made + b"s.")[b"a"]
    np.testing.assert_array_equal(found, array)
    for old, new in (
        (b"K\x02K\x03\x86", b"J\xff\xff\xff\xffK\x03\x86"),
        (b"K\x01K\x02", b"K\x01N"),
    ):
        with pytest.raises(ValueError, match="an array of shape .* is refused"):
            read_pickled(b"\x80\x02}U\x01a" + made.replace(old, new) + b"s.")


class Evil:
    def __reduce__(self):
        return os.system, ("exit 3",)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (pickle.dumps({"a": Evil()}, 2), "a key of a dict|global 'posix.system' is refused"),
        (pickle.dumps([1], 2), "the pickle is not a dict, but list"),
        (pickle.dumps({}, 4), "pickle protocol 4 is refused"),
        (b"", "ends early"),
        (b"\x80\x02}T\xff\xff\xff\xff", "ends early"),
        (b"\x80\x02}X\xff\xff\xff\xff", "ends early"),
        (b"\x80\x02}h\x01.", "damaged: KeyError"),
        (b"\x80\x02u.", "damaged: IndexError"),
        (b"\x80\x02\x85.", "pops more than it pushed"),
        (b"\x80\x02}K\x01a.", "its pickle takes dict for list"),
        (b"\x80\x02}K\x01K\x02s.", "a dict key that has no value or is not text"),
        (b"\x80\x02}(U\x01au.", "a dict key that has no value"),
        (b"\x80\x02K\x01K\x02R.", "a call of int is refused"),
        (b"\x80\x02}K\x01b.", "its pickle takes dict for Made"),
        (b"\x80\x02cnumpy\nndarray\n.", "is not a dict|numpy.ndarray is refused"),
        (b"\x80\x02}U\x01acnumpy\nndarray\n)Rs.", "damaged"),
        (b"\x80\x02c" + b"a" * 200 + b"\nb\n", "a global name of more than 200 bytes"),
        (b"\x80\x02Q.", r"pickle instruction b'Q' is refused"),
    ],
)
def test_everything_else_is_refused(data, message):
    with pytest.raises(ValueError, match=message):
        read_pickled(data)


def test_damaged_files_end_in_value_errors():
    good = b"\x80\x02}q\x01(U\x01aq\x02]q\x03(K\x01K\x02eU\x01b\x88\x89\x86u."
    rng = np.random.default_rng(0)
    for _ in range(2000):
        data = bytearray(good)
        data[rng.integers(len(data))] = rng.integers(256)
        with contextlib.suppress(ValueError):
            assert isinstance(read_pickled(bytes(data)), dict)
