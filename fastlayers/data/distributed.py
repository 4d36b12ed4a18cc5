"""Which samples of an epoch belong to a rank."""

from __future__ import annotations

from collections.abc import Iterator, Sized

import numpy as np

from fastlayers.data.checks import whole_number

__all__ = ["DistributedSampler"]


class DistributedSampler:
    """The indices of one rank: every `num_replicas`-th of an epoch's order, from `rank` on.

    As `torch.utils.data.DistributedSampler
    <https://docs.pytorch.org/docs/stable/data.html#torch.utils.data.distributed.DistributedSampler>`_,
    but no sample is used twice in an epoch unless `pad` is true: some ranks may have one sample
    fewer, and their `DataLoader` may then end with an empty batch where others have one more.

    Parameters
    ----------
    dataset : object with ``__len__``
    num_replicas : int, optional
        How many ranks there are; by default `distributed.world_size`.
    rank : int, optional
        By default `distributed.rank`.
    shuffle : bool
        Whether to draw a new order for each epoch, from `seed` and the epoch's number.
    seed : int
        The same on all ranks.
    drop_last : bool
        Leave out the last samples, so that all ranks have the same number.
    pad : bool
        Repeat samples from the beginning for that, as PyTorch does by default.

    Attributes
    ----------
    epoch : int
        Set by `set_epoch`; `training.fit` does so.
    shortest, longest : int
        Samples of the ranks that have the fewest and the most.

    Raises
    ------
    TypeError, ValueError
        If a number is out of its range, both `drop_last` and `pad` are true, or there is no
        sample to pad with.
    """

    def __init__(
        self,
        dataset: Sized,
        num_replicas: int | None = None,
        rank: int | None = None,
        shuffle: bool = True,
        seed: int = 0,
        drop_last: bool = False,
        *,
        pad: bool = False,
    ) -> None:
        from fastlayers import distributed

        op = type(self).__name__
        ranks = distributed.world_size() if num_replicas is None else num_replicas
        self.num_replicas = whole_number(op, "num_replicas", ranks, 1)
        rank = distributed.rank() if rank is None else rank
        self.rank = whole_number(op, "rank", rank, 0)
        if self.rank >= self.num_replicas:
            raise ValueError(f"{op}: rank must be less than {self.num_replicas}, got {rank}")
        if drop_last and pad:
            raise ValueError(f"{op}: pad must be False if drop_last is true, got both")
        if pad and not len(dataset):
            raise ValueError(f"{op}: dataset must have samples to pad with, got none")
        self.dataset, self.shuffle, self.drop_last, self.pad = dataset, shuffle, drop_last, pad
        self.seed = whole_number(op, "seed", seed, 0)
        self.epoch = 0

    @property
    def shortest(self) -> int:
        """Samples of the ranks that have the fewest."""
        return -(-len(self.dataset) // self.num_replicas) if self.pad else self._whole

    @property
    def longest(self) -> int:
        """Samples of the ranks that have the most."""
        return self._whole if self.drop_last else -(-len(self.dataset) // self.num_replicas)

    @property
    def _whole(self) -> int:
        return len(self.dataset) // self.num_replicas

    def set_epoch(self, epoch: int) -> None:
        """Use the order of this epoch from now on."""
        self.epoch = whole_number(type(self).__name__, "epoch", epoch, 0)

    def __len__(self) -> int:
        """Return the number of this rank's samples."""
        if self.shortest == self.longest:
            return self.longest
        return self._whole + (self.rank < len(self.dataset) % self.num_replicas)

    def __iter__(self) -> Iterator[int]:
        """Return this rank's indices of the epoch."""
        order = np.arange(len(self.dataset))
        if self.shuffle:
            order = np.random.default_rng((self.seed, self.epoch)).permutation(len(order))
        if self.pad:
            order = np.resize(order, self.longest * self.num_replicas)
        elif self.drop_last:
            order = order[: self.longest * self.num_replicas]
        return iter(order[self.rank :: self.num_replicas].tolist())
