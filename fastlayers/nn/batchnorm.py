"""Batch normalisation layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fastlayers.autograd import Tensor
from fastlayers.nn import functional, init
from fastlayers.nn.module import Module, Parameter
from fastlayers.ops import check

__all__ = ["BatchNorm1d", "BatchNorm2d"]


class BatchNorm(Module):
    _ndims: tuple[int, ...]
    _shapes: str
    _batch_norm: Callable[..., Tensor] = staticmethod(functional.batch_norm)
    _added_to_state = frozenset({"num_batches_tracked"})

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: Any = None,
        dtype: type | np.dtype | None = None,
        *,
        bias: bool = True,
    ) -> None:
        super().__init__()
        op = type(self).__name__
        check.device(op, device)
        self.num_features = check.integer(op, "num_features", num_features, 1)
        check.epsilon(op, "eps", eps)
        if momentum is not None:
            check.finite(op, "momentum", momentum)
        self.eps, self.momentum = eps, momentum
        self.affine, self.track_running_stats = affine, track_running_stats
        shape = (self.num_features,)
        for name, is_there in {"weight": affine, "bias": affine and bias}.items():
            values = Parameter(init.new(op, shape, dtype)) if is_there else None
            self.register_parameter(name, values)
        for name in ("running_mean", "running_var"):
            self.register_buffer(name, init.new(op, shape, dtype) if track_running_stats else None)
        count = np.zeros((), np.int64) if track_running_stats else None
        self.register_buffer("num_batches_tracked", count)
        self.reset_parameters()

    def reset_running_stats(self) -> None:
        """Set the running mean to 0, the variance to 1 and the count of batches to 0."""
        if self.track_running_stats:
            self.running_mean.zero_()
            self.running_var.fill_(1)
            self.num_batches_tracked.zero_()

    def reset_parameters(self) -> None:
        """Reset the statistics, the weight to 1 and the bias to 0."""
        self.reset_running_stats()
        if self.affine:
            init.ones_(self.weight)
            if self.bias is not None:
                init.zeros_(self.bias)

    def forward(self, input: Any) -> Tensor:
        """Normalise the input, and in training update the running statistics."""
        op = type(self).__name__
        shape = input.lengths if isinstance(input, Tensor) else np.shape(input)
        if len(shape) not in self._ndims or shape[1] != self.num_features:
            raise ValueError(
                f"{op}: input must have shape {self._shapes} with C = {self.num_features}, "
                f"got {tuple(shape)}"
            )
        tracks = self.training and self.track_running_stats
        counter = self.num_batches_tracked if tracks else None
        count = None if counter is None else counter.array()
        if count is not None and not count.flags.writeable:  # before anything is changed
            check.writable(op, "num_batches_tracked", count)
        momentum = self.momentum
        if momentum is None:  # the plain average over all batches so far
            momentum = 0.0 if count is None else 1.0 / (count.item() + 1)
        # In training, statistics that are not tracked are not touched; see PyTorch's layer.
        used = tracks or not self.training
        output = self._batch_norm(
            input,
            self.running_mean if used else None,
            self.running_var if used else None,
            self.weight,
            self.bias,
            self.training,
            momentum,
            self.eps,
        )
        if count is not None and counter is not None:
            count += 1
            counter.changed()
        return output

    def extra_repr(self) -> str:
        """The layer's options."""
        return (
            f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, "
            f"affine={self.affine}, bias={self.bias is not None}, "
            f"track_running_stats={self.track_running_stats}"
        )


class BatchNorm1d(BatchNorm):
    """Normalise the channels of (N, C) or (N, C, L); see `fastlayers.ops.batch_norm`.

    Parameters
    ----------
    num_features : int
        Channels C.
    eps : float
        Added to the variance.
    momentum : float or None
        Weight of the batch in the running statistics, any number; None averages over all batches.
    affine : bool
        Whether there are a weight and a bias.
    track_running_stats : bool
        Otherwise the batch's statistics are used in evaluation too. If it is set to False later,
        training leaves the running statistics as they are.
    device : "cpu" or None
    dtype : dtype, optional
        float32 by default.
    bias : bool
        Whether there is a bias, where there is a weight.

    Raises
    ------
    ValueError
        For a wrong shape, or one value per channel in training; statistics are then unchanged, as
        they are by a batch without values.

    References
    ----------
    https://docs.pytorch.org/docs/stable/generated/torch.nn.BatchNorm1d.html
    """

    _ndims, _shapes = (2, 3), "(N, C) or (N, C, L)"


class BatchNorm2d(BatchNorm):
    """Normalise the channels of images (N, C, H, W); otherwise as `BatchNorm1d`."""

    _ndims, _shapes = (4,), "(N, C, H, W)"
