"""Pickles that nothing but PyTorch's state files hold, and hostile ones."""

import pickle
import struct
import tracemalloc

import pytest
from state.torch_archive import Code, called, coded, named

from fastlayers.state.unpickle import Function, Leaf, call, plain, unpickle


def load(code, names=None, most=10_000):
    def persistent(identifier):
        raise ValueError(f"refers to {identifier!r}")

    return plain(unpickle(b"\x80\x02" + code + b".", names or {}, persistent), most)


VALUES = [
    None, True, False, 0, 255, 65535, -1, 2**31 - 1, 2**70, -(2**70), 0.1, float("inf"),
    "", "größe", "\ud800", (), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), [], [1], [[], {}], {},
    {"a": 1}, {1: {2: ()}}, list(range(3000)), {str(i): i for i in range(3000)},
    {None: 1, 2.5: 2, True: 3},
]  # fmt: skip


@pytest.mark.parametrize("value", VALUES, ids=lambda value: repr(value)[:20])
def test_what_python_pickles(value):
    found = load(pickle.dumps(value, 2)[2:-1])
    assert found == value and type(found) is type(value) and repr(found) == repr(value)


def test_functions_and_leaves():
    names = {"a.f": Function(lambda *x: Leaf(sum(x))), "a.x": Leaf("x")}
    assert load(coded([called(named("a", "f"), 1, 2), named("a", "x")]), names) == [3, "x"]


EVIL = called(named("os", "system"), "touch trap")
LONGEST = b"X" + struct.pack("<I", 2**32 - 1) + b"x"
DEEP = b"]" * 200 + b"a" * 199
CYCLE = b"]q\0h\0a"
# Each list has the one before twice: 2**60 parts of 60 lists.
LAUGHS = b"(]q\0" + b"".join(b"](h%ch%ceq%c" % (i, i, i + 1) for i in range(60)) + b"t"


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (EVIL, "global 'os.system' is refused"),
        (named("builtins", "eval"), "global 'builtins.eval' is refused"),
        (named("a" * 300, "f"), "a global name of more than 200 bytes"),
        (b"ca\nf", "a global name"),
        (coded((1, (2,))) + b"\x85R", "pops more than it pushed"),
        (b"K\1)R", "a call of int is refused"),
        (b"ca\nf\n]R", "a call of Function is refused"),
        (b"ca\nf\n" + coded((1,) * 9) + b"R", "a call with 9 arguments is refused"),
        (b"ca\nf\n)\x81", r"pickle instruction b'\\x81' is refused"),
        (b"\x8b\xff\xff\xff\x7f", r"pickle instruction b'\\x8b' is refused"),  # LONG4
        (b"S'x'\n", "pickle instruction b'S' is refused"),
        (b"I1\n", "pickle instruction b'I' is refused"),
        (b"\x80\x04N", "pickle protocol 4 is refused"),
        (b"\x8a\xff\1", "its pickle ends early"),
        (LONGEST, "its pickle ends early"),
        (b"", "not enough values"),
        (b"NN", "too many values"),
        (b"t", "empty list"),
        (b"h\0", "0"),
        (b"q\0", "index out of range"),
        (b"NNa", "its pickle takes NoneType for list"),
        (b")(Ne", "its pickle takes tuple for list"),
        (b"](NNu", "its pickle takes list for dict"),
        (b"]Nb", "its pickle takes list for dict"),
        (b"}(Nu", "shorter"),
        (b"})Ns", "a key of a dict is neither text nor a number"),
        (b"}]Ns", "a key of a dict is neither"),
        (b"}(" + b")" + b"\x85" * 100_000 + b"Nu", "a key of a dict is neither"),
        (b"NQ", "refers to None"),
        (DEEP, "it is nested more than 100 deep"),
        (b"N" + b"\x85" * 100_000, "it is nested more than 100 deep"),
        (CYCLE, "it is nested more than 100 deep, or contains itself"),
        (LAUGHS, "it repeats its parts too often"),
        (b"(" * 10_000, "not enough values"),
    ],
)  # fmt: skip
def test_what_is_refused(code, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tracemalloc.start()
    try:
        with pytest.raises((ValueError, LookupError), match=message):
            load(code, {"a.f": Function(lambda *x: None)})
        taken = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert taken < 100 * len(code) + (256 << 10)
    assert not list(tmp_path.iterdir())


def test_every_instruction_takes_little_memory():
    call_it = b"h\0)R"
    for many in (b"]", b"}", b"K\1", b"J\1\2\3\4", b"N\x85", b"](", b"X\1\0\0\0x", call_it):
        code = b"ca\nf\nq\0" + many * 5000
        tracemalloc.start()
        try:
            with pytest.raises((ValueError, LookupError)):
                load(code, {"a.f": Function(dict)})
            taken = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert taken < 100 * len(code), many


def test_what_occurs_twice_stays_one_object():
    a, b = load(b"(]q\0h\0t")
    assert a is b


def test_only_listed_functions_are_called():
    with pytest.raises(ValueError, match="a call of builtin_function_or_method is refused"):
        call(print, ())
    assert load(Code(b"N")) is None
