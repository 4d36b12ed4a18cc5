"""What `fastlayers.training.fit` spreads over the ranks: the model, and each batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from typing import Any

from fastlayers.data.collate import cut
from fastlayers.data.loader import part_of
from fastlayers.distributed import group
from fastlayers.distributed.batchnorm import convert_sync_batchnorm
from fastlayers.distributed.parallel import DistributedDataParallel
from fastlayers.nn import Module

__all__ = ["model_of_all", "parts", "set_epoch"]


def model_of_all(model: Module) -> DistributedDataParallel | Module:
    """The model to train; with several ranks, its gradients and statistics are those of all."""
    if group.world_size() == 1 or isinstance(model, DistributedDataParallel):
        return model
    return DistributedDataParallel(convert_sync_batchnorm(model))


def parts(batches: Iterable[Any]) -> Iterable[Any]:
    """This rank's part of each batch; the batches are the same on all ranks.

    A loader with a `DistributedSampler` gives it already.
    """
    if group.world_size() == 1 or getattr(batches, "is_distributed", False):
        return batches
    return _SizedParts(batches) if isinstance(batches, Sized) else _Parts(batches)


def set_epoch(batches: Iterable[Any], epoch: int) -> None:
    """Tell the sampler of a loader which epoch begins, if it has `set_epoch`."""
    sampler: Any = getattr(getattr(batches, "loader", batches), "sampler", None)
    if hasattr(sampler, "set_epoch"):
        sampler.set_epoch(epoch)


class _Parts:
    def __init__(self, batches: Iterable[Any]) -> None:
        self._batches = batches

    def __iter__(self) -> Iterator[Any]:
        place = group.rank(), group.world_size()
        if hasattr(self._batches, "part"):  # only that part is loaded
            return iter(self._batches.part(*place))
        return (cut(batch, lambda length: part_of(length, *place)) for batch in self._batches)


class _SizedParts(_Parts):
    def __len__(self) -> int:
        return len(self._batches)  # type: ignore[arg-type]
