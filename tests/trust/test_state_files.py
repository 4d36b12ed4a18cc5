"""State files that are damaged, hostile or interrupted while they are written.

A random case that fails prints a command that repeats it alone.
"""

import contextlib
import errno
import gzip
import io
import itertools
import json
import os
import pickle
import random
import re
import signal
import subprocess
import sys
import tracemalloc
import warnings
import zipfile
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors.numpy
from state.loading import load_arrays
from state.torch_archive import archive as torch_archive
from state.torch_archive import named, storage, tensor, torch_file

import fastlayers as fl
from fastlayers import nn, optim
from fastlayers.data.idx import read_idx
from fastlayers.state import files as state_files
from fastlayers.vision.datasets import CIFAR10

CHAPTER = "state files"
SUFFIXES = ("npz", "safetensors")
FORMATS = pytest.mark.parametrize("suffix", SUFFIXES)
TESTS = Path(__file__).parents[1]


def network():
    return nn.Sequential(nn.Conv2d(1, 2, 2), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2, 3))


@pytest.fixture
def trained():
    """A small model and its optimiser, each with a state of its own."""
    with fl.random.fork_rng():
        fl.manual_seed(0)
        model = network()
        optimizer = optim.Adam(model.parameters())
        loss = model(fl.tensor(np.random.default_rng(0).random((4, 1, 2, 2), np.float32))).sum()
        loss.backward()
        optimizer.step()
    return model, optimizer


def seeds(count):
    """Those of the random cases; one alone where it is given."""
    given = os.environ.get("SEED")
    return range(count) if given is None else [int(given)]


@contextlib.contextmanager
def replayable(seed, selection):
    """Say how to repeat a random case that fails."""
    try:
        yield
    except BaseException:
        print(f"SEED={seed} pytest {__file__} -k '{selection}'")
        raise


def flat(value):
    """All that a nested state holds, to the bit."""
    if isinstance(value, dict):
        return {key: flat(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [flat(item) for item in value]
    if isinstance(value, fl.Tensor):
        value = value.numpy()
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, value.tobytes()
    return value


def bits(model, optimizer):
    return flat([model.state_dict(), optimizer.state_dict()])


# What is done to files. Deflate unpacks to 1032 times the size at most.

RATIOS = {"npz": 4, "members": 4, "safetensors": 4, "deflated": 1040, "torch": 4, "pickle": 4}

EDGES = (0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**62, 2**63 - 1, 2**63, 2**64 - 1)


def mutated(data, seed):
    """A file with one to four random damages."""
    rng, out = random.Random(seed), bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        at, other, length = (rng.randrange(len(out) + 1) for _ in range(3))
        length %= rng.choice((2, 9, 100))
        match rng.randrange(8):
            case 0 | 1 if at < len(out):
                out[at] ^= 1 << rng.randrange(8)
            case 2:
                out[at:at] = rng.randbytes(length)
            case 3:
                del out[at : at + length]
            case 4:  # swap two blocks
                a, b = sorted((at, other))
                length = min(length, b - a)
                out[a : a + length], out[b : b + length] = out[b : b + length], out[a : a + length]
            case 5:  # write one block over another
                out[at : at + length] = out[other : other + length]
            case 6:  # a length field
                width = rng.choice((2, 4, 8))
                near = int.from_bytes(out[at : at + width], "little") + rng.choice((-8, -1, 1, 8))
                number = rng.choice((*EDGES, len(out), near))
                out[at : at + width] = (number % 256**width).to_bytes(width, "little")
            case 7:  # a number in a text
                if spans := [m.span() for m in re.finditer(rb"-?\d+", out)]:
                    begin, end = rng.choice(spans)
                    out[begin:end] = str(rng.choice((*EDGES, -1, 3, 1.5))).encode()
    return bytes(out)


def packed(members, compression=zipfile.ZIP_STORED, **claims):
    """A zip archive, with what its first member is said to be."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a name that occurs twice
        for name, content in members:
            archive.writestr(name, content)
        for name, value in claims.items():
            setattr(archive.filelist[0], name, value)
    return file.getvalue()


def npy(array):
    file = io.BytesIO()
    np.lib.format.write_array(file, np.asarray(array), allow_pickle=True)
    return file.getvalue()


def crafted_npy(descr="'<f4'", shape="(2, 3)", fortran="False", version=1, data=bytes(24), **more):
    """A member of an npz file, field by field."""
    header = more.get(
        "header", f"{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}}}"
    )
    header = header.encode("latin1") + b"\n"
    width = 2 if version == 1 else 4
    length = more.get("length", len(header)).to_bytes(width, "little")
    return b"\x93NUMPY" + bytes((version, 0)) + length + header + data


def crafted(header, data=b"", length=None):
    """A safetensors file, field by field."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def entry(begin=0, end=4, dtype="F32", shape=(1,)):
    return {"dtype": dtype, "shape": shape, "data_offsets": (begin, end)}


def saved(state, suffix, folder):
    path = folder / f"saved.{suffix}"
    fl.save(state, path)
    return path.read_bytes()


def rezipped(data, seed, which):
    """A zip archive with a damaged member and right checksums."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = [(name, archive.read(name)) for name in archive.namelist()]
    which %= len(members)
    members[which] = (members[which][0], mutated(members[which][1], seed))
    return packed(members)


def deflated(state):
    file = io.BytesIO()
    np.savez_compressed(file, **state)
    return file.getvalue()


# Loading.


@contextlib.contextmanager
def bounded_memory(figures, data, ratio=4, more=256 << 10, one_in=8, kind="state"):
    """A block that may take so many times the size of a file, and some more.

    Checked for one in eight files, as it takes three times as long.
    """
    if zlib.crc32(data) % one_in:
        yield
        return
    tracemalloc.start()
    try:
        yield
        taken = tracemalloc.get_traced_memory()[1] - ratio * len(data)
    finally:
        tracemalloc.stop()
    name = f"memory for a damaged {kind} file beside {ratio} times its size, KiB"
    figures.most(CHAPTER, name, max(0, taken) / 1024)
    assert taken <= more, f"{taken} bytes and {ratio} times {len(data)}"


def load_damaged(path, data, trained, before, figures, **memory):
    """Load a damaged file into a model, which must work or change nothing; what was loaded."""
    model, optimizer = trained
    path.write_bytes(data)
    with bounded_memory(figures, data, **memory):
        try:
            found = load_arrays(path)
        except ValueError as error:
            assert str(error).startswith(f"load: {path} ")
            return None
    check_data(found)
    try:
        model.load_state_dict(found)
    except (AttributeError, TypeError, ValueError):
        assert bits(model, optimizer) == before
    else:
        for name, value in model.state_dict().items():
            np.testing.assert_array_equal(value, found[name].astype(value.dtype))
    return found


def check_data(value):
    """Nothing but arrays of numbers and plain data may come out of a file."""
    if isinstance(value, dict | list | tuple):
        assert type(value) in (dict, list, tuple)
        for item in [*value, *value.values()] if isinstance(value, dict) else value:
            check_data(item)
    elif isinstance(value, np.ndarray):
        assert value.dtype.kind in "biuf" and value.dtype.isnative
    else:
        assert value is None or type(value) in (bool, int, float, str) or value.kind in "biuf"


def whole_file(kind, state, folder):
    """A file of each kind that is damaged."""
    if kind == "deflated":
        return deflated(state)
    if kind in ("torch", "pickle"):
        return torch_file(dict(state))
    return saved(state, "safetensors" if kind == "safetensors" else "npz", folder)


@pytest.mark.parametrize("kind", ["npz", "deflated", "safetensors", "torch"])
def test_every_truncation_is_an_error(kind, tmp_path, trained, figures, effort):
    model, before = trained[0], bits(*trained)
    state = {
        k: np.resize(v.numpy(), effort(v.shape, (40, *v.shape)))
        for k, v in model.state_dict().items()
    }
    data = whole_file(kind, state, tmp_path)
    for size in range(len(data)):
        cut = data[:size]
        found = load_damaged(tmp_path / "cut", cut, trained, before, figures, ratio=RATIOS[kind])
        assert found is None, f"{kind} cut to {size} of {len(data)} bytes"
    figures.count(CHAPTER, f"truncation points, {kind}", len(data))
    assert bits(*trained) == before


@pytest.mark.parametrize("kind", ["npz", "members", "deflated", "safetensors", "torch", "pickle"])
def test_mutations(kind, tmp_path, trained, figures, effort):
    """In "members" and "pickle" the checksums are right, so that what they are of is read."""
    model = trained[0]
    state, before = flat(model.state_dict()), bits(*trained)
    original = {name: np.array(t) for name, t in model.state_dict().items()}
    whole = whole_file(kind, original, tmp_path)
    for seed in (cases := seeds(effort(500, 20_000))):
        with replayable(seed, f"test_mutations and {kind}"):
            # A PyTorch file's first member is its pickle.
            which = {"members": seed, "pickle": 0}.get(kind)
            data = mutated(whole, seed) if which is None else rezipped(whole, seed, which)
            path = tmp_path / "mutated"
            found = load_damaged(path, data, trained, before, figures, ratio=RATIOS[kind])
            if found is not None and kind in ("npz", "deflated", "torch"):  # which have checksums
                assert flat(found) == state
        if found is not None:
            model.load_state_dict(original)
        figures.count(CHAPTER, f"mutations, {kind}, that were loaded", found is not None)
    figures.count(CHAPTER, f"mutations, {kind}", len(cases))


class Trap:
    """Makes a folder when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, (os.environ["FASTLAYERS_TRAP"],)


def zeros_bomb(claim):
    """A member of 10 GiB of zeros in 10 MB."""
    gigabytes = 10
    compressor = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = zlib.compressobj(9, zlib.DEFLATED, -15)
    million = block.compress(bytes(1 << 20)) + block.flush(zlib.Z_FULL_FLUSH)
    count = gigabytes << 10
    header = crafted_npy(shape=f"({gigabytes << 28},)", data=b"")
    content = compressor.compress(header) + compressor.flush(zlib.Z_FULL_FLUSH)
    content += million * count + b"\3\0"
    size = len(header) + (gigabytes << 30) if claim is None else claim
    return packed([("x.npy", content)], compress_type=zipfile.ZIP_DEFLATED, file_size=size)


def overlapping():
    """An archive whose second member lies in the data of the first."""
    content = npy(np.ones(1000, np.uint8))
    inner = packed([("y.npy", content)])
    outer = npy(np.frombuffer(inner, np.uint8))
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("x.npy", outer)
        member = zipfile.ZipInfo("y.npy")
        member.header_offset = file.getvalue().index(inner)
        member.CRC = zlib.crc32(content)
        member.file_size = member.compress_size = len(content)
        archive.filelist.append(member)
    return file.getvalue()


def hostile():
    """Files of which nothing may be loaded, by name."""
    good = npy(np.ones((2, 3), np.float32))
    trap = np.array([Trap()], object)
    record = np.zeros(2, [("a", "f4"), ("b", "O")])
    one = {"x": entry()}
    floats, huge = bytes(4), 10 * 2**30
    members = {
        "object array": npy(trap),
        "record of objects": npy(record),
        "a pickle for a member": pickle.dumps(trap),
        "code for a dtype": crafted_npy("__import__('os').mkdir('trap')"),
        "code for a shape": crafted_npy(shape="(__import__('os').mkdir('trap'), 3)"),
        "object dtype": crafted_npy("'|O'"),
        "other dtypes": crafted_npy("'<U2'", shape="(3,)"),
        "void": crafted_npy("'|V4'"),
        "complex": crafted_npy("'<c8'", shape="(3,)"),
        "three bytes": crafted_npy("'<f3'", shape="(8,)"),
        "dates": crafted_npy("'<M8[ns]'", shape="(3,)"),
        "no such dtype": crafted_npy("'<b4'"),
        "negative shape": crafted_npy(shape="(-2, -3)"),
        "one dimension of 2**62": crafted_npy(shape=f"({2**62},)"),
        "product of 2**64": crafted_npy(shape=f"({2**32}, {2**32})", data=b""),
        "product of 2**64 + 6": crafted_npy(shape="(2, 3, 3074457345618258603)"),
        "nothing of 2**100": crafted_npy(shape=f"(0, {2**100})", data=b""),
        "nothing of 2**63": crafted_npy(shape=f"(0, {2**63})", data=b""),
        "nothing of -1": crafted_npy(shape="(0, -1)", data=b""),
        "2**60 empty texts": crafted_npy("'<U0'", shape=f"({2**60},)", data=b""),
        "2**60 empty records": crafted_npy("[]", shape=f"({2**60},)", data=b""),
        "a hundred dimensions": crafted_npy(shape=f"({'1, ' * 100})", data=floats),
        "a claim of 10 GB": crafted_npy(shape=f"({huge},)"),
        "no number": crafted_npy(shape="(2, x)"),
        "two numbers without a comma": crafted_npy(shape="(2 3,)"),
        "a fraction": crafted_npy(shape="(1.5, 4)"),
        "5,000 digits": crafted_npy(shape=f"({'1' * 5000},)"),
        "too much data": crafted_npy(data=bytes(25)),
        "too little data": crafted_npy(data=bytes(23)),
        "header without a shape": crafted_npy(header="{'descr': '<f4', 'fortran_order': False}"),
        "header that is a set": crafted_npy(header="{[]}"),
        "unclosed header": crafted_npy(header="{'descr': '''"),
        "nested header": crafted_npy(header="(" * 9000),
        "header of blanks": crafted_npy(header="{" + " " * 9000 + "x"),
        "header of entries": crafted_npy(header="{" + "'shape': ( ) , " * 600 + "x"),
        "header of 4 GB": crafted_npy(version=2, length=2**32 - 1),
        "header of 65 kB": crafted_npy(length=2**16 - 1),
        "version 0": crafted_npy(version=0),
        "version 9": crafted_npy(version=9),
        "an empty member": b"",
        "only a prefix": b"\x93NUMPY",
        "only a version": b"\x93NUMPY\1\0",
    }  # fmt: skip
    files = {f"member: {name}": packed([("x.npy", data)]) for name, data in members.items()}
    files |= {
        "pickle": pickle.dumps(trap),
        "pickle of protocol 0": pickle.dumps(trap, 0),
        "torch.save": packed([("m/data.pkl", pickle.dumps(Trap())), ("m/data/0", floats)]),
        "the same name twice": packed([("x.npy", good), ("x.npy", good)]),
        "a name with and without .npy": packed([("x", good), ("x.npy", good)]),
        "a folder": packed([("x/", b"")]),
        "bzip2": packed([("x.npy", good)], zipfile.ZIP_BZIP2),
        "lzma": packed([("x.npy", good)], zipfile.ZIP_LZMA),
        "said to be bzip2": packed([("x.npy", good)], compress_type=zipfile.ZIP_BZIP2),
        "said to be lzma": packed([("x.npy", good)], compress_type=zipfile.ZIP_LZMA),
        "said to be deflated": packed([("x.npy", good)], compress_type=zipfile.ZIP_DEFLATED),
        "unknown compression": packed([("x.npy", good)], compress_type=77),
        "said to be encrypted": packed([("x.npy", good)], flag_bits=1),
        "a checksum": packed([("x.npy", good)], CRC=1),
        "10 GB of zeros": zeros_bomb(None),
        "10 GB of zeros, said to be few": zeros_bomb(200),
        "10 GB stored": packed([("x.npy", crafted_npy(shape=f"({huge},)"))], file_size=huge),
        "10 GB stored twice": packed(
            [("x.npy", crafted_npy(shape=f"({huge},)"))], file_size=huge, compress_size=huge
        ),
        "10 GB deflated": packed(
            [("x.npy", good)], compress_type=zipfile.ZIP_DEFLATED, file_size=huge
        ),
        "200 MB deflated": packed(
            [("x.npy", crafted_npy(shape="(50000000,)"))], zipfile.ZIP_DEFLATED,
            file_size=len(crafted_npy(shape="(50000000,)")) - 24 + 200_000_000,
        ),
        "more than there is": packed([("x.npy", good), ("y.npy", good)], file_size=4 * len(good),
                                     compress_size=4 * len(good)),
        "a member in a member": overlapping(),
        "zip64 of 2**63": packed([("x.npy", good)], file_size=2**63, compress_size=2**63),
        "zip64 of 2**64 - 1": packed([("x.npy", good)], file_size=2**64 - 1),
        "zip64 at 2**64 - 1": packed([("x.npy", good)], header_offset=2**64 - 1),
        "extra field of 400 bytes": packed([("x.npy", good)], extra=b"\1\0\x90\1"),
    }  # fmt: skip
    headers = {
        "an array": [],
        "a number": 1,
        "nothing": b"",
        "no JSON": b"{",
        "no UTF-8": b'{"\xff": 1}',
        "nested": b"[" * 100_000,
        "nested objects": b'{"x":' * 100_000,
        "5,000 digits": b'{"x":' + b"1" * 5000 + b"}",
        "the same field twice": b'{"x":%b}'
        % json.dumps(entry()).encode().replace(b"{", b'{"shape":0,'),
        "a name without an entry": {"x": 1},
        "an entry without a dtype": {"x": {"shape": [1], "data_offsets": [0, 4]}},
        "a dtype without a name": {"x": entry(dtype=1)},
        "an unknown dtype": {"x": entry(dtype="F33")},
        "float8": {"x": entry(dtype="F8_E4M3", shape=(4,))},
        "half of a bfloat16": {"x": entry(dtype="BF16", shape=(4,))},
        "the same name twice": b'{"x":%b,"x":%b}' % ((json.dumps(entry()).encode(),) * 2),
        "objects": {"x": entry(dtype="O")},
        "overlapping": {"x": entry(), "y": entry()},
        "nested arrays": {"x": entry(0, 8, shape=(2,)), "y": entry(4, 8)},
        "a hole": {"x": entry(4, 8)},
        "out of range": {"x": entry(0, 8, shape=(2,))},
        "backwards": {"x": entry(4, 0)},
        "negative offsets": {"x": entry(-4, 0)},
        "negative shape": {"x": entry(shape=(-1, -1))},
        "offsets of 2**63": {"x": entry(2**63, 2**63 + 4)},
        "offset of 2**64": {"x": entry(0, 2**64 + 4)},
        "a shape of 10 GB": {"x": entry(shape=(huge,))},
        "10 GB": {"x": entry(0, 4 * huge, shape=(huge,))},
        "product of 2**64": {"x": entry(0, 0, shape=(2**32, 2**32)), "y": entry()},
        "nothing of 2**100": {"x": entry(0, 0, shape=(0, 2**100)), "y": entry()},
        "a hundred dimensions": {"x": entry(shape=(1,) * 100)},
        "another dtype": {"x": entry(dtype="F64")},
        "a fraction": {"x": entry(shape=(1.0,))},
        "a truth value": {"x": entry(shape=(True,))},
        "no shape": {"x": entry(shape=None)},
        "text for a shape": {"x": entry(shape="1")},
        "three offsets": {"x": one["x"] | {"data_offsets": [0, 4, 4]}},
        "infinite offsets": b'{"x":{"shape":[1],"dtype":"F32","data_offsets":[0,Infinity]}}',
        "no array for the data": {},
        "only metadata": {"__metadata__": {"x": "y"}},
    }
    files |= {f"header: {name}": crafted(header, floats) for name, header in headers.items()}
    files |= {f"header of {n}": crafted(one, floats, n) for n in (0, 1, 10**8 + 1, *EDGES[3:])}
    files |= {f"torch: {name}": data for name, data in hostile_torch().items()}
    files["a hole with data"] = crafted({"x": entry(4, 8)}, bytes(8))
    files |= {"too much": crafted(one, bytes(5)), "too little": crafted(one, bytes(3))}
    return files


def hostile_torch():
    """Files of torch.save of which nothing may be loaded, by name."""
    typed, content = storage("Float", "0", 1), [bytes(4)]
    views = {
        "a view of 4 TB": (0, (2**40,), (0,)),
        "a view of 2**80": (0, (2**40, 2**40), (0, 0)),
        "a view of 2**20000": (0, (2**2000,) * 10, (0,) * 10),
        "a view behind": (1, (1,), (1,)),
        "a view in front": (-1, (1,), (1,)),
        "a stride of 2**62": (0, (5,), (2**62,)),
    }
    codes = {name: tensor(typed, *view) for name, view in views.items()}
    codes |= {
        "a storage of more than there is": tensor(storage("Float", "0", 2**40), 0, (1,), (1,)),
        "a storage that is missing": tensor(storage("Float", "9", 1), 0, (1,), (1,)),
        "a storage elsewhere": tensor(storage("Float", "../data.pkl", 1), 0, (1,), (1,)),
        "a name": named("os", "system"),
        "a list of lists": b"]" * 20_000,
        "lists in lists": b"]" * 20_000 + b"a" * 19_999,
        "tuples in tuples": b")" + b"\x85" * 20_000,
        "tuples in tuples for a key": b"})" + b"\x85" * 20_000 + b"Ns",
        "a list in itself": b"]q\0h\0a",
        "2**60 lists": b"(]q\0%bt" % b"".join(b"](h%ch%ceq%c" % (i, i, i + 1) for i in range(60)),
        "marks": b"(" * 20_000,
        "an integer of 2 GB": b"\x8b\xff\xff\xff\x7f\1",
        "a text of 4 GB": b"X\xff\xff\xff\xffx",
        "calls with many arguments": b"(" + b"N" * 50_000 + b"tq\0"
        + b"ccollections\nCounter\nh\0R" * 1000,
    }  # fmt: skip
    files = {name: torch_archive(code, content) for name, code in codes.items()}
    for protocol in range(6):
        pickled = pickle.dumps({"x": Trap()}, protocol)
        files[f"a call in protocol {protocol}"] = packed([("m/data.pkl", pickled)])
    files["a byte order"] = torch_archive(tensor(typed, 0, (1,), (1,)), content, byteorder=b"odd")
    files["a packed pickle of 20 MB"] = packed(
        [("m/data.pkl", b"\x80\2" + b"]" * 20_000_000)], zipfile.ZIP_DEFLATED
    )
    return files


def test_hostile_files(tmp_path, trained, figures, monkeypatch):
    monkeypatch.setenv("FASTLAYERS_TRAP", str(tmp_path / "trap"))
    monkeypatch.chdir(tmp_path)
    before = bits(*trained)
    files = hostile()
    for name, data in files.items():
        for suffix in ("npz", "safetensors", "pth"):
            # Of a pickle's instruction of one byte Python makes an object of 64.
            ratio = 100 if name.startswith("torch") else 4
            with bounded_address_space():
                path = tmp_path / f"m.{suffix}"
                found = load_damaged(path, data, trained, before, figures, one_in=1, ratio=ratio)
            assert found is None, name
            path.unlink()
            assert os.listdir(tmp_path) == [], name
    figures.count(CHAPTER, "hostile files", len(files))
    assert bits(*trained) == before


@contextlib.contextmanager
def bounded_address_space(more=96 << 20):
    """A block that can map so many more bytes, whoever asks for them."""
    if sys.platform != "linux":
        yield
        return
    import resource

    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now + more, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


# Names.

NAMES = (
    "", "x", "x.npy", "x.npy.npy", "../../x", "/etc/x", "C:x", "x/", "a\\b", "é", "\u4f60", "\n",
    '"', "file", "n" * 65_000, "{}", "__class__",
)  # fmt: skip


@FORMATS
def test_any_text_is_a_name_and_no_more(suffix, tmp_path):
    state = {name: np.full(2, i, np.float32) for i, name in enumerate(NAMES)}
    fl.save(state, tmp_path / f"m.{suffix}")
    assert flat(load_arrays(tmp_path / f"m.{suffix}")) == flat(state)
    assert os.listdir(tmp_path) == [f"m.{suffix}"]


@FORMATS
@pytest.mark.parametrize("name", ["a\0b", "\ud800", "n" * 65_001, "é" * 40_000, "__metadata__"])
def test_names_that_a_format_cannot_keep(suffix, name, tmp_path):
    with pytest.raises(ValueError, match=r"^save: names must be text of at most 65000 bytes"):
        fl.save({name: np.ones(2)}, tmp_path / f"m.{suffix}")
    assert not os.listdir(tmp_path)


# What other programs write, and read.


def test_layouts_of_other_programs(tmp_path):
    path, values = tmp_path / "m.npz", np.arange(6, dtype=np.float32).reshape(2, 3)
    for array in (values, values.astype(">f4"), np.asfortranarray(values), values.astype("=f4")):
        path.write_bytes(packed([("x.npy", npy(array))]))
        assert flat(load_arrays(path)) == flat({"x": values})
    content = {"data": values.tobytes()}
    for member in (
        crafted_npy(header="{'shape':(2,3,),'fortran_order':False,'descr':'=f4'}", **content),
        crafted_npy(
            header="{ 'descr' : '<f4' , 'shape' : (2,3) , 'fortran_order' : False }\t", **content
        ),
        crafted_npy(version=2, **content),
        crafted_npy(version=3, **content),
        crafted_npy(fortran="True", data=values.T.tobytes()),
    ):
        for compression in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            path.write_bytes(packed([("x.npy", member)], compression))
            assert flat(load_arrays(path)) == flat({"x": values})
    header = {"__metadata__": {"format": "pt"}, "x": entry(0, 24, shape=(2, 3))}
    path = tmp_path / "m.safetensors"
    for width in (*range(100, 109), 0x4B50):  # arrays that begin anywhere, a file with "PK"
        path.write_bytes(crafted(json.dumps(header).ljust(width).encode(), values.tobytes()))
        found = load_arrays(path)
        assert flat(found) == flat({"x": values})
        assert found["x"].flags.writeable and found["x"].flags.aligned


def test_zeros_may_be_packed_to_a_thousandth(tmp_path):
    np.savez_compressed(tmp_path / "m.npz", x=np.zeros(10**6))
    assert (tmp_path / "m.npz").stat().st_size < 10**4
    assert not load_arrays(tmp_path / "m.npz")["x"].any()


@pytest.mark.parametrize(
    "dtype", ["b1", "u1", "i1", "<u2", ">i2", "<f2", ">f4", "<f8", ">i8", ">u4"]
)
def test_the_package_safetensors_agrees(dtype, tmp_path):
    values = np.arange(6).reshape(2, 3).astype(dtype)
    state = {"x": values, "y": values.T, "z": values[0, 0], "n": values[:0], "b": np.ones(3, bool)}
    native = {k: np.asarray(v, np.asarray(v).dtype.newbyteorder("=")) for k, v in state.items()}
    path = tmp_path / "m.safetensors"
    fl.save(state, path)
    assert flat(dict(safetensors.numpy.load_file(path))) == flat(native) == flat(load_arrays(path))
    safetensors.numpy.save_file({k: np.array(v, order="C") for k, v in native.items()}, path)
    found = load_arrays(path)
    assert {k: v.tolist() for k, v in found.items()} == {k: v.tolist() for k, v in native.items()}


# Saving.

OLD = {"x": np.zeros(5000), "y": np.zeros(3, np.int64)}
NEW = {"x": np.ones(5000), "y": np.ones(3, np.int64)}


# To open, write, sync, close and rename a file; to open, sync and close its folder.
CALLS = 8


class Faults:
    """Fails the n-th call to the system of a save: instead of it, after it, or in its midst."""

    def __init__(self, monkeypatch, at, when, fail):
        self.at, self.when, self.fail, self.calls = at, when, fail, 0
        calls = {
            name: self.wrapped(getattr(os, name)) for name in ("open", "fsync", "replace", "close")
        }
        everything = {name: getattr(os, name) for name in dir(os)}
        monkeypatch.setattr(state_files, "os", SimpleNamespace(**everything | calls))
        monkeypatch.setattr(state_files, "open", self.opened, raising=False)

    def wrapped(self, call):
        def called(*args, **kwargs):
            self.calls += 1
            mine = self.calls == self.at
            if mine and self.when != "after":
                if (
                    self.when == "midst" and call is io.FileIO.write
                ):  # half of it, as on a full disk
                    call(args[0], args[1][: len(args[1]) // 2])
                if call in (
                    io.FileIO.close,
                    os.close,
                ):  # a file that is not closed is no fault of a save
                    call(*args)
                self.fail()
            result = call(*args, **kwargs)
            if mine:
                self.fail()
            return result

        return called

    def opened(self, path, mode):
        class File(io.FileIO):
            write, seek, close = (
                self.wrapped(getattr(io.FileIO, name)) for name in ("write", "seek", "close")
            )

        return io.BufferedWriter(self.wrapped(File)(path, mode.replace("b", "")))


def raising(error):
    def fail():
        raise error

    return fail


def checked_save(path, old):
    """Whether the file, old or none before, is the new one; neither is an error."""
    if not path.exists():
        assert not old
        return False
    found = flat(load_arrays(path))
    assert found in ([flat(OLD)] if old else []) + [flat(NEW)]
    return found == flat(NEW)


FAULTS = [
    OSError(errno.ENOSPC, "disk full"),
    OSError(errno.EIO, "i/o"),
    KeyboardInterrupt(),
    MemoryError(),
]


@FORMATS
@pytest.mark.parametrize("old", [True, False])
@pytest.mark.parametrize("when", ["before", "midst", "after"])
@pytest.mark.parametrize("error", FAULTS, ids=lambda error: str(error) or type(error).__name__)
def test_a_fault_at_any_call_leaves_the_old_file_or_the_new_one(
    suffix, old, when, error, tmp_path, figures, monkeypatch
):
    path = tmp_path / f"m.{suffix}"
    for n in itertools.count(1):
        path.unlink(missing_ok=True)
        if old:
            fl.save(OLD, path)
        with monkeypatch.context() as patch:
            faults = Faults(patch, n, when, raising(error))
            try:
                fl.save(NEW, path)
            except type(error) as caught:
                failed = True
                assert caught is error
            else:
                failed = False
        is_new = checked_save(path, old)
        assert os.listdir(tmp_path) == [path.name] * path.exists(), n
        if not failed:
            assert is_new
            if faults.calls < n:
                break
        figures.count(CHAPTER, "faults in a save")
    assert n > CALLS


def killed_saves(folder, suffix):
    """Run saves in children that are killed at the n-th call; how many were."""
    folder, count = Path(folder), 0
    path = folder / f"m.{suffix}"
    for when, old in itertools.product(("before", "midst", "after"), (True, False)):
        for n in itertools.count(1):
            path.unlink(missing_ok=True)
            if old:
                fl.save(OLD, path)
            child = os.fork()
            if not child:
                Faults(pytest.MonkeyPatch(), n, when, lambda: os.kill(os.getpid(), signal.SIGKILL))
                fl.save(NEW, path)
                os._exit(0)
            killed = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
            is_new = checked_save(path, old)
            left = [name for name in os.listdir(folder) if name != path.name]
            assert len(left) <= killed and all(
                re.fullmatch(rf"\.m\.{suffix}\.\w+\.part", x) for x in left
            )
            fl.save(NEW, path)  # whatever was left
            assert checked_save(path, False)
            for name in left:
                os.unlink(folder / name)
            count += killed
            if not killed:
                assert is_new and n > CALLS
                break
    return count


def in_new_process(code, *arguments, **options):
    paths = os.pathsep.join([str(Path(fl.__file__).parents[1]), str(TESTS)])
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(
        command,
        env=os.environ | {"PYTHONPATH": paths},
        stdout=subprocess.PIPE,
        text=True,
        **options,
    )


KILLED = "import sys; from trust import test_state_files as t; print(t.killed_saves(*sys.argv[1:]))"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@FORMATS
def test_a_kill_at_any_call_leaves_the_old_file_or_the_new_one(suffix, tmp_path, figures):
    with in_new_process(KILLED, tmp_path, suffix) as process:
        output = process.communicate()[0]
    assert process.returncode == 0
    figures.count(CHAPTER, "kills in a save", int(output))


SAVING = """
import sys, numpy as np, fastlayers as fl
path, first, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
for i in range(count):
    fl.save({"x": np.full(5000, first + i), "y": np.full(3, first + i)}, path)
    print(i, flush=True)
"""


def check_whole(path):
    """The number that a whole file of `SAVING` is filled with."""
    state = load_arrays(path)
    (number,) = {*state["x"].tolist(), *state["y"].tolist()}
    assert state["x"].shape == (5000,) and state["y"].shape == (3,)
    return number


@FORMATS
def test_a_kill_at_any_time_leaves_a_whole_file(suffix, tmp_path, figures, effort):
    for n in range(kills := effort(2, 50)):
        with in_new_process(SAVING, tmp_path / f"m.{suffix}", 0, 10**6) as process:
            for _ in range(1 + n):
                number = int(process.stdout.readline())
            process.kill()
        assert check_whole(tmp_path / f"m.{suffix}") >= number
    assert len(os.listdir(tmp_path)) <= 1 + kills
    figures.count(CHAPTER, "processes killed while they saved", kills)


@FORMATS
def test_processes_that_save_to_one_path(suffix, tmp_path, figures, effort):
    path, each = tmp_path / f"m.{suffix}", effort(10, 1000)
    fl.save({"x": np.full(5000, -1), "y": np.full(3, -1)}, path)
    processes = [in_new_process(SAVING, path, k * each, each) for k in range(3)]
    reads = 0
    while any(process.poll() is None for process in processes):
        assert -1 <= check_whole(path) < 3 * each
        reads += 1
    for process in processes:
        process.communicate()
        assert process.returncode == 0
    assert check_whole(path) % each == each - 1
    assert os.listdir(tmp_path) == [path.name]
    figures.count(CHAPTER, "whole files read while three processes saved", reads)


@FORMATS
def test_a_link_keeps_pointing_where_it_did(suffix, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    target, link = tmp_path / "elsewhere" / f"m.{suffix}", tmp_path / f"m.{suffix}"
    link.symlink_to(target)
    for state in (OLD, NEW):
        fl.save(state, link)
        assert link.is_symlink() and flat(load_arrays(target)) == flat(state)


@FORMATS
def test_the_longest_name_of_a_file(suffix, tmp_path):
    path = tmp_path / ("m" * (254 - len(suffix)) + "." + suffix)
    fl.save(NEW, path)
    assert os.listdir(tmp_path) == [path.name]


def test_folders_that_cannot_be_synced(tmp_path, monkeypatch):
    """An error of the disk is raised, what a file system does not know is left."""
    path = tmp_path / "m.npz"
    for number, raised in ((errno.EINVAL, False), (errno.EIO, True)):

        def fsync(descriptor, number=number, real=os.fsync):
            if os.path.isdir(f"/proc/self/fd/{descriptor}"):
                raise OSError(number, "no")
            real(descriptor)

        monkeypatch.setattr(state_files, "os", SimpleNamespace(**vars(os) | {"fsync": fsync}))
        with pytest.raises(OSError) if raised else contextlib.nullcontext():
            fl.save(NEW, path)
        assert flat(load_arrays(path)) == flat(NEW)


# What is loaded into.


@pytest.mark.parametrize(
    ("value", "error"),
    [
        (np.full(3, 1e300), RuntimeWarning),
        (np.full(3, 1j), TypeError),
        (np.full(3, "x"), TypeError),
        (np.ones((3, 1)), ValueError),
        ([[1], [1, 2]], ValueError),
    ],
)
def test_a_failed_load_changes_nothing(trained, value, error):
    model, before = trained[0], bits(*trained)
    state = {key: array + 1 for key, array in model.state_dict().items()}
    with pytest.raises(error):
        model.load_state_dict(state | {"3.bias": value})
    assert bits(*trained) == before


def test_a_model_that_is_read_only_in_part(trained):
    model = trained[0]
    model[3].bias.array().flags.writeable = False
    before = bits(*trained)
    with pytest.raises(ValueError, match="load_state_dict: the model's '3.bias' must be writable"):
        model.load_state_dict({key: array + 1 for key, array in model.state_dict().items()})
    assert bits(*trained) == before


VALUES = (
    None,
    0,
    -1,
    2**70,
    1.5,
    float("nan"),
    "x",
    [],
    {},
    np.ones(2),
    [np.ones(2)],
    {"x": 1},
    object(),
)


def changed(value, rng):
    """A nested state with one random change."""
    if isinstance(value, dict | list) and value and rng.random() < 0.9:
        value = dict(value) if isinstance(value, dict) else list(value)
        key = rng.choice(list(value) if isinstance(value, dict) else range(len(value)))
        match rng.randrange(8):
            case 0:
                del value[key]
            case 1 if isinstance(value, dict):
                value[rng.choice((key, "other", 99))] = rng.choice(VALUES)
            case _:
                value[key] = changed(value[key], rng)
        return value
    return rng.choice(VALUES)


@pytest.mark.parametrize("kind", [optim.SGD, optim.Adam, optim.AdamW, optim.Adadelta])
def test_a_changed_state_of_an_optimiser_is_taken_or_changes_nothing(
    kind, trained, figures, effort
):
    model = trained[0]
    optimizer = kind(model.parameters(), lr=0.1, **({"momentum": 0.9} if kind is optim.SGD else {}))
    optimizer.step()
    whole = optimizer.state_dict()
    for seed in seeds(effort(150, 10_000)):
        before = bits(model, optimizer)
        with replayable(seed, f"optimiser and {kind.__name__}"):
            try:
                optimizer.load_state_dict(changed(whole, random.Random(seed)))
            except ValueError:
                assert bits(model, optimizer) == before
            else:
                optimizer.step()
                optimizer.load_state_dict(whole)
        figures.count(CHAPTER, "changed states of optimisers")


# Files of data sets.


@pytest.mark.parametrize("kind", ["idx", "gzip"])
def test_damaged_idx_files(kind, tmp_path, figures, effort):
    values = np.arange(60, dtype=np.uint8).reshape(5, 3, 4)
    whole = b"\0\0\x08\3" + np.array([5, 3, 4], ">u4").tobytes() + values.tobytes()
    if kind == "gzip":
        whole = gzip.compress(whole)
    path = tmp_path / "x"
    files = [(-1, whole[:size]) for size in range(len(whole))]
    files += [(seed, mutated(whole, seed)) for seed in seeds(effort(150, 10_000))]
    for seed, data in files:
        path.write_bytes(data)
        # Which are read in pieces of 1 MiB.
        memory = bounded_memory(figures, data, 1040 if kind == "gzip" else 4, 5 << 20, kind=kind)
        with replayable(seed, f"idx and {kind}"), memory:
            try:
                found = read_idx(path)
            except ValueError as error:
                assert str(error).startswith(f"read_idx: {path}")
            else:
                assert found.dtype.isnative and seed >= 0
                if kind == "gzip":  # which has a checksum
                    np.testing.assert_array_equal(found, values)
    figures.count(CHAPTER, "damaged idx files", len(files))


def test_cut_cifar_files(tmp_path, figures):
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    data = b"".join(bytes([i % 10]) + bytes(3072) for i in range(3))
    for size in {*range(0, len(data), 61), 3072, 3073, 3074, 2 * 3073, len(data)}:
        (folder / "test_batch.bin").write_bytes(data[:size])
        if size and size % 3073 == 0:
            assert len(CIFAR10(tmp_path, train=False)) == size // 3073
            continue
        with pytest.raises(ValueError, match="^CIFAR10: .* must hold records of 3073 bytes each"):
            CIFAR10(tmp_path, train=False)
        figures.count(CHAPTER, "damaged CIFAR files")
