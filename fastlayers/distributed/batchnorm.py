"""Batch normalisation with the statistics of all ranks' batches."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from fastlayers.autograd import Tensor
from fastlayers.autograd.recording import arguments
from fastlayers.distributed.group import Channel, world_size
from fastlayers.nn import functional
from fastlayers.nn.batchnorm import BatchNorm
from fastlayers.nn.fuse import chains, heads
from fastlayers.nn.module import Module
from fastlayers.ops.norm.normalisation import Grads, Normalisation
from fastlayers.ops.norm.parts import Part

__all__ = ["SyncBatchNorm", "convert_sync_batchnorm"]


@functools.cache
def _channel() -> Channel:
    """The channel of all layers, which all ranks call in the same order; made by the first call."""
    return Channel()


class _SyncNormalisation(Normalisation):
    """A rank's part of a batch, normalised by the statistics of all.

    Each rank has a loss of its own, a mean over its samples; the loss of the batch is their mean,
    weighed by the samples. So is the input gradient: with n samples here, `count` values a channel
    in the whole batch, and sums over ranks s of n_s samples each,
    ``dx = weight * invstd * (dy - (total + xhat * dot) / (n * count))`` where
    ``total = sum(n_s * sum(dy_s))`` and ``dot = sum(n_s * sum(dy_s * xhat_s))``. The weight and
    bias gradient are the rank's own sums.
    """

    __slots__ = ("_count",)

    def __init__(self, part: Part, mean: np.ndarray, invstd: np.ndarray) -> None:
        channels = (mean, invstd, part.weight, part.bias)
        super().__init__(part.x, part.layout, channels, True, part.elements)
        self._count = part.count

    def backward(
        self,
        dy: np.ndarray,
        needs: tuple[bool, ...],
        relu: bool = False,
        output: np.ndarray | None = None,
    ) -> Grads:
        """As `Normalisation.backward`; the input gradient takes a sum over the ranks."""
        if not needs[0]:
            return super().backward(dy, needs, relu, output)
        _, dw, db, masked = super().backward(dy, (False, True, True), relu, output)
        if masked is not None:  # the mask was applied
            dy, relu = self.layout.flat(masked), False
        dx = self.input_gradient(dy, self._means(dw, db), relu)
        return dx, dw if needs[1] else None, db if needs[2] else None, masked

    def pooled_backward(self, run: Callable[..., Grads], needs: tuple[bool, ...]) -> Grads:
        """As `Normalisation.pooled_backward`; the input gradient takes a sum over the ranks."""
        if not needs[0]:
            return run(needs)
        _, dw, db = run((False, True, True))
        dx = run((True, False, False), self._means(dw, db))[0]
        return dx, dw if needs[1] else None, db if needs[2] else None

    def _means(self, dw: Any, db: Any) -> np.ndarray:
        """Means of ``dy * xhat`` and dy over the batch, by this rank's scale."""
        samples = self.x.shape[0]
        with np.errstate(all="ignore"):
            sums = np.array((dw, db), np.float64) * samples
            _channel().sum(sums)
            means: np.ndarray = sums / (max(samples, 1) * self._count)
            return means.astype(self.x.dtype)


def _normalisation(*arguments: Any) -> _SyncNormalisation:
    """The normalisation of this rank's part; `arguments` are those of `Part`."""
    part, channel = Part("batch_norm", *arguments), _channel()
    with np.errstate(all="ignore"):
        sums = part.sums()
        channel.sum(sums)
        squares = part.squares(sums)
        channel.sum(squares)
    return _SyncNormalisation(part, *part.statistics(squares))


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
        options = (training, momentum, eps)
        return functional.batch_norm(input, running_mean, running_var, weight, bias, *options)
    x = input if isinstance(input, Tensor) else Tensor(input)
    inputs, (_, w, b), needs = arguments(x, weight, bias)
    mean, var = (t.array() if isinstance(t, Tensor) else t for t in (running_mean, running_var))
    norm = _normalisation(x.images(), mean, var, w, b, momentum, eps)
    for t in (running_mean, running_var):
        if isinstance(t, Tensor):
            t.changed()
    return chains.start(heads.BatchNorm(inputs, needs, norm))


class SyncBatchNorm(BatchNorm):
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
        if not isinstance(layer, BatchNorm) or isinstance(layer, SyncBatchNorm):
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
