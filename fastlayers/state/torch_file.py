"""Files of ``torch.save``: a zip archive of a pickle, and of the storages that it refers to.

https://docs.pytorch.org/docs/stable/notes/serialization.html

The pickle is read by `fastlayers.state.unpickle`, which executes nothing.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastlayers.state.archive import Members, largest_content, read_bytes
from fastlayers.state.bfloat16 import to_float32
from fastlayers.state.unpickle import Function, Leaf, call, plain, unpickle

__all__ = ["foreign", "is_torch_file", "read"]

_PICKLE = "data.pkl"
# How files begin that hold pickles one after the other.
_MAGIC_NUMBER = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"
_DTYPES = {
    "bool": "?", "uint8": "u1", "int8": "i1", "uint16": "u2", "int16": "i2", "uint32": "u4",
    "int32": "i4", "uint64": "u8", "int64": "i8", "bfloat16": "u2", "float16": "f2",
    "float32": "f4", "float64": "f8",
}  # fmt: skip
_STORAGES = {
    "Bool": "bool", "Byte": "uint8", "Char": "int8", "Short": "int16", "Int": "int32",
    "Long": "int64", "BFloat16": "bfloat16", "Half": "float16", "Float": "float32",
    "Double": "float64", "Untyped": "uint8",
}  # fmt: skip
_MOST_DIMENSIONS = 64  # of NumPy
_BYTE_ORDERS = {b"little": "<", b"big": ">"}


@dataclass(frozen=True)
class _DType(Leaf):
    """A PyTorch dtype; where it is data, it stands for what its values are loaded as."""

    name: str


@dataclass(frozen=True)
class _Class:
    """A class that is named but never instantiated: of storages of a dtype, or of tensors."""

    dtype: str = ""


@dataclass
class _Storage:
    """Bytes that tensors are views of, and whether an array already owns them."""

    content: np.ndarray
    is_taken: bool = False


@dataclass(frozen=True)
class _TypedStorage:
    storage: _Storage
    dtype: str


def foreign(start: bytes) -> str | None:
    """What a file is, judging by its first bytes, if PyTorch wrote it in an unsupported format."""
    if start.startswith(_MAGIC_NUMBER):
        return (
            "in the format of torch.save before PyTorch 1.6, or with "
            "_use_new_zipfile_serialization=False; PyTorch can load it and save it again"
        )
    if start[257:262] == b"ustar":
        return "in the tar format of PyTorch 0.1; PyTorch can load it and save it again"
    if start[:1] == b"\x80" and start[1:2] <= b"\x05" and start[8:9] != b"{":
        return "with a pickle, which is never read; of a model, save model.state_dict()"
    return None


def is_torch_file(members: Members) -> bool:
    """Whether an archive has a pickle where PyTorch writes it."""
    return any(name == _PICKLE or name.endswith(f"/{_PICKLE}") for name in members)


def read(
    archive: zipfile.ZipFile, members: Members, size: int, leaf: Callable[[np.ndarray], Any]
) -> Any:
    """What was saved; tensors are arrays with their own memory, each passed to `leaf`.

    Raises
    ------
    ValueError, and others
        If the file is damaged or holds anything but tensors and plain data.
    """
    (pickle,) = [name for name in members if f"/{name}".endswith(f"/{_PICKLE}")]
    folder = pickle.removesuffix(_PICKLE)
    if f"{folder}constants.pkl" in members:
        raise ValueError(
            "it is a TorchScript program (torch.jit.save), which is never run; save a state dict"
        )
    # As torch.save writes them. A deflated pickle could take 100,000 times its size in memory.
    if any(member.compress_type != zipfile.ZIP_STORED for member in members.values()):
        raise ValueError("its members are compressed, those of torch.save are not")
    data = archive.read(members[pickle])
    reader = _Reader(archive, members, folder, largest_content(size), leaf)
    return plain(unpickle(data, reader.names(), reader.storage), 1000 + 10 * len(data))


class _Reader:
    """What the pickle's names and references stand for.

    Parameters
    ----------
    archive, members, folder
        The file, and what the names of its members begin with.
    left : int
        Bytes that the arrays may still take: a pickle can name the same storage many times.
    leaf : callable
        Called with each array.
    """

    def __init__(
        self, archive: zipfile.ZipFile, members: Members, folder: str, left: int,
        leaf: Callable[[np.ndarray], Any],
    ) -> None:  # fmt: skip
        self.archive, self.members, self.folder = archive, members, folder
        self.left, self.leaf = left, leaf
        self.storages: dict[str, _Storage] = {}
        order = members.get(f"{folder}byteorder")
        self.order = "<" if order is None else _BYTE_ORDERS[archive.read(order)]

    def names(self) -> dict[str, Any]:
        """What global names stand for."""
        names: dict[str, Any] = {
            "collections.OrderedDict": Function(lambda: {}),
            "collections.Counter": Function(_first),
            "torch.Size": Function(_first),
            "torch.Tensor": _Class(),
            "torch.nn.parameter.Parameter": _Class(),
            "torch.storage.UntypedStorage": _Class("uint8"),
            "torch._utils._rebuild_tensor_v2": Function(self.tensor),
            "torch._utils._rebuild_tensor_v3": Function(self.tensor_of_dtype),
            "torch._utils._rebuild_parameter": Function(_first),
            "torch._utils._rebuild_parameter_with_state": Function(_first),
            "torch._tensor._rebuild_from_type_v2": Function(_of_type),
        }
        for name, dtype in _STORAGES.items():
            names[f"torch.{name}Storage"] = _Class(dtype)
        for name, code in _DTYPES.items():
            names[f"torch.{name}"] = _DType(np.dtype("f4" if name == "bfloat16" else code), name)
        return names

    def storage(self, identifier: Any) -> _TypedStorage:
        """What a persistent identifier stands for."""
        match identifier:
            case ("storage", _Class(dtype), str(key), str(), int(count)) if dtype:
                if key not in self.storages:
                    member = self.members[f"{self.folder}data/{key}"]
                    with self.archive.open(member) as stream:
                        self.storages[key] = _Storage(read_bytes(stream, member.file_size))
                found = self.storages[key]
                if count * np.dtype(_DTYPES[dtype]).itemsize <= found.content.size:
                    return _TypedStorage(found, dtype)
        raise ValueError("its pickle refers to something that is not a storage of the file")

    def tensor(
        self, typed: Any, offset: Any, shape: Any, stride: Any, requires_grad: Any = False,
        hooks: Any = None, metadata: Any = None,
    ) -> Leaf:  # fmt: skip
        """The tensor of `torch._utils._rebuild_tensor_v2`."""
        if metadata:
            raise ValueError("a negated or conjugate view of a tensor is refused")
        storage = _checked(typed).storage
        content = storage.content
        dtype = np.dtype(self.order + _DTYPES[typed.dtype])
        is_bfloat16 = typed.dtype == "bfloat16"
        if not _is_within(content.size // dtype.itemsize, offset, shape, stride):
            raise ValueError(f"a tensor is not within its storage of {content.size} bytes")
        size = math.prod(shape) * dtype.itemsize
        self.left -= size * (1 + is_bfloat16)
        if self.left < 0:
            raise ValueError("its tensors take more than 256 MiB and 100 times its size")
        # As the stride of an axis of length one is never used, it may be beyond an integer.
        steps = [
            dtype.itemsize * step if n > 1 else 0 for n, step in zip(shape, stride, strict=True)
        ]
        array = np.ndarray(shape, dtype, content, offset * dtype.itemsize if size else 0, steps)
        if is_bfloat16:
            array = to_float32(array)
        elif storage.is_taken or size < content.size or not array.flags.c_contiguous:
            array = array.copy("C")
        else:
            storage.is_taken = True
        return Leaf(self.leaf(array))

    def tensor_of_dtype(
        self, typed: Any, offset: Any, shape: Any, stride: Any, requires_grad: Any, hooks: Any,
        dtype: Any, metadata: Any = None,
    ) -> Leaf:  # fmt: skip
        """The tensor of `torch._utils._rebuild_tensor_v3`."""
        if not isinstance(dtype, _DType):
            raise ValueError("a tensor without a dtype is refused")
        typed = _TypedStorage(_checked(typed).storage, dtype.name)
        return self.tensor(typed, offset, shape, stride, metadata=metadata)


def _checked(typed: Any) -> _TypedStorage:
    if not isinstance(typed, _TypedStorage):
        raise ValueError("a tensor without a storage is refused")
    return typed


def _first(data: Any, *_: Any) -> Any:
    """A tensor for a parameter, a tuple for a size, a dict for a counter."""
    return data


def _of_type(function: Any, _: Any, arguments: Any, __: Any) -> Any:
    """The tensor of a subclass or with attributes, without these."""
    _checked(arguments[0])  # not a function, so that this does not call itself
    return call(function, arguments)


def _is_within(count: int, offset: Any, shape: Any, stride: Any) -> bool:
    """Whether a view lies in a storage of so many elements."""
    if (
        not type(shape) is type(stride) is tuple
        or not len(shape) == len(stride) <= _MOST_DIMENSIONS
    ):
        return False
    if any(type(n) is not int or n < 0 for n in (offset, *shape, *stride)):
        return False
    last: int = offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
    return 0 in shape or last < count
