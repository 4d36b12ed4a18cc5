import io
import os
import zipfile

import numpy as np
import pytest
from state.loading import load_arrays
from state.torch_archive import (
    Code,
    archive,
    called,
    coded,
    named,
    ordered,
    parameter,
    storage,
    tensor,
    torch_file,
)

import fastlayers as fl

FLOATS = np.arange(12, dtype=np.float32)


def load(content, **options):
    return load_arrays(io.BytesIO(content), **options)


def refused(content, message):
    with pytest.raises(
        ValueError, match=f"^load: BytesIO cannot be read as a torch file: {message}"
    ):
        load(content)


def check_equal(found, expected):
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    np.testing.assert_array_equal(found, expected)
    assert found.flags.c_contiguous and found.flags.writeable and found.flags.aligned


@pytest.mark.parametrize("dtype", ["?", "u1", "i1", "i2", "i4", "i8", "f2", "f4", "f8"])
@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (0, 3), (1, 1, 4)])
def test_dtypes_and_shapes(dtype, shape):
    array = np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype)
    found = load(torch_file({"w": array}))
    check_equal(found["w"], array)


def test_plain_data():
    value = {
        "epoch": 3, "loss": 0.5, 7: [1, (2, -3, ()), [None]], "name": "größe",
        "flags": (True, False), "large": [2**70, -(2**70), 2**31], "inf": [np.inf, -0.0],
    }  # fmt: skip
    found = load(torch_file(value))
    assert found == value and repr(found) == repr(value)


def test_a_state_dict_is_a_dict_in_its_order():
    state = ordered(
        [("b", parameter(tensor(storage("Float", "0", 12), 0, (3, 4), (4, 1)))), ("a", 1)]
    )
    found = load(archive(state, [FLOATS.tobytes()]))
    assert type(found) is dict and list(found) == ["b", "a"]
    check_equal(found["b"], FLOATS.reshape(3, 4))


@pytest.mark.parametrize(
    ("offset", "shape", "stride"),
    [
        (0, (3, 4), (4, 1)),
        (0, (4, 3), (1, 4)),  # transposed
        (5, (2, 2), (4, 1)),
        (1, (4,), (3,)),
        (11, (), ()),
        (2, (3, 4), (0, 0)),  # expanded
        (0, (1, 12), (2**70, 1)),  # a stride that is never used
        (99, (0, 3), (3, 1)),
    ],
)
def test_views(offset, shape, stride):
    typed = storage("Float", "0", 12)
    code = coded((tensor(typed, offset, shape, stride), tensor(typed, 0, (12,), (1,))))
    found, whole = load(archive(code, [FLOATS.tobytes()]))
    count = int(np.prod(shape))
    at = sum(i * min(s, 99) for i, s in zip(np.indices(shape), stride, strict=True)) + offset
    check_equal(found, FLOATS[at] if count else np.empty(shape, np.float32))
    check_equal(whole, FLOATS)
    whole[...] = -1
    assert not (found == -1).any()  # which have no memory in common


def test_what_occurs_twice_is_one_object():
    one = Code(tensor(storage("Float", "0", 12), 0, (12,), (1,)) + b"q\x00")
    pair = Code(coded((0.9, 0.99)) + b"q\x01")
    value = coded([one, Code(b"h\0"), pair, Code(b"h\1")])
    a, b, c, d = fl.load(io.BytesIO(archive(value, [FLOATS.tobytes()])))
    assert a is b and c is d == (0.9, 0.99)


def test_bfloat16_is_float32():
    bits = np.array([0x3F80, 0xC000, 0x7F80, 0x0001, 0x3F81], np.uint16)
    values = (bits.astype(np.uint32) << 16).view(np.float32)
    code = tensor(storage("BFloat16", "0", 5), 0, (5,), (1,))
    check_equal(load(archive(code, [bits.tobytes()])), values)
    check_equal(load(archive(code, [bits.tobytes()]), dtype="f8"), values.astype("f8"))
    check_equal(load(archive(code, [bits.byteswap().tobytes()], byteorder=b"big")), values)
    every_second = tensor(storage("BFloat16", "0", 5), 0, (3,), (2,))
    check_equal(load(archive(every_second, [bits.tobytes()])), values[::2])


def test_byte_orders():
    code = tensor(storage("Float", "0", 12), 0, (12,), (1,))
    for order, dtype in ((b"little", "<f4"), (b"big", ">f4")):
        check_equal(load(archive(code, [FLOATS.astype(dtype).tobytes()], byteorder=order)), FLOATS)
    refused(archive(code, [FLOATS.tobytes()], byteorder=b"middle"), "b'middle'")


def test_tensors_of_version_3_and_of_classes():
    typed = storage("Untyped", "0", 4)
    rest = (0, (2,), (1,), False, None)
    third = called(
        named("torch._utils", "_rebuild_tensor_v3"), typed, *rest, named("torch", "uint16")
    )
    content = [np.array([1, 2**15], np.uint16).tobytes()]
    check_equal(load(archive(third, content)), np.array([1, 2**15], np.uint16))
    short = (storage("Short", "0", 2), *rest)
    of_type = called(
        named("torch._tensor", "_rebuild_from_type_v2"),
        named("torch._utils", "_rebuild_tensor_v2"),
        named("torch", "Tensor"),
        short,
        {"persistent": True},
    )
    check_equal(load(archive(of_type, content)), np.array([1, -(2**15)], np.int16))


def test_sizes_counters_and_dtypes():
    code = coded(
        [
            called(named("torch", "Size"), (3, 4)),
            called(named("collections", "Counter"), {2: 1}),
            named("torch", "float16"),
            named("torch", "bfloat16"),
        ]
    )
    assert load(archive(code)) == [(3, 4), {2: 1}, np.dtype("f2"), np.dtype("f4")]


@pytest.mark.parametrize("folder", ["", "archive/", "model v1/"])
def test_the_folder_has_any_name(folder):
    found = load(archive(coded({"x": 1}), folder=folder, **{".data/serialization_id": b"1"}))
    assert found == {"x": 1}


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("os", "system"), ("builtins", "eval"), ("__builtin__", "getattr"), ("numpy", "ndarray"),
        ("torch.nn.modules.container", "Sequential"), ("torch", "ComplexFloatStorage"),
        ("torch", "float8_e4m3fn"), ("torch", "load"), ("collections", "OrderedDict.clear"),
    ],
)  # fmt: skip
def test_other_names_are_refused(module, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for code in (named(module, name), called(named(module, name), "touch trap")):
        refused(archive(code), f"global '{module}.{name}' is refused: .*save model.state_dict")
    assert not os.listdir(tmp_path)


FLOAT_STORAGE = storage("Float", "0", 12)
SHAPES = [
    (0, (13,), (1,)), (1, (12,), (1,)), (0, (3, 5), (4, 1)), (-1, (1,), (1,)), (0, (-1,), (1,)),
    (0, (2,), (-1,)), (0, (2,), (2**62,)), (12, (), ()), (0, (2,), (1, 1)), (0, [2], [1]),
    (0, 2, 1), (0, (2.0,), (1,)), (True, (2,), (1,)), (0, (1,) * 65, (1,) * 65),
]  # fmt: skip


@pytest.mark.parametrize("view", SHAPES, ids=str)
def test_views_beyond_the_storage(view):
    code = tensor(FLOAT_STORAGE, *view)
    refused(archive(code, [FLOATS.tobytes()]), "a tensor is not within its storage of 48 bytes")


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (tensor(FLOAT_STORAGE, 0, (2**30,), (0,)), "its tensors take more than 256 MiB"),
        (tensor(FLOAT_STORAGE, 0, (2**40, 2**40), (0, 0)), "its tensors take more than 256 MiB"),
        (tensor(FLOAT_STORAGE, 0, (1,), (1,), {"neg": True}), "a negated or conjugate view"),
        (tensor(None, 0, (1,), (1,)), "a tensor without a storage is refused"),
        (FLOAT_STORAGE, "a TypedStorage is refused where data is expected"),
        (named("torch", "FloatStorage"), "a Class is refused where data is expected"),
        (named("torch", "Size"), "a Function is refused where data is expected"),
        (storage("Float", "0", 13), "its pickle refers to something that is not a storage"),
        (storage("Float", "1", 12), "'archive/data/1'"),
        (
            Code(coded(("storage", 1, "0", "cpu", 1)) + b"Q"),
            "its pickle refers to something that is not",
        ),
        (Code(coded("x") + b"Q"), "its pickle refers to something that is not a storage"),
        (
            called(named("torch._utils", "_rebuild_tensor_v3"), FLOAT_STORAGE, *[None] * 7),
            "a tensor without a dtype",
        ),
    ],
)
def test_other_tensors_are_refused(code, message):
    refused(archive(code, [FLOATS.tobytes()]), message)


def test_a_storage_that_is_named_very_often():
    """1,000 tensors of 1 MB in a file of 1 MB."""
    one = Code(b"h\0" + coded((Code(b"h\1"), 0, (1 << 18,), (1,))) + b"R")
    head = b"(" + named("torch._utils", "_rebuild_tensor_v2") + b"q\0"
    code = head + storage("Float", "0", 1 << 18) + b"q\1" + one * 1000 + b"t"
    refused(archive(code, [bytes(1 << 20)]), "its tensors take more than 256 MiB")


def test_other_archives_are_refused():
    refused(archive(b"N", **{"constants.pkl": b""}), "it is a TorchScript program")
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as zipped:
        zipped.writestr("x/data.pkl", b"\x80\x02N.")
    refused(file.getvalue(), "its members are compressed")
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as zipped:
        for folder in "xy":
            zipped.writestr(f"{folder}/data.pkl", b"\x80\x02N.")
    refused(file.getvalue(), "too many values")


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (
            b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.",
            "before PyTorch 1.6.*load it and save it again",
        ),
        (b"./".ljust(257, b"\0") + b"ustar", "tar format of PyTorch 0.1"),
        (b"\x80\x04\x95\x10" + bytes(9), "a pickle, which is never read; .*model.state_dict"),
        (b"\x80\x02}q\0.", "a pickle, which is never read"),
        (b"\x89HDF\r\n", "begins with b'.x89HDF"),
        (b"", "without content"),
    ],
)
@pytest.mark.parametrize("name", ["m.pth", "m.safetensors"])
def test_other_formats_are_named(start, message, name, tmp_path):
    path = tmp_path / name
    path.write_bytes(start)
    if name == "m.pth" or start[:1] in (b"\x80", b"."):
        with pytest.raises(ValueError, match=rf"^load: \S* must be .* torch file, got .*{message}"):
            load_arrays(path)
    else:
        with pytest.raises(ValueError, match=f"^load: {path} cannot be read as a safetensors file"):
            load_arrays(path)
