"""Files as torch.save writes them, without PyTorch: a pickle, instruction by instruction."""

import io
import struct
import zipfile

import numpy as np

STORAGES = {
    "bool": "Bool", "uint8": "Byte", "int8": "Char", "int16": "Short", "int32": "Int",
    "int64": "Long", "float16": "Half", "float32": "Float", "float64": "Double",
}  # fmt: skip


class Code(bytes):
    """Instructions that leave one value on the stack."""


def named(module, name):
    return Code(b"c%b\n%b\n" % (module.encode(), name.encode()))


def called(function, *arguments):
    return Code(function + coded(arguments) + b"R")


def ordered(pairs):
    """An OrderedDict with the attributes that a state dict has."""
    items = b"(" + b"".join(coded(key) + coded(value) for key, value in pairs) + b"u"
    empty = called(named("collections", "OrderedDict"))
    return Code(empty + items + coded({"_metadata": empty}) + b"b")


def storage(kind, key, count, location="cpu"):
    module = "torch.storage" if kind == "Untyped" else "torch"
    where = ("storage", named(module, f"{kind}Storage"), key, location, count)
    return Code(coded(where) + b"Q")


def tensor(typed, offset, shape, stride, *metadata):
    """A call of _rebuild_tensor_v2."""
    hooks = called(named("collections", "OrderedDict"))
    rebuild = named("torch._utils", "_rebuild_tensor_v2")
    return called(rebuild, typed, offset, shape, stride, False, hooks, *metadata)


def parameter(data):
    hooks = called(named("collections", "OrderedDict"))
    return called(named("torch._utils", "_rebuild_parameter"), data, True, hooks)


def coded(value, keep=None):
    """Instructions that make a value; `keep` makes those of an array."""
    match value:
        case Code():
            return value
        case None:
            return b"N"
        case bool():
            return b"\x88" if value else b"\x89"
        case int() if -(2**31) <= value < 2**31:
            return b"J" + struct.pack("<i", value)
        case int():
            content = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
            return b"\x8a" + bytes([len(content)]) + content
        case float():
            return b"G" + struct.pack(">d", value)
        case str():
            return b"X" + struct.pack("<I", len(value.encode())) + value.encode()
        case tuple():
            return b"(" + b"".join(coded(item, keep) for item in value) + b"t"
        case list():
            return b"](" + b"".join(coded(item, keep) for item in value) + b"e"
        case dict():
            pairs = value.items()
            return b"}(" + b"".join(coded(k) + coded(v, keep) for k, v in pairs) + b"u"
    return keep(value)


def archive(code, storages=(), folder="archive/", **records):
    """A file of a pickle of some instructions, and of storages' bytes."""
    file = io.BytesIO()
    members = {"data.pkl": b"\x80\x02" + code + b"."} | records
    members |= {f"data/{key}": content for key, content in enumerate(storages)}
    with zipfile.ZipFile(file, "w") as zipped:
        for name, content in (members | {"version": b"3\n"}).items():
            zipped.writestr(f"{folder}{name}", content)
    return file.getvalue()


def torch_file(value, **records):
    """A file of a value with arrays for its tensors, each of which has a storage of its own."""
    storages = []

    def keep(array):
        storages.append(array.tobytes())
        steps = tuple(step // array.itemsize for step in np.empty(array.shape, array.dtype).strides)
        kind = STORAGES[array.dtype.name]
        typed = storage(kind, str(len(storages) - 1), array.size)
        return tensor(typed, 0, array.shape, steps)

    return archive(coded(value, keep), storages, **records)
