"""Compiles kernels ahead of their first use, for container images and other read-only places."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fastlayers import nn, optim, random
from fastlayers.autograd import Tensor, no_grad
from fastlayers.runtime import backend
from fastlayers.runtime.cpu import choose

__all__ = ["Compiled", "any_loss", "everything", "warmup"]


class Compiled(NamedTuple):
    """What `warmup` had to compile; kernels already in the cache are not counted."""

    kernels: int
    seconds: float


def warmup(model: nn.Module, input_shape: Sequence[int], cpu: str | None = None) -> Compiled:
    """Compile the kernels that training and evaluating a model on inputs of one shape need.

    A copy of the model takes a training step with each optimiser (`SGD`, `Adam`, `AdamW`), with
    cross-entropy for outputs (N, classes, ...), and is evaluated; model and random state do not
    change. A kernel serves all sizes, but other sizes may need other kernels: give the batch size
    that will be used. If ops run on NumPy alone, nothing is compiled or run.

    Parameters
    ----------
    model : Module
    input_shape : sequence of int
        Batch size first, such as (32, 3, 32, 32); inputs have the dtype of the parameters.
    cpu : str, optional
        Compile for machines of this level, which run with ``FASTLAYERS_CPU`` set to it and a copy
        of the cache folder: x86-64-v3, x86-64-v4, armv8-a or armv8.2-a. This machine need not
        support it; then the process can run no ops, and the copy of the model computes nothing, so
        that a model must not decide by values.

    Returns
    -------
    Compiled
        Number of kernels, and the seconds that their compilation took.

    Raises
    ------
    TypeError, ValueError
        If `model` is not a module, `input_shape` holds anything but positive integers, or the model
        does not take such inputs, or if `cpu` is no level.
    RuntimeError
        If the process has run an op before, for another CPU than `cpu`.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"warmup: model must be a Module, got {type(model).__name__}")
    shape = tuple(input_shape)
    if not shape or not all(type(size) is int and size > 0 for size in shape):
        raise ValueError(f"warmup: input_shape must be positive integers, got {input_shape!r}")
    if cpu is not None:
        choose(cpu)
    if backend.NUMPY:
        return Compiled(0, 0.0)
    from fastlayers.runtime.cache import progress  # loads Numba
    from fastlayers.runtime.cross import compiling

    before = progress().kernels, progress().seconds
    with random.fork_rng(), compiling(), np.errstate(all="ignore"):
        _use(copy.deepcopy(model), shape)
    return Compiled(progress().kernels - before[0], progress().seconds - before[1])


def _use(model: nn.Module, shape: tuple[int, ...]) -> None:
    parameters = list(model.parameters())
    dtype = parameters[0].dtype if parameters else np.dtype(np.float32)
    values = np.linspace(-1, 1, math.prod(shape), dtype=dtype).reshape(shape)
    model.train()
    for kind in (optim.SGD, optim.Adam, optim.AdamW):
        output = model(Tensor(values))
        if not output.requires_grad:
            break
        loss = any_loss(output)
        loss.backward()
        kind([p for p in parameters if p.requires_grad], lr=0.0).step()
        model.zero_grad()
    model.eval()
    with no_grad():
        model(Tensor(values))


def any_loss(output: Tensor) -> Tensor:
    """Cross-entropy with the first class for outputs (N, classes, ...), else their sum."""
    if output.ndim < 2:
        total: Tensor = output.sum()
        return total
    labels = np.zeros((output.shape[0], *output.shape[2:]), np.int64)
    return nn.functional.cross_entropy(output, labels)


def everything(dtype: type | np.dtype = np.float32) -> list[tuple[nn.Module, tuple[int, ...]]]:
    """Models and input shapes that together need every kernel, in one dtype."""
    images, few, pool = (8, 32, 16, 16), (8, 3, 20, 20), nn.MaxPool2d
    layers: list[tuple[list[nn.Module], tuple[int, ...]]] = [
        ([nn.Conv2d(32, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU()], images),
        ([nn.Conv2d(32, 64, 3, stride=2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)], images),
        ([nn.Conv2d(32, 32, 3, dilation=2, groups=32), nn.Dropout2d()], images),
        ([nn.Conv2d(32, 64, 3, groups=8), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2)], images),
        ([nn.Conv2d(32, 48, 1), nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(1)], images),
        ([nn.Conv2d(3, 6, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5)], few),
        ([nn.Conv2d(3, 6, 3), nn.ReLU(), nn.MaxPool2d(3, 3), nn.Dropout()], few),
        ([nn.Conv2d(32, 32, 1), nn.Dropout2d(), nn.ReLU(), pool(2), pool(3, 1, 1)], images),
        ([nn.Conv2d(32, 32, 1), nn.Dropout2d(), pool(3, 2, 1), nn.AvgPool2d(3, 2, 1)], images),
        ([nn.Conv2d(512, 512, 3, padding=1), nn.Conv2d(512, 512, 3)], (8, 512, 8, 8)),
        ([nn.Linear(40, 30), nn.BatchNorm1d(30), nn.ReLU(), nn.Dropout()], (32, 40)),
        ([nn.Linear(2000, 1000), *_activations(), nn.Linear(1000, 500)], (64, 2000)),
        ([nn.Linear(2000, 1000), nn.Linear(1000, 500)], (4, 2000)),
    ]
    return [(nn.Sequential(*some).to(dtype), shape) for some, shape in layers]


def _activations() -> list[nn.Module]:
    """One layer of each kind; those along an axis take the last of rows."""
    kinds = [getattr(nn, name) for name in nn.activation.__all__]
    return [kind(1) if "dim" in inspect.signature(kind).parameters else kind() for kind in kinds]
