"""Transforms made of other transforms."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fastlayers import random
from fastlayers.vision.transforms.images import chance, probability

__all__ = ["Compose", "RandomApply", "RandomChoice", "RandomOrder"]

Function = Callable[[Any], Any]


class Compose:
    """Transforms, one after the other.

    As `torchvision.transforms.Compose
    <https://docs.pytorch.org/vision/stable/generated/torchvision.transforms.Compose.html>`_.

    Parameters
    ----------
    transforms : sequence of callable

    Raises
    ------
    TypeError
        One cannot be called.
    """

    def __init__(self, transforms: Sequence[Function]) -> None:
        self.transforms = _functions("Compose", transforms)

    def __call__(self, image: Any) -> Any:
        """Return the transformed image."""
        for transform in self.transforms:
            image = transform(image)
        return image

    def __repr__(self) -> str:
        return _listing(type(self).__name__, self.transforms)


class RandomApply:
    """Several transforms, one after the other, applied with a probability, all or none.

    Parameters
    ----------
    transforms : sequence of callable
    p : float
    """

    def __init__(self, transforms: Sequence[Function], p: float = 0.5) -> None:
        self.transforms = _functions("RandomApply", transforms)
        self.p = probability("RandomApply", p)

    def __call__(self, image: Any) -> Any:
        """Return the transformed image."""
        for transform in self.transforms if chance(self.p) else ():
            image = transform(image)
        return image

    def __repr__(self) -> str:
        return _listing(type(self).__name__, [f"p={self.p}", *self.transforms])


class RandomChoice:
    """One of several transforms, drawn at random.

    Parameters
    ----------
    transforms : sequence of callable
    p : sequence of float, optional
        Weights of the choice, which need not add up to 1; by default all are equal.

    Raises
    ------
    TypeError, ValueError
        A transform is not callable, or the weights are not a distribution over the transforms.
    """

    def __init__(self, transforms: Sequence[Function], p: Sequence[float] | None = None) -> None:
        self.transforms = _functions("RandomChoice", transforms)
        self.p = p
        weights = np.asarray([1.0] * len(self.transforms) if p is None else p, np.float64)
        right = weights.shape == (len(self.transforms),) and np.all(weights >= 0)
        if not right or not 0 < weights.sum() < np.inf:
            raise ValueError(
                f"RandomChoice: p must be a weight for each of {len(self.transforms)} transforms, "
                f"got {p!r}"
            )
        self._shares = weights / weights.sum()

    def __call__(self, image: Any) -> Any:
        """Return the transformed image."""
        number = random.numpy_generator().choice(len(self.transforms), p=self._shares)
        return self.transforms[int(number)](image)

    def __repr__(self) -> str:
        return f"{_listing(type(self).__name__, self.transforms)}(p={self.p})"


class RandomOrder:
    """Several transforms, one after the other in a random order.

    Parameters
    ----------
    transforms : sequence of callable
    """

    def __init__(self, transforms: Sequence[Function]) -> None:
        self.transforms = _functions("RandomOrder", transforms)

    def __call__(self, image: Any) -> Any:
        """Return the transformed image."""
        for number in random.numpy_generator().permutation(len(self.transforms)):
            image = self.transforms[int(number)](image)
        return image

    def __repr__(self) -> str:
        return _listing(type(self).__name__, self.transforms)


def _functions(op: str, transforms: Sequence[Function]) -> list[Function]:
    for transform in transforms:
        if not callable(transform):
            kind = type(transform).__name__
            raise TypeError(f"{op}: transforms must be functions, got {kind}")
    return list(transforms)


def _listing(name: str, items: Sequence[Any]) -> str:
    lines = [item if isinstance(item, str) else repr(item) for item in items]
    return "\n".join([f"{name}(", *(f"    {line}" for line in lines), ")"])
