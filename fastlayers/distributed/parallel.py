"""DistributedDataParallel: one model on all ranks, whose gradients are averaged in backward."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from itertools import zip_longest
from typing import Any

import numpy as np

from fastlayers.autograd import Tensor, is_grad_enabled, listen
from fastlayers.distributed import group
from fastlayers.distributed.batchnorm import SyncBatchNorm
from fastlayers.distributed.buckets import Reducer
from fastlayers.nn import BatchNorm1d, BatchNorm2d
from fastlayers.nn.module import Module

__all__ = ["DistributedDataParallel"]

MEBIBYTE = 1 << 20


class DistributedDataParallel(Module):
    """A model that is the same on all ranks, each of which trains it on its part of the batches.

    ``grad = sum_r(n_r * grad_r) / sum_r(n_r)``, where ``grad_r`` is rank r's gradient of its mean
    loss over ``n_r`` samples, the length of the model's first argument. This is the gradient of the
    mean loss over all samples, for batches of any length, even 0. Gradients are copied into flat
    buckets, in the reverse order of the parameters, and a bucket is summed as soon as it is full,
    while backward continues with earlier layers.

    Rank 0's state is copied to all ranks at construction, and its buffers in each forward pass in
    training, except those of `SyncBatchNorm`, which are equal anyway. A rank with an empty batch
    takes part; its `BatchNorm1d` and `BatchNorm2d` then normalise by the running statistics.

    Parameters
    ----------
    module : Module
        Of the same structure on all ranks. Which parameters require a gradient must not change
        later.
    bucket_cap_mb : float
        Size of a bucket in MiB, but at least that of one parameter.
    broadcast_buffers : bool
        Whether to copy rank 0's buffers in each forward pass in training.

    Raises
    ------
    TypeError
        If `module` is not a Module.
    ValueError
        On all ranks, if the structures differ; if `bucket_cap_mb` is not positive.

    References
    ----------
    Li et al., "PyTorch Distributed", 2020, https://arxiv.org/abs/2006.15704;
    https://docs.pytorch.org/docs/stable/generated/torch.nn.parallel.DistributedDataParallel.html
    """

    def __init__(
        self, module: Module, *, bucket_cap_mb: float = 4.0, broadcast_buffers: bool = True
    ) -> None:
        super().__init__()
        op = type(self).__name__
        if not isinstance(module, Module):
            raise TypeError(f"{op}: module must be a Module, got {type(module).__name__}")
        if not bucket_cap_mb > 0:
            raise ValueError(f"{op}: bucket_cap_mb must be positive, got {bucket_cap_mb!r}")
        group.init()
        self.module = module
        self.broadcast_buffers = broadcast_buffers
        self._channel, self._syncs = group.Channel(), True
        self._reducer: Reducer | None = None
        if group.world_size() == 1:
            return
        _check_structure(op, module, self._channel)
        self._take_over([*module.parameters(), *module.buffers()])
        params = [p for p in module.parameters() if p.requires_grad]
        self._reducer = Reducer(params, int(bucket_cap_mb * MEBIBYTE), self._channel)
        listen(self._reducer)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The model's output for this rank's batch."""
        if self._reducer is None or not (self.training and is_grad_enabled()):
            return self.module(*args, **kwargs)
        samples = _length(args, kwargs)
        self._reducer.expect(samples, self._syncs)
        if self.broadcast_buffers and self._syncs:
            self.sync_buffers()
        with contextlib.nullcontext() if samples else self._by_running_statistics():
            return self.module(*args, **kwargs)

    @contextlib.contextmanager
    def no_sync(self) -> Iterator[None]:
        """A block; the gradients of its forward passes stay on this rank.

        They accumulate, and are averaged with those of the first forward pass after the block.
        """
        before, self._syncs = self._syncs, False
        try:
            yield
        finally:
            self._syncs = before

    def sync_buffers(self) -> None:
        """Copy rank 0's buffers, except those that are equal anyway."""
        if self._reducer is not None:
            self._take_over(
                [
                    buffer
                    for module in self.module.modules()
                    if not isinstance(module, SyncBatchNorm)
                    for buffer in module._buffers.values()
                    if buffer is not None
                ]
            )

    def _take_over(self, tensors: list[Tensor]) -> None:
        """Replace the values of tensors by rank 0's, with one message per dtype."""
        for dtype in sorted({t.dtype.str for t in tensors}):
            some = [t for t in tensors if t.dtype.str == dtype]
            flat = np.concatenate([t.settled().reshape(-1) for t in some])
            self._channel.broadcast(flat.view(np.uint8))
            ends = np.cumsum([t.numel() for t in some])
            for t, part in zip(some, np.split(flat, ends[:-1]), strict=True):
                t.array()[...] = part.reshape(t.array().shape)
                t.changed()

    @contextlib.contextmanager
    def _by_running_statistics(self) -> Iterator[None]:
        """A block in which no layer takes its statistics from a batch without samples."""
        kinds = (BatchNorm1d, BatchNorm2d)
        norms = [m for m in self.module.modules() if isinstance(m, kinds) and m.training]
        for norm in norms:
            norm.training = False
        try:
            yield
        finally:
            for norm in norms:
                norm.training = True


def _length(args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """Number of samples in the first array argument; 1 without one."""
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor | np.ndarray) and value.ndim:
            return int(value.shape[0])
    return 1


def _check_structure(op: str, module: Module, channel: group.Channel) -> None:
    """Compare names, classes, shapes and dtypes with rank 0's; an error is raised on all ranks."""
    own = [f"{name or 'the model'}: {type(m).__name__}" for name, m in module.named_modules()]
    own += [
        f"{name}: {p.dtype} {tuple(p.shape)}, requires_grad={p.requires_grad}"
        for name, p in module.named_parameters()
    ]
    own += [f"{name}: {b.dtype} {tuple(b.shape)}" for name, b in module.named_buffers()]
    first = json.loads(channel.broadcast_text(json.dumps(own)))
    differs = np.zeros(group.world_size(), np.int64)
    differs[group.rank()] = own != first
    channel.sum(differs)
    if not differs.any():
        return
    ranks = np.flatnonzero(differs).tolist()
    text = f"{op}: module must have the same structure on all ranks, got another on ranks {ranks}"
    if own != first:
        pairs = zip_longest(own, first, fillvalue="nothing")
        mine, theirs = next(pair for pair in pairs if pair[0] != pair[1])
        text += f": here {mine!r}, on rank 0 {theirs!r}"
    raise ValueError(text)
