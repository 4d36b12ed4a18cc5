"""Random splits of a dataset."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from fastlayers import random
from fastlayers.data.checks import whole_number
from fastlayers.data.dataset import MapStyle, Subset

__all__ = ["random_split"]


def random_split(
    dataset: MapStyle,
    lengths: Sequence[int | float],
    generator: Any = None,
    *,
    seed: int | None = None,
) -> list[Subset]:
    """Split a dataset at random into subsets without overlap.

    As `torch.utils.data.random_split
    <https://docs.pytorch.org/docs/stable/data.html#torch.utils.data.random_split>`_.

    Parameters
    ----------
    dataset : Dataset, or any object with ``__len__`` and ``__getitem__``
        What to split.
    lengths : sequence of int or float
        Lengths that add up to ``len(dataset)``, or fractions that add up to 1: these are rounded
        down, and the remaining samples go to the first subsets, one each.
    generator : Generator or numpy.random.Generator, optional
        By default that of `fastlayers.manual_seed`.
    seed : int, optional
        Instead of a generator: use a new one with this seed.

    Raises
    ------
    TypeError
        `generator` is another object.
    ValueError
        The lengths do not add up, one of them is negative or not a whole number, or both
        `generator` and `seed` are given.
    """
    op, total = "random_split", len(dataset)
    fractions = math.isclose(sum(lengths), 1)
    counts = _counts_of_fractions(lengths, total) if fractions else lengths
    whole = [int(count) for count in counts]
    if whole != list(counts) or sum(whole) != total or min(lengths) < 0:
        raise ValueError(
            f"random_split: lengths must be whole numbers that add up to {total}, the length of "
            f"the dataset, or fractions that add up to 1, got {list(lengths)}"
        )
    if seed is not None:
        if generator is not None:
            raise ValueError(f"{op}: seed must be None if a generator is given, got {seed!r}")
        generator = np.random.default_rng(whole_number(op, "seed", seed, 0))
    drawn = random.as_numpy(op, generator).permutation(total)
    if fractions and 0 in whole:
        warnings.warn(f"{op}: subset {whole.index(0)} has no samples", stacklevel=2)
    return [Subset(dataset, part) for part in np.split(drawn, np.cumsum(whole)[:-1])]


def _counts_of_fractions(fractions: Sequence[int | float], total: int) -> list[int]:
    counts = [math.floor(total * fraction) for fraction in fractions]
    left_over = total - sum(counts)
    return [count + (position < left_over) for position, count in enumerate(counts)]
