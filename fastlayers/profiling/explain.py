"""Which algorithm computes each pass of each layer, and why."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple, TextIO

import numpy as np

from fastlayers import nn, random
from fastlayers.autograd import Tensor, enable_grad
from fastlayers.ops import check
from fastlayers.ops.pool import avg_pool, max_pool
from fastlayers.profiling.watch import Watch

__all__ = ["Explanation", "Reason", "explain"]


class Reason(NamedTuple):
    """What computes a pass of a layer, or of several that run as one op.

    Attributes
    ----------
    layers : str
        Names as in `Module.named_modules`, such as ``conv1 + relu``.
    direction : str
        "forward", "backward", or which gradient: "backward_input", "backward_weight".
    algorithm : str
        Its name and variant.
    reason : str
        Why it was chosen; empty where there is one algorithm only.
    """

    layers: str
    direction: str
    algorithm: str
    reason: str

    def __str__(self) -> str:
        why = f" ({self.reason})" if self.reason else ""
        return f"{self.layers} {self.direction}: {self.algorithm}{why}"


class Explanation(tuple[Reason, ...]):
    """A `Reason` for each pass of each layer, in the order in which layers run."""

    def __str__(self) -> str:
        return "\n".join(map(str, self))


class _Listener(Watch):
    """Asks what runs for its reasons."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.reasons: list[Reason] = []
        self._modules = dict(model.named_modules())

    def ran(self, key: Any, head: Any, steps: tuple[Any, ...], inputs: Any) -> None:
        """Note the reasons of an op that ran."""
        names = " + ".join(name for name, _ in key)
        for direction, algorithm, reason in self._reasons(key, head, steps, inputs):
            self.reasons.append(Reason(names, direction, algorithm, reason))

    def _reasons(
        self, key: Any, head: Any, steps: tuple[Any, ...], inputs: Any
    ) -> Sequence[tuple[str, str, str]]:
        if head is not None and head.kind in ("conv", "linear"):
            found: Sequence[tuple[str, str, str]] = head.reasons(steps)
            return found
        layer, shape = self._modules.get(key[0][0]), inputs[0].shape
        if isinstance(layer, nn.MaxPool2d):
            window = (layer.kernel_size, layer.stride, layer.padding, layer.dilation)
            return max_pool.reasons(shape, *window, layer.ceil_mode)
        if isinstance(layer, nn.AvgPool2d):
            window = (layer.kernel_size, layer.stride, layer.padding, layer.ceil_mode)
            options = layer.count_include_pad, layer.divisor_override
            return avg_pool.reasons(shape, *window, *options)
        if isinstance(layer, nn.AdaptiveAvgPool2d):
            return avg_pool.reasons_adaptive(shape, layer.output_size)
        return ()


def explain(
    model: nn.Module,
    input_shape: Sequence[int],
    *,
    dtype: Any = np.float32,
    file: TextIO | None = None,
) -> Explanation:
    """Print which algorithm computes each pass of each layer, and why.

    A copy of the model runs once, forward, on zeros, in its training or evaluation mode:
    parameters, buffers and random state stay as they are. Layers that run as one op, such as a
    convolution with its ReLU and pooling, are one line. Layers with one algorithm only have no
    line, nor have functions of pooling that a module of other layers calls itself.

    Parameters
    ----------
    model : Module
    input_shape : sequence of int
        Of the only argument of `model`, such as (128, 3, 32, 32).
    dtype : dtype, optional
        Of that argument; float32 by default.
    file : text file, optional
        Where it is printed; ``sys.stdout`` by default.

    Returns
    -------
    Explanation

    Raises
    ------
    TypeError, ValueError
        If an argument is none of these, or the model does not take such an input.

    Examples
    --------
    >>> fl.explain(fl.vision.models.resnet20(), (128, 3, 32, 32))  # doctest: +SKIP
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"explain: model must be a Module, got {type(model).__name__}")
    if file is not None and not hasattr(file, "write"):
        raise TypeError(f"explain: file must be a text file, got {check.describe(file)}")
    if not isinstance(input_shape, Sequence):
        given = check.describe(input_shape)
        raise TypeError(f"explain: input_shape must be a sequence of integers, got {given}")
    sizes = [check.integer("explain", "input_shape", n, 0) for n in input_shape]
    x = Tensor(np.zeros(sizes, dtype))
    with random.fork_rng(), enable_grad():
        copied = copy.deepcopy(model)
        listener = _Listener(copied)
        with listener.watching(copied):
            listener.begin()
            copied(x)
    found = Explanation(listener.reasons)
    print(found, file=file)
    return found
