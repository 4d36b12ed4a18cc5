"""The networks of `fastlayers.vision.models` as functions of their parameters, for JAX.

Images are (N, H, W, C), weights of convolutions (R, S, C, M) and of linear maps (in, out), as usual
in JAX; names and declared shapes are those of a state dict of `fastlayers`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

with contextlib.suppress(ModuleNotFoundError):  # asv imports all of this folder, even without JAX
    import jax
    import jax.numpy as jnp
    from jax import lax

from benchmarks.compare.cases import initial_value

__all__ = ["MODELS", "Network", "initial_values", "loss_function"]


class Network:
    """The layers of one forward pass, with their parameters and buffers looked up by name.

    Parameters
    ----------
    values : dict, optional
        Parameters and buffers; without them the pass only declares what it would look up.
    key : array, optional
        For the dropout masks; without it nothing is dropped.
    """

    def __init__(self, values: dict[str, Any] | None = None, key: Any = None) -> None:
        self.values, self.key = values, key
        self.declared: dict[str, tuple[tuple[int, ...], Callable[[Any], Any]]] = {}
        self.buffers: dict[str, Any] = {}

    def get(self, name: str, shape: tuple[int, ...], convert: Any = lambda value: value) -> Any:
        """The value of a name; `convert` takes it from the library's layout to JAX's."""
        if self.values is not None:
            return self.values[name]
        self.declared[name] = shape, convert
        return convert(jnp.zeros(shape))

    def conv(
        self,
        name: str,
        x: Any,
        channels: int,
        kernel: int = 3,
        stride: int = 1,
        padding: int = 1,
        bias: bool = False,
    ) -> Any:
        shape = channels, x.shape[-1], kernel, kernel
        weight = self.get(f"{name}.weight", shape, lambda w: w.transpose(2, 3, 1, 0))
        pads = [(padding, padding)] * 2
        layout = ("NHWC", "HWIO", "NHWC")
        y = lax.conv_general_dilated(x, weight, (stride, stride), pads, dimension_numbers=layout)
        return y + self.get(f"{name}.bias", (channels,)) if bias else y

    def norm(self, name: str, x: Any) -> Any:
        """Batch norm over all axes but the last, with the mean of squares in the same pass."""
        shape, axes = x.shape[-1:], tuple(range(x.ndim - 1))
        weight, bias = (self.get(f"{name}.{kind}", shape) for kind in ("weight", "bias"))
        mean = x.mean(axes)
        variance = (x * x).mean(axes) - mean * mean
        count = x.size // x.shape[-1]
        unbiased = variance * count / (count - 1)
        for kind, new in (("running_mean", mean), ("running_var", unbiased)):
            old = self.get(f"{name}.{kind}", shape)
            self.buffers[f"{name}.{kind}"] = lax.stop_gradient(0.9 * old + 0.1 * new)
        return (x - mean) * (weight * lax.rsqrt(variance + 1e-5)) + bias

    def pool(self, x: Any, kernel: int = 2, stride: int = 2, padding: int = 0) -> Any:
        pads = [(0, 0), (padding, padding), (padding, padding), (0, 0)]
        window, strides = (1, kernel, kernel, 1), (1, stride, stride, 1)
        return lax.reduce_window(x, -jnp.inf, lax.max, window, strides, pads)

    def drop(self, x: Any, p: float, channels: bool = False) -> Any:
        if self.key is None or not p:
            return x
        self.key, key = jax.random.split(self.key)
        shape = (len(x), 1, 1, x.shape[-1]) if channels else x.shape
        return jnp.where(jax.random.bernoulli(key, 1 - p, shape), x / (1 - p), 0)

    def linear(self, name: str, x: Any, features: int, bias: bool = True) -> Any:
        """A linear map; images (N, H, W, C) are flattened in their memory's order."""

        def convert(weight: Any, shape: tuple[int, ...] = x.shape[1:]) -> Any:
            if len(shape) == 3:
                height, width, channels = shape
                weight = weight.reshape(features, channels, height, width).transpose(0, 2, 3, 1)
            return weight.reshape(features, -1).T

        x = x.reshape(len(x), -1)
        y = x @ self.get(f"{name}.weight", (features, x.shape[1]), convert)
        return y + self.get(f"{name}.bias", (features,)) if bias else y


def _cifar_cnn(net: Network, x: Any, classes: int, batch_norm: bool = False) -> Any:
    for i, channels in enumerate((6, 16), 1):
        x = net.conv(f"conv{i}", x, channels, 5, padding=0, bias=True)
        x = net.norm(f"bn{i}", x) if batch_norm else x
        x = net.pool(jax.nn.relu(x))
    x = jax.nn.relu(net.linear("fc1", x, 120))
    x = jax.nn.relu(net.linear("fc2", x, 84))
    return net.linear("fc3", x, classes)


def _mlp(net: Network, x: Any, classes: int) -> Any:
    for i, features in ((1, 128), (5, 64)):
        x = net.norm(str(i + 1), net.linear(str(i), x, features, bias=False))
        x = net.drop(jax.nn.relu(x), 0.2)
    return net.linear("9", x, classes)


def _vgg(
    net: Network,
    x: Any,
    classes: int,
    stages: tuple[tuple[int, int], ...],
    hidden: tuple[int, ...],
    batch_norm: bool = False,
    dropout2d: float = 0.0,
) -> Any:
    """Stages of (convolutions, channels), then hidden linear layers; names count the layers."""
    layer = 0
    for convolutions, channels in stages:
        for _ in range(convolutions):
            x = net.conv(f"features.{layer}", x, channels, bias=True)
            x = jax.nn.relu(net.norm(f"features.{layer + 1}", x) if batch_norm else x)
            layer += 3 if batch_norm else 2
        x = net.drop(net.pool(x), dropout2d, channels=True)
        layer += 2 if dropout2d else 1
    for i, features in enumerate(hidden):
        x = net.drop(jax.nn.relu(net.linear(f"classifier.{3 * i}", x, features)), 0.5)
    return net.linear(f"classifier.{3 * len(hidden)}", x, classes)


def _vgg_small(net: Network, x: Any, classes: int) -> Any:
    return _vgg(net, x, classes, ((2, 32), (2, 64), (2, 128)), (256,), True, 0.1)


def _vgg16(net: Network, x: Any, classes: int) -> Any:
    stages = ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512))
    return _vgg(net, x, classes, stages, (4096, 4096))


def _block(net: Network, name: str, x: Any, channels: int, stride: int) -> Any:
    y = net.norm(f"{name}.bn1", net.conv(f"{name}.conv1", x, channels, 3, stride))
    y = net.norm(f"{name}.bn2", net.conv(f"{name}.conv2", jax.nn.relu(y), channels))
    if stride != 1 or x.shape[-1] != channels:
        x = net.conv(f"{name}.downsample.0", x, channels, 1, stride, padding=0)
        x = net.norm(f"{name}.downsample.1", x)
    return jax.nn.relu(y + x)


def _resnet(
    net: Network, x: Any, classes: int, widths: tuple[int, ...], blocks: int, large: bool = False
) -> Any:
    x = net.conv("conv1", x, widths[0], *((7, 2, 3) if large else (3, 1, 1)))
    x = jax.nn.relu(net.norm("bn1", x))
    x = net.pool(x, 3, 2, 1) if large else x
    for stage, channels in enumerate(widths):
        for block in range(blocks):
            stride = 2 if stage and not block else 1
            x = _block(net, f"layers.{stage}.{block}", x, channels, stride)
    return net.linear("fc", x.mean((1, 2)), classes)


def _resnet20(net: Network, x: Any, classes: int) -> Any:
    return _resnet(net, x, classes, (16, 32, 64), 3)


def _resnet18(net: Network, x: Any, classes: int) -> Any:
    return _resnet(net, x, classes, (64, 128, 256, 512), 2, large=True)


MODELS: dict[str, Callable[..., Any]] = {
    "CifarCNN": _cifar_cnn,
    "MLP": _mlp,
    "vgg_small": _vgg_small,
    "resnet20": _resnet20,
    "resnet18": _resnet18,
    "vgg16": _vgg16,
}


def initial_values(model: Callable[..., Any], images: Any) -> tuple[dict, dict]:
    """Parameters and buffers of ``model(net, x)``, in the layout of JAX."""
    net = Network()
    jax.eval_shape(lambda x: model(net, x), images)
    values = {
        name: jnp.array(convert(initial_value(name, shape)))
        for name, (shape, convert) in net.declared.items()
    }
    buffers = {name: values.pop(name) for name in net.buffers}
    return values, buffers


def loss_function(
    model: Callable[..., Any], parameters: dict, buffers: dict, key: Any, x: Any, y: Any
) -> tuple[Any, dict]:
    """Mean cross-entropy of the logits, and the new buffers."""
    net = Network(parameters | buffers, key)
    logits = model(net, x)
    chosen = jnp.take_along_axis(logits, y[:, None], axis=1)[:, 0]
    return (jax.nn.logsumexp(logits, axis=1) - chosen).mean(), net.buffers
