"""The ops with the layers of real networks: one table for tests, asv and the comparisons.

A case is a layer of a network without its batch: `arrays` draws its arguments, `forward` and
`backward` bind the ops of `fastlayers` to them. Nothing here imports fastlayers before it is
called, so that a contestant in a comparison can read the table and import only another library.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np

__all__ = [
    "ACTIVATIONS",
    "CASES",
    "IMAGES",
    "NETWORKS",
    "TRAFFIC",
    "Case",
    "Work",
    "images",
    "marked",
    "of",
    "tracked",
]

Arrays = dict[str, np.ndarray]
Shape = tuple[int, ...]
Work = Callable[[], Any]

# Networks whose layers asv tracks; those of others are in the comparisons.
NETWORKS = ("CIFAR CNN", "MLP", "VGG-16", "ResNet-18", "ResNet-20", "MobileNet")
PRODUCTS = ("conv2d", "linear", "conv2d_max_pool2d")
LOSSES = ("cross_entropy", "nll_loss", "mse_loss", "binary_cross_entropy_with_logits")
OPTIMIZERS = ("SGD", "Adam", "AdamW", "Adadelta")
# Input, weight and bias gradients that a pass requests.
NEEDS = {
    "backward": (True, True, True),
    "backward_input": (True, False, False),
    "backward_weight": (False, True, True),
}


class Activation(NamedTuple):
    """An activation's row: its layer's name, as benchmarks have it, and where it is measured."""

    layer: str
    layers: tuple[tuple[str, Shape, int], ...]
    options: Mapping[str, Any] = {}


# Inputs of ops without a weight: images after a convolution, rows after a linear layer, logits.
_CIFAR = "CIFAR CNN", (6, 28, 28), 128
_RESNET20 = "ResNet-20", (16, 32, 32), 128
_RESNET18 = "ResNet-18", (64, 56, 56), 32
_MLP = "MLP", (256,), 128
_LOGITS = ("ResNet-18", (1000,), 128), ("CIFAR CNN", (10,), 128)

ACTIVATIONS = {
    "relu": Activation("ReLU", (_RESNET20, _CIFAR, _RESNET18, _MLP)),
    "leaky_relu": Activation("LeakyReLU", (_RESNET20, _RESNET18)),
    "sigmoid": Activation("Sigmoid", (_RESNET20, _MLP)),
    "silu": Activation("SiLU", (_RESNET20, _MLP)),
    "tanh": Activation("Tanh", (_RESNET20, _MLP)),
    "gelu": Activation("GELU", (_RESNET20, _MLP)),
    "hardswish": Activation("Hardswish", (_RESNET20, _MLP)),
    "softmax": Activation("Softmax", _LOGITS, {"dim": 1}),
    "log_softmax": Activation("LogSoftmax", _LOGITS, {"dim": 1}),
}
# Bytes to move per element of the input and of the output, forward and backward, in float32.
# Batch statistics take another pass over the input, the gradient's sums one over input and dy. The
# gradient of a maximum reads dy and one byte, that of ReLU dy and y.
TRAFFIC: dict[str, tuple[tuple[int, int], tuple[int, int]]] = {
    "batch_norm": ((8, 4), (16, 4)),
    "batch_norm_max_pool2d": ((4, 5), (12, 18)),
    "max_pool2d": ((4, 5), (4, 5)),
    "avg_pool2d": ((4, 4), (4, 4)),
    "adaptive_avg_pool2d": ((4, 4), (4, 4)),
    **dict.fromkeys(ACTIVATIONS, ((4, 4), (8, 4))),
    **dict.fromkeys(("dropout", "feature_dropout", "flatten"), ((4, 4), (4, 4))),
    "add": ((8, 4), (0, 0)),
    "cross_entropy": ((4, 0), (8, 0)),
    "nll_loss": ((0, 0), (4, 0)),
    **dict.fromkeys(("mse_loss", "binary_cross_entropy_with_logits"), ((8, 0), (12, 0))),
}
# For an element of the parameters: with momentum; means of the gradient and of its square, or of
# the squares of gradient and step.
UPDATE_TRAFFIC = {"SGD": 20, "Adam": 28, "AdamW": 28, "Adadelta": 28}


@dataclass(frozen=True)
class Case:
    """An op with the shape of a layer of a network.

    Attributes
    ----------
    network, op : str
        Where the layer is from, and a name of `fastlayers.ops`, or an optimiser's.
    input : tuple of int
        Shape of one sample.
    batches : tuple of int
        Numbers of samples to measure.
    weight : tuple of int
        Shape of the weight of a convolution or linear map.
    options : mapping
        The op's other arguments by name.
    group : str
        The set of `benchmarks.compare.ops` that it belongs to, if any.
    marked : bool
        Whether it is in the quick subset, with the last of its batches.
    """

    network: str
    op: str
    input: Shape
    batches: tuple[int, ...]
    weight: Shape = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    group: str = ""
    marked: bool = False

    @property
    def passes(self) -> tuple[str, ...]:
        """The passes that are measured separately."""
        if self.op in OPTIMIZERS:
            return ("step",)
        if self.op in ("conv2d", "linear"):
            return "forward", "backward_input", "backward_weight"
        no_gradient = self.op == "add" or self.options.get("training") is False
        return ("forward",) if no_gradient else ("forward", "backward")

    def name(self, batch: int) -> str:
        """Shapes, options and network: the parameter's value in asv's records."""
        if self.op in OPTIMIZERS:
            return self.network
        text = "x".join(map(str, (batch, *self.input)))
        if self.weight:
            text += f"-{self.weight[0]}"
        if len(self.weight) == 4:
            text += f" {self.weight[2]}x{self.weight[3]}"
        usual = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1, "dim": 1, "training": True}
        for key, value in self.options.items():
            if value != usual.get(key):
                text += f" {key} {value[0] if key == 'pool' else value}"
        return f"{self.network} {text}"

    def output(self, batch: int) -> Shape:
        """Shape of the result."""
        o = self.options
        match self.op:
            case "conv2d" | "conv2d_max_pool2d":
                size = _windows(self.input[1:], self.weight[2:], **_window(o))
                if self.op == "conv2d_max_pool2d":
                    size = _windows(size, (o["pool"][0],) * 2, o["pool"][0])
                return (batch, self.weight[0], *size)
            case "linear":
                return batch, self.weight[0]
            case "max_pool2d" | "avg_pool2d" | "batch_norm_max_pool2d":
                kernel = o["kernel_size"]
                window = {"stride": kernel} | _window(o)
                return (batch, self.input[0], *_windows(self.input[1:], (kernel,) * 2, **window))
            case "adaptive_avg_pool2d":
                return (batch, self.input[0], o["output_size"], o["output_size"])
            case "flatten":
                return batch, math.prod(self.input)
            case loss if loss in LOSSES:
                return ()
        return (batch, *self.input)

    def flops(self, batch: int, which: str) -> int:
        """Multiplications and additions of the products, in direct arithmetic, of a pass.

        0 for an op without products, whose measure is `bytes`.
        """
        if self.op not in PRODUCTS:
            return 0
        unpooled = replace(self, op="conv2d") if self.op == "conv2d_max_pool2d" else self
        once = 2 * math.prod(unpooled.output(batch)) * math.prod(self.weight[1:])
        return 2 * once if which == "backward" else once

    def bytes(self, batch: int, which: str) -> int:
        """Bytes that a pass must read and write, each array once, if nothing stays in a cache."""
        if self.op in OPTIMIZERS:
            return UPDATE_TRAFFIC[self.op] * sum(map(math.prod, self._parameters().values()))
        x, y = batch * math.prod(self.input), math.prod(self.output(batch))
        if self.op in PRODUCTS:  # each pass of a product has two operands and a result
            return 4 * (x + y + math.prod(self.weight)) * (2 if which == "backward" else 1)
        of_input, of_output = TRAFFIC[self.op][which != "forward"]
        if which == "forward" and self.options.get("training") is False:
            of_input = 4
        return of_input * x + of_output * y

    def small(self) -> Case:
        """The same layer with few pixels or features, for tests and for the first warm-up."""
        c, *size = self.input or (0,)
        if self.op == "linear":
            return replace(self, input=(min(c, 512),), weight=(self.weight[0], min(c, 512)))
        least = self.weight[2] if len(self.weight) == 4 else 1
        return replace(self, input=(c, *(min(s, max(12, least)) for s in size)) if c else ())

    def arrays(self, batch: int) -> Arrays:
        """Normal numbers, by the names of the op's arguments; images have channels-last memory.

        Images of three channels are the user's, whose memory is channels-first.
        """
        draw = np.random.default_rng(0).standard_normal
        if self.op in OPTIMIZERS:
            shapes = self._parameters()
            return {
                key: draw(shape, np.float32)
                for name, shape in shapes.items()
                for key in (name, f"{name}.grad")
            }
        shape = (batch, *self.input)
        x = draw(shape, np.float32) if self.input[0] == 3 or len(shape) == 2 else images(shape)
        found, channels = {"input": x}, (self.input[0],)
        if self.weight:
            found["weight"] = draw(self.weight, np.float32)
            if self.op != "conv2d":
                found["bias"] = draw(self.weight[:1], np.float32)
        match self.op:
            case "batch_norm":
                zeros, ones = np.zeros(channels, np.float32), np.ones(channels, np.float32)
                found |= {"running_mean": zeros, "running_var": ones}
                found |= {"weight": ones.copy(), "bias": zeros.copy()}
            case "batch_norm_max_pool2d":
                axes = (0, 2, 3)
                found |= {"mean": x.mean(axes), "invstd": 1 / x.std(axes)}
                found |= {n: draw(channels, np.float32) for n in ("weight", "bias")}
            case "add":
                found["other"] = images(shape, 1)
            case "cross_entropy" | "nll_loss":
                found["target"] = np.arange(batch) % self.input[0]
            case "mse_loss" | "binary_cross_entropy_with_logits":
                found["target"] = (draw(shape, np.float32) > 0).astype(np.float32)
        return found

    def forward(self, arrays: Arrays) -> Work:
        """The forward pass as training runs it, with what its gradient needs; or the update."""
        from fastlayers import ops
        from fastlayers.ops import arithmetic

        if self.op in OPTIMIZERS:
            return self._update(arrays)
        if self.op == "add":
            return partial(arithmetic.add, arrays["input"], arrays["other"])
        saves = self.op in ("max_pool2d", "dropout", "feature_dropout")
        saves = saves or (self.op == "batch_norm" and self.options["training"])
        function = getattr(ops, f"{self.op}_forward" if saves else self.op)
        return partial(function, **arrays, **self.options)

    def backward(
        self, arrays: Arrays, which: str = "backward", dy: np.ndarray | None = None
    ) -> Work:
        """The backward pass, or one of its `passes`, after one forward.

        `dy` is the output gradient; by default a copy of the output.
        """
        from fastlayers import ops

        results, x, o = self.forward(arrays)(), arrays["input"], self.options
        y, *saved = results if isinstance(results, tuple) else (results,)
        dy, needs = _own(y) if dy is None else dy, NEEDS[which]
        function = partial(getattr(ops, f"{self.op}_backward"), dy)
        match self.op:
            case "conv2d" | "linear":
                return partial(function, x, arrays["weight"], needs=needs, **o)
            case "conv2d_max_pool2d":
                return partial(function, y, *saved, x, arrays["weight"], needs=needs, **o)
            case "batch_norm":
                return partial(function, x, arrays["weight"], *saved, True)
            case "batch_norm_max_pool2d":
                statistics = (arrays[name] for name in ("weight", "mean", "invstd"))
                return partial(function, y, *saved, x, *statistics, True, needs, **o)
            case "max_pool2d":
                return partial(function, *saved, x.shape, **o)
            case "avg_pool2d":
                return partial(function, x.shape, **o)
            case "adaptive_avg_pool2d" | "flatten":
                return partial(function, x.shape)
            case "dropout" | "feature_dropout":
                last = o["p"] if self.op == "dropout" else o["channel_axis"]
                return partial(function, *saved, last)
        if "output" in inspect.signature(function).parameters:
            return partial(function, y, **o)
        return partial(function, **arrays, **o)

    def work(self, batch: int, which: str) -> Work:
        """One of the `passes` on its own arrays, as neighbouring layers would give them."""
        arrays = self.arrays(batch)
        if self.input and self.input[0] != 3:
            arrays["input"] = _own(arrays["input"])
        if which in NEEDS:
            return self.backward(arrays, which)
        return self.forward(arrays)

    def _parameters(self) -> dict[str, Shape]:
        import fastlayers as fl

        model = getattr(fl.models, self.options["model"])()
        return {name: p.shape for name, p in model.named_parameters()}

    def _update(self, arrays: Arrays) -> Work:
        import fastlayers as fl

        names = [name for name in arrays if not name.endswith(".grad")]
        parameters = [fl.tensor(arrays[name], requires_grad=True) for name in names]
        for parameter, name in zip(parameters, names, strict=True):
            parameter.grad = arrays[f"{name}.grad"]
        momentum = {"momentum": 0.9} if self.op == "SGD" else {}
        step: Work = getattr(fl.optim, self.op)(parameters, lr=1e-4, **momentum).step
        return step


def images(shape: Shape, seed: int = 0) -> np.ndarray:
    """Normal numbers in float32, with channels-last memory as ops return it."""
    n, c, *spatial = shape
    values = np.random.default_rng(seed).standard_normal((n, *spatial, c), np.float32)
    return np.moveaxis(values, -1, 1)


def _own(values: np.ndarray) -> np.ndarray:
    """A copy in the library's own memory, which is aligned; images are channels-last."""
    from fastlayers.runtime import memory

    last = np.moveaxis(values, 1, -1) if values.ndim > 2 else values
    out = memory.empty(last.shape, last.dtype)
    out[...] = last
    return np.moveaxis(out, -1, 1) if values.ndim > 2 else out


def _window(options: Mapping[str, Any]) -> dict[str, int]:
    return {k: v for k, v in options.items() if k in ("stride", "padding", "dilation")}


def _windows(
    size: Shape, kernel: Shape, stride: int = 1, padding: int = 0, dilation: int = 1
) -> Shape:
    """Number of windows along each axis."""
    return tuple(
        (s + 2 * padding - dilation * (k - 1) - 1) // stride + 1
        for s, k in zip(size, kernel, strict=True)
    )


def _conv(
    network: str,
    input: tuple[int, int, int],
    channels: int,
    kernel: int,
    *batches: int,
    group: str = "conv",
    marked: bool = False,
    **options: int,
) -> Case:
    """A convolution; by default the padding keeps the size at stride 1."""
    options = {"padding": options.get("dilation", 1) * (kernel // 2)} | options
    weight = (channels, input[0] // options.get("groups", 1), kernel, kernel)
    return Case(network, "conv2d", input, batches, weight, options, group, marked)


def _conv3x3(
    network: str, input: tuple[int, int, int], channels: int, *batches: int, marked: bool = False
) -> Case:
    return _conv(network, input, channels, 3, *batches, group="conv3x3", marked=marked)


def _linear(
    network: str, inputs: int, outputs: int, *batches: int, group: str = "", marked: bool = False
) -> Case:
    weight = (outputs, inputs)
    return Case(network, "linear", (inputs,), batches, weight, group=group, marked=marked)


def _same(op: str, *layers: tuple[str, Shape, int], **options: Any) -> list[Case]:
    """An op with the layers of networks; the first is marked."""
    return [
        Case(network, op, shape, (batch,), options=options, marked=place == 0)
        for place, (network, shape, batch) in enumerate(layers)
    ]


_POOL = (2, None, 0, 1, False)

CASES: tuple[Case, ...] = (
    _conv3x3("VGG-small", (32, 16, 16), 32, 64),
    _conv3x3("VGG-small", (64, 8, 8), 64, 64),
    _conv3x3("VGG-small", (64, 32, 32), 64, 32),
    _conv3x3("ResNet-20", (16, 32, 32), 16, 64, marked=True),
    _conv3x3("VGG-small", (128, 8, 8), 128, 128),
    _conv3x3("ResNet-18", (64, 56, 56), 64, 16),
    _conv3x3("ResNet-18", (128, 28, 28), 128, 16),
    _conv3x3("ResNet-18", (256, 14, 14), 256, 16),
    _conv3x3("ResNet-18", (512, 7, 7), 512, 16),
    _conv3x3("VGG-16", (128, 56, 56), 256, 4),
    _conv3x3("VGG-16", (256, 56, 56), 256, 4),
    _conv3x3("VGG-16", (256, 28, 28), 512, 4),
    _conv3x3("VGG-16", (512, 28, 28), 512, 4),
    _conv3x3("VGG-16", (512, 14, 14), 512, 4),
    _conv("ResNet-50", (64, 28, 28), 256, 1, 32),  # bottlenecks
    _conv("ResNet-50", (256, 28, 28), 64, 1, 32),
    _conv("ResNet-50", (512, 14, 14), 128, 1, 16),
    _conv("ResNet-18", (128, 28, 28), 256, 1, 16, stride=2),  # a shortcut
    _conv("ResNet-18", (64, 56, 56), 128, 3, 16, stride=2),  # first layers of stages
    _conv("ResNet-18", (128, 28, 28), 256, 3, 16, stride=2),
    _conv("ResNet-20", (16, 32, 32), 32, 3, 64, stride=2, marked=True),
    _conv("ResNet-18", (3, 224, 224), 64, 7, 4, stride=2),  # first layers of networks
    _conv("VGG-16", (3, 224, 224), 64, 3, 2),
    _conv("VGG-small", (3, 32, 32), 32, 3, 64),
    _conv("CIFAR CNN", (3, 32, 32), 6, 5, 4, 128, padding=0),
    _conv("CIFAR CNN", (6, 14, 14), 16, 5, 4, 128, padding=0, marked=True),
    _conv("ResNeXt", (128, 28, 28), 128, 3, 16, groups=32),  # groups of 4 and of 8 channels
    _conv("ResNeXt", (256, 14, 14), 256, 3, 16, groups=32),
    _conv("MobileNet", (64, 56, 56), 64, 3, 16, groups=64),  # depthwise
    _conv("MobileNet", (128, 28, 28), 128, 3, 16, groups=128, marked=True),
    _conv("MobileNet", (64, 56, 56), 64, 3, 16, stride=2, groups=64),
    _conv("dilated", (64, 28, 28), 64, 3, 16, dilation=2),
    _conv("MobileNet", (64, 56, 56), 128, 1, 4, group="", marked=True),  # pointwise
    _conv("MobileNet", (256, 14, 14), 512, 1, 16, group=""),
    _linear("CIFAR CNN", 400, 120, 4, 32, 128, group="linear", marked=True),
    _linear("VGG-small", 2048, 256, 4, 32, 128, group="linear"),
    _linear("VGG-16", 4096, 4096, 4, 32, 128, group="linear"),
    _linear("VGG-16 head", 25088, 4096, 4, 32, 128, group="linear"),
    _linear("CIFAR CNN", 84, 10, 4, 128),
    _linear("MLP", 784, 256, 64),
    _linear("ResNet-18", 512, 1000, 16),
    Case(
        "CIFAR CNN",
        "conv2d_max_pool2d",
        (3, 32, 32),
        (4, 128),
        (6, 3, 5, 5),
        {"pool": _POOL, "activation": "relu"},
    ),
    Case(
        "CIFAR CNN",
        "conv2d_max_pool2d",
        (6, 14, 14),
        (4, 128),
        (16, 6, 5, 5),
        {"pool": _POOL, "activation": "relu"},
        marked=True,
    ),
    *_same("batch_norm", _CIFAR, _RESNET20, _RESNET18, _MLP, training=True),
    *_same("batch_norm", _RESNET20, _RESNET18, training=False),
    *_same("batch_norm_max_pool2d", _CIFAR, ("CIFAR CNN", (16, 10, 10), 128), kernel_size=2),
    *_same("max_pool2d", _CIFAR, ("VGG-16", (64, 112, 112), 4), kernel_size=2),
    *_same("max_pool2d", ("ResNet-18", (64, 112, 112), 4), kernel_size=3, stride=2, padding=1),
    *_same("avg_pool2d", _RESNET20, ("MobileNet", (256, 14, 14), 16), kernel_size=2),
    *_same(
        "adaptive_avg_pool2d",
        ("ResNet-20", (64, 8, 8), 128),
        ("ResNet-18", (512, 7, 7), 32),
        output_size=1,
    ),
    *(case for op, row in ACTIVATIONS.items() for case in _same(op, *row.layers, **row.options)),
    *_same("gelu", _RESNET20, approximate="tanh"),
    *_same("dropout", _RESNET20, ("MLP", (256,), 128), ("VGG-16", (4096,), 32), p=0.5),
    *_same(
        "feature_dropout", _RESNET20, _CIFAR, ("CIFAR CNN", (16, 25), 128), p=0.5, channel_axis=1
    ),
    *_same("flatten", ("CIFAR CNN", (16, 5, 5), 128), ("VGG-16", (512, 7, 7), 4), start_dim=1),
    *(case for op in LOSSES for case in _same(op, *_LOGITS)),
    *_same("add", _RESNET20, _RESNET18),
    *(case for op in OPTIMIZERS for case in _same(op, ("ResNet-20", (), 1), model="resnet20")),
    *(case for op in OPTIMIZERS for case in _same(op, ("MLP", (), 1), model="MLP")),
)

# What `benchmarks.compare.memory_bound` gives to each op.
IMAGES = tuple(
    (batch, *shape)
    for _, shape, batch in (_CIFAR, _RESNET20, _RESNET18, ("VGG-small", (128, 16, 16), 64))
)


def of(op: str) -> list[Case]:
    """All cases of an op."""
    return [case for case in CASES if case.op == op]


def tracked(op: str, which: str) -> dict[str, tuple[Case, int]]:
    """The cases and batches of a pass that asv tracks, by the name of its parameter."""
    return {
        case.name(batch): (case, batch)
        for case in of(op)
        for batch in case.batches
        if case.network in NETWORKS and which in case.passes
    }


def marked(op: str, which: str) -> list[str]:
    """The names of the quick subset of `tracked`."""
    found = tracked(op, which).items()
    return [name for name, (case, batch) in found if case.marked and batch == case.batches[-1]]
