"""Every error of the library: its type, its message, and that nothing was changed by the call."""

import ast
import gzip
import hashlib
import io
import itertools
import os
import re
import struct
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from specs import SPECS
from state.torch_archive import archive as torch_archive
from state.torch_archive import storage
from state.torch_archive import tensor as torch_tensor
from trust.test_state_files import crafted, entry, npy, packed

import fastlayers as fl
from fastlayers import Tensor, autograd, data, nn, ops, optim, random, training
from fastlayers.autograd import record
from fastlayers.nn import functional as F
from fastlayers.nn import init
from fastlayers.ops.check import describe
from fastlayers.ops.norm.parts import Part
from fastlayers.state import safetensors
from fastlayers.state.snapshot import pack, unpack
from fastlayers.vision import datasets, models, transforms

PACKAGE = Path(fl.__file__).parent
# What users call; `runtime`, the commands and the functions of tensors have tests of their own.
CHECKED = ["ops", "autograd", "lazy.py", "nn", "optim", "data", "state"]
CHECKED += ["training.py", "random.py", "vision"]


class Plain(optim.Optimizer):
    """An optimiser without momentum, nor a step."""


class Late(nn.Module):
    def __init__(self) -> None:
        self.weight = nn.Parameter([1.0])


class Broken:
    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> Any:
        raise LookupError(f"Broken: sample {index}, got none")


class Exits(Broken):
    def __getitem__(self, index: int) -> Any:
        raise SystemExit(f"Exits: sample {index}, got none")


def pickled(order: bytes, labels: bytes) -> bytes:
    """An image of CIFAR with some labels, as Python 2 pickled it."""
    return (
        b"\x80\x02}(U\x06labels](" + labels + b"eU\x04datacnumpy.core.multiarray\n_reconstruct\n"
        b"cnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01K\x01M\x00\x0c\x86cnumpy\ndtype\nU\x02u1K\x00K\x01"
        b"\x87R(K\x03U\x01|NNNNNK\x00tb" + order + b"T\x00\x0c\x00\x00" + bytes(3072) + b"tbu."
    )  # fmt: skip


class Odd:
    """A schedule with a state that no file can keep."""

    load_state_dict = step = None

    def state_dict(self) -> Any:
        return {"seen": {1}}


class World:
    """What is handed to the bad calls, none of which may change it."""

    def __init__(self, folder: Path) -> None:
        fl.manual_seed(0)
        rng = np.random.default_rng(0)
        self.folder = folder
        self.x = rng.standard_normal((2, 4, 6, 6), np.float32)
        self.y = rng.standard_normal((2, 4, 3, 3), np.float32)
        self.w = rng.standard_normal((4, 4, 3, 3), np.float32)
        self.m = rng.standard_normal((3, 4), np.float32)
        self.c = np.ones(4, np.float32)
        self.offsets = np.zeros((2, 4, 3, 3), np.uint8)
        self.labels = np.array([0, 1, 3])
        self.fixed = np.ones(4, np.float32)
        self.fixed.flags.writeable = False
        self.t = Tensor(self.m, requires_grad=True)
        self.spent = (self.t * 2).sum()
        self.spent.backward()
        factor = self.t * 2
        self.saved_and_changed = factor * factor
        factor.add_(1)
        self.net = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Dropout())
        self.norm = nn.BatchNorm2d(4)
        self.linear = nn.Linear(4, 3)
        self.adam = optim.Adam(self.norm.parameters(), 0.1)
        self.sgd = optim.SGD(self.net.parameters(), 0.1, momentum=0.9)
        for p in (*self.net.parameters(), *self.norm.parameters()):
            p.grad = np.ones_like(p.array())
        self.sgd.step()
        self.adam.step()
        self.step_lr = optim.StepLR(self.sgd, 2)
        self.outgrown = optim.CosineAnnealingLR(optim.SGD([nn.Parameter([1.0])], 0.1), 2)
        self.outgrown.last_epoch = 2
        self.outgrown.optimizer.add_param_group({"params": [nn.Parameter([1.0])]})
        self.one_cycle = optim.OneCycleLR(optim.SGD([nn.Parameter([1.0])], 0.1), 0.1, 1)
        self.one_cycle.step()
        self.still = nn.Linear(4, 3)
        self.still.bias.data = np.broadcast_to(np.float32(0), 3)
        self.readonly, self.listed, self.misshapen = (self.odd(i) for i in range(3))
        self.loader = data.DataLoader(data.TensorDataset(self.m, self.labels), shuffle=True)

        self.kept = folder / "kept.npz"
        self.fit([(self.m, self.labels % 3)], resume=self.kept)
        self.linear.zero_grad()

    @staticmethod
    def odd(kind: int) -> optim.Optimizer:
        """An optimiser of a read-only parameter, a list as its state, or a short gradient."""
        p = nn.Parameter([1.0, 2.0])
        optimizer = optim.SGD([nn.Parameter([3.0]), p], 0.1, momentum=0.9)
        p.grad = Tensor([1.0, 1.0])
        if kind == 0:
            p.data = np.broadcast_to(np.float32(1), 2)
        elif kind == 1:
            optimizer.state[p]["momentum_buffer"] = [1.0, 2.0]
        else:
            p.data = np.ones(3, np.float32)
        return optimizer

    @staticmethod
    def hooked(hook: Any) -> nn.Module:
        """A layer with a hook before it."""
        layer = nn.ReLU()
        layer.register_forward_pre_hook(hook, with_kwargs=True)
        return layer

    @staticmethod
    def backward_with(hook: Any) -> None:
        """A backward pass through a hook."""
        p = nn.Parameter([1.0, 2.0])
        p.register_hook(hook)
        p.sum().backward()

    @staticmethod
    def endless() -> Tensor:
        """A parameter with an infinite gradient."""
        p = nn.Parameter([1.0])
        p.grad = Tensor([np.inf])
        return p

    def path(self, name: str, content: bytes) -> Path:
        """A file."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return path

    def mnist(self, images: np.ndarray, labels: np.ndarray) -> datasets.MNIST:
        for name, array in (("images-idx3", images), ("labels-idx1", labels)):
            self.path(f"mnist/t10k-{name}-ubyte", idx(array))
        return datasets.MNIST(self.folder / "mnist", train=False)

    def cifar(self, content: bytes) -> datasets.CIFAR10:
        self.path("cifar/cifar-10-batches-bin/test_batch.bin", content)
        return datasets.CIFAR10(self.folder / "cifar", train=False)

    def cifar_archive(self) -> datasets.CIFAR10:
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w:gz"):
            pass
        path, md5 = self.path("archive", file.getvalue()), hashlib.md5(file.getvalue()).hexdigest()
        kind: Any = type("CIFAR10", (datasets.CIFAR10,), {"_url": path.as_uri(), "_md5": md5})
        return kind(self.folder / "unpacked", download=True)

    def norm_op(self, x: np.ndarray | None = None, **options: Any) -> Tensor:
        """Batch normalisation with the layer's running statistics."""
        norm = self.norm
        return F.batch_norm(
            self.x if x is None else x, norm.running_mean, norm.running_var, **options
        )

    def norm_of_part(self, x: np.ndarray) -> Any:
        """Batch normalisation of a batch in one part."""
        part = Part("batch_norm", x, None, None, None, None, 0.1, 1e-5)
        return part.squares(part.sums())

    def norm_pool_backward(self, output: np.ndarray, offsets: Any) -> Any:
        rest = (self.x, None, self.c, self.c, True, (True, True, True), 2)
        return ops.batch_norm_max_pool2d_backward(output, output, offsets, *rest)

    def fit(self, batches: list[Any], **options: Any) -> training.History:
        optimizer = optim.SGD(self.linear.parameters())
        return training.fit(
            self.linear, F.cross_entropy, optimizer, batches, progress=False, **options
        )

    def altered(self, **changes: Any) -> Path:
        """The file of a training with other entries, or with less of them."""
        tree = unpack(fl.load(self.kept)) | changes
        tree = {key: value for key, value in tree.items() if changes.get(key, 0) is not None}
        fl.save(pack(tree), self.folder / "altered.npz")
        return self.folder / "altered.npz"

    def load_shrinking(self) -> Any:
        """A file that another process truncates while it is read."""
        path = self.path(
            "shrinking", crafted({"x": entry(0, 99_999, "U8", (99_999,))}, bytes(99_999))
        )
        entries = safetensors._entries

        def truncating(text: str) -> Any:
            os.truncate(path, 50_000)
            return entries(text)

        with mock.patch.object(safetensors, "_entries", truncating):
            return fl.load(path)

    def buffer(self) -> dict[str, np.ndarray]:
        """The state of the first parameter of the SGD."""
        return self.sgd.state_dict()["state"][0]

    def cifar_batch(self, name: str, content: bytes) -> datasets.CIFAR10:
        """The test set of the version for Python, with a file of this content."""
        folder = self.folder / "batches" / name
        self.path(f"batches/{name}/cifar-10-batches-py/test_batch", content)
        return datasets.CIFAR10(folder, train=False)

    def cifar_meta(self, content: bytes) -> datasets.CIFAR100:
        for name in ("meta", "test"):
            self.path(f"hundred/cifar-100-python/{name}", content)
        return datasets.CIFAR100(self.folder / "hundred", train=False)

    def fetch(self) -> Path:
        url = self.path("source", b"content").as_uri()
        return data.fetch("file", url, "0" * 32, self.folder / "fetched")


def idx(array: np.ndarray) -> bytes:
    shape = struct.pack(f">{array.ndim}I", *array.shape)
    return bytes([0, 0, 8, array.ndim]) + shape + array.astype(np.uint8).tobytes()


def structured(text: bytes, *arrays: np.ndarray, compression: int = 0) -> bytes:
    """A file of a nested state."""
    members = [("__structure__.npy", npy(np.frombuffer(text, np.uint8)))]
    members += [(f"{i}.npy", npy(array)) for i, array in enumerate(arrays)]
    return packed(members, compression)


def nest(depth: int) -> list[Any]:
    """A list in a list in a list."""
    return [nest(depth - 1)] if depth else []


def frozen(value: Any) -> Any:
    """What can be compared with a later state of the same objects."""
    match value:
        case np.ndarray():
            return value.dtype, value.shape, value.tobytes()
        case Tensor():
            return frozen(value.array()), frozen(value.grad), value.requires_grad
        case dict():
            return {key: frozen(item) for key, item in value.items()}
        case list() | tuple():
            return [frozen(item) for item in value]
        case World() | nn.Module() | optim.LRScheduler() | data.DataLoader():
            return frozen(vars(value))
        case optim.Optimizer():
            return frozen(value.state_dict()), frozen(value.param_groups)
    return value


_taken = itertools.count()


def drawn_next() -> Any:
    """What random numbers come next; the stream that this takes itself does not count."""
    key, stream = random.dropout_stream()
    return random.numpy_generator().bit_generator.state, key, int(stream) - next(_taken)


NOWHERE = Path("/nowhere")


def rows() -> list[tuple[str, str, str]]:
    """The calls of errors.txt, each with its error's type and message, where * is anything."""
    blocks = Path(__file__).with_name("errors.txt").read_text().split(">>> ")[1:]
    pattern = re.compile(r"(.+)\n(\w+): (.+)\n")
    return [pattern.match(block).groups() for block in blocks]  # type: ignore[union-attr]


ROWS = rows()


MODULES = (
    autograd,
    data,
    datasets,
    fl,
    gzip,
    init,
    models,
    nn,
    np,
    ops,
    optim,
    random,
    training,
    transforms,
)
NAMES = {module.__name__.rpartition(".")[2]: module for module in MODULES}
NAMES |= {"fl": fl, "np": np, "F": F, "Tensor": Tensor, "record": record, "NOWHERE": NOWHERE}
NAMES |= {
    "Broken": Broken,
    "Exits": Exits,
    "Late": Late,
    "Odd": Odd,
    "Plain": Plain,
    "idx": idx,
    "npy": npy,
    "packed": packed,
    "crafted": crafted,
    "entry": entry,
    "structured": structured,
    "nest": nest,
    "torch_archive": torch_archive,
    "torch_tensor": torch_tensor,
    "floats": storage("Float", "0", 1),
    "pickled": pickled,
}


def failure(call: str, world: World) -> Exception:
    """What a call raises."""
    methods = {name: getattr(world, name) for name in vars(World) if not name.startswith("_")}
    with pytest.raises((Exception, SystemExit)) as raised:
        eval(call, NAMES | methods | vars(world))
    return raised.value


def raise_sites() -> set[tuple[str, int]]:
    """Files and lines of all that raise an error.

    A bare raise passes on another's; a NotImplementedError stands for what subclasses define.
    """
    paths = [path for name in CHECKED for path in sorted((PACKAGE / name).rglob("*.py"))]
    paths += [PACKAGE / name for name in CHECKED if name.endswith(".py")]
    return {
        (str(path), node.lineno)
        for path in paths
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Raise)
        and node.exc is not None
        and getattr(node.exc, "id", "") != "NotImplementedError"
    }


def lines(error: BaseException | None) -> Iterator[tuple[str, int]]:
    """Where an error passed through, and where the errors that it came from did."""
    while error is not None:
        traceback = error.__traceback__
        while traceback is not None:
            yield traceback.tb_frame.f_code.co_filename, traceback.tb_lineno
            traceback = traceback.tb_next
        error = error.__cause__ or error.__context__


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("errors"))


@pytest.mark.parametrize(("call", "kind", "message"), ROWS, ids=[call for call, _, _ in ROWS])
def test_message_and_nothing_changed(call: str, kind: str, message: str, world: World) -> None:
    before = drawn_next(), frozen(world)
    error = failure(call, world)
    assert type(error).__name__ == kind
    assert re.fullmatch(re.escape(message).replace(r"\*", ".*"), str(error), re.DOTALL), str(error)
    assert (drawn_next(), frozen(world)) == before


def test_messages_name_the_op_and_what_was_given() -> None:
    for _, kind, message in ROWS:
        if kind not in ("AttributeError", "FileNotFoundError", "ModuleNotFoundError"):
            assert re.match(r"\*?[A-Za-z][\w.]*: ", message), message
            assert re.search(r"\bgot\b|cannot be read as", message), message


def test_every_raise_is_reached(world: World, figures: Any) -> None:
    sites = raise_sites()
    reached = {line for call, _, _ in ROWS for line in lines(failure(call, world))}
    figures.count("errors", "raise statements", len(sites))
    figures.count("errors", "raise statements reached", len(sites & reached))
    figures.count("errors", "bad calls, with type and message", len(ROWS))
    assert sites - reached == set()


def good_calls(world: World) -> dict[str, dict[str, Any]]:
    """Arguments with which each op works."""
    return {name: given for spec in SPECS.values() for name, given in spec.arguments(world).items()}


# Any value is true or false to Python, or raises an error of its own.
FLAGS = {"ceil_mode", "count_include_pad", "needs_grad", "return_indices", "reuse", "training"}
JUNK = [
    *(None, True, -7, 0, 3, 2.5, -1.0, np.nan, 1j, "junk", b"1", object(), int),
    *([], [1.0], [[1], [2, 3]], (1,), (1, 2, 3), (0, 0), (-1, 2), (2, "2"), {"a": 1}, {1}),
    *(np.ones(()), np.ones((), int), np.ones(5, np.float32), np.ones((1, 2, 3, 4, 5))),
    *(np.ones((2, 4, 3, 3)), np.ones((3, 4), np.int8), np.zeros((3, 4), object)),
    *(np.ones((0, 0, 0, 0), np.float32), np.full(3, 99), np.full((2, 4, 3, 3), 99, np.uint8)),
]


def test_junk_gets_a_named_error_or_a_result(world: World, figures: Any) -> None:
    calls = good_calls(world)
    assert calls.keys() == set(ops.__all__)
    wrong, count, before = [], 0, frozen(world)
    for op, good in calls.items():
        getattr(ops, op)(**good)
        for name, junk in itertools.product(good.keys() - FLAGS, JUNK):
            count, numbers = count + 1, drawn_next()
            try:
                getattr(ops, op)(**good | {name: junk})
            except Exception as error:
                told, _, rest = str(error).partition(": ")
                # Of two arguments that do not fit each other either may be named.
                named = re.search(rf"\b({'|'.join(good)})\b.*\bgot\b", rest)
                own = (
                    isinstance(error, TypeError | ValueError)
                    and told
                    and (op.startswith(told) or op.endswith(told))
                )
                if not (own and named and drawn_next() == numbers):
                    wrong.append(f"{op}: {name} {describe(junk)}: {error!r}")
        assert frozen(world) == before, op
    figures.count("errors", "ops called with one bad argument", count)
    assert not wrong, "\n".join(sorted(wrong))
