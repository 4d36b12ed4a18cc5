"""Batch normalisation with the statistics of all ranks' batches."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from fastlayers.autograd import Tensor
from fastlayers.distributed.group import Channel, world_size
from fastlayers.nn import functional
from fastlayers.nn.batchnorm import _BatchNorm
from fastlayers.nn.fuse import chains, heads
from fastlayers.nn.module import Module
from fastlayers.ops.norm.parts import normalisation_of_part

__all__ = ["SyncBatchNorm", "convert_sync_batchnorm"]


@functools.cache
def _channel() -> Channel:
    """The channel of all layers, which all ranks call in the same order; made by the first call."""
    return Channel()


def _batch_norm(
    input: Any,
    running_mean: Any,
    running_var: Any,
    weight: Any,
    bias: Any,
    training: bool,
    momentum: float,
    eps: float,
) -> Tensor:
    """As `functional.batch_norm`; in training over all ranks' batches together."""
    if not training or world_size() == 1:
        arguments = (running_mean, running_var, weight, bias, training, momentum, eps)
        return functional.batch_norm(input, *arguments)
    x = input if isinstance(input, Tensor) else Tensor(input)
    inputs = x, weight, bias
    array, w, b = heads.arrays(inputs)
    mean, var = (t.array() if isinstance(t, Tensor) else t for t in (running_mean, running_var))
    norm = normalisation_of_part(
        "batch_norm", array, mean, var, w, b, momentum, eps, _channel().sum
    )
    for t in (running_mean, running_var):
        if isinstance(t, Tensor):
            t.changed()
    return chains.start(heads.BatchNorm(inputs, norm))


class SyncBatchNorm(_BatchNorm):
    """Batch normalisation over the batches of all ranks together, in training.

    Mean and variance are those of all values of all ranks, exactly, and gradients pass through them
    to all ranks. Running statistics are bitwise the same on all ranks. A rank's batch may have any
    size, even none. In evaluation, and with one rank, the layer does the same as `nn.BatchNorm2d`,
    for inputs (N, C), (N, C, L) or (N, C, H, W).

    All ranks must call the layer, and `backward`, the same number of times: a forward pass in
    training takes two sums over the ranks, a backward pass one. Gradients are those of the mean of
    the ranks' losses, weighted by their numbers of samples, where each rank's loss is a mean over
    its samples; with `DistributedDataParallel`, which averages parameter gradients in the same way,
    they are those of a single process.

    Parameters
    ----------
    num_features, eps, momentum, affine, track_running_stats, device, dtype, bias
        As for `nn.BatchNorm2d`.

    Raises
    ------
    ValueError
        For a wrong shape, or one value per channel on all ranks together in training; statistics
        are then unchanged.

    References
    ----------
    https://docs.pytorch.org/docs/stable/generated/torch.nn.SyncBatchNorm.html
    """

    _ndims, _shapes = (2, 3, 4), "(N, C), (N, C, L) or (N, C, H, W)"
    _batch_norm: Callable[..., Tensor] = staticmethod(_batch_norm)

    @classmethod
    def convert_sync_batchnorm(cls, module: Module) -> Module:
        """See `fastlayers.distributed.convert_sync_batchnorm`."""
        return convert_sync_batchnorm(module)


def convert_sync_batchnorm(module: Module) -> Module:
    """Replace every `nn.BatchNorm1d` and `nn.BatchNorm2d` of a model by a `SyncBatchNorm`.

    They keep their parameters, which an optimiser may hold, their buffers, options and mode; a
    layer that is used in several places stays a single layer.

    Parameters
    ----------
    module : Module
        The model, which is changed, or a layer.

    Returns
    -------
    Module
        The model itself; if it is such a layer, the new one.
    """
    new: dict[int, Module] = {}

    def converted(layer: Module) -> Module:
        if not isinstance(layer, _BatchNorm) or isinstance(layer, SyncBatchNorm):
            return layer
        if id(layer) not in new:
            new[id(layer)] = _synchronised(layer)
        return new[id(layer)]

    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if converted(child) is not child:
                parent.add_module(name, converted(child))
    return converted(module)


def _synchronised(layer: Module) -> SyncBatchNorm:
    """A layer with the same attributes, but its own tables of parameters and buffers."""
    out = SyncBatchNorm.__new__(SyncBatchNorm)
    kept = {name: set(v) if type(v) is set else v for name, v in vars(layer).items()}
    out.__setstate__(kept)  # with its own tables
    return out
