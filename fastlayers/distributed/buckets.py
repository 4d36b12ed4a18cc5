"""Gradients in flat buckets, which are summed over all ranks while backward continues."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import numpy as np

from fastlayers.autograd import Tensor
from fastlayers.distributed.group import Channel, Request
from fastlayers.nn.module import Parameter
from fastlayers.runtime import memory

__all__ = ["Bucket", "Reducer"]


class Bucket:
    """Parameters of one dtype, whose gradients travel together.

    The gradients, each times the rank's number of samples, are followed by a flag for each
    parameter that got one, and by the number of samples, so that one sum gives the means, and tells
    which parameters no rank has used.
    """

    def __init__(self, params: Sequence[Parameter]) -> None:
        self.params = params
        sizes = [p.numel() for p in params]
        self.flat = np.zeros(sum(sizes) + len(params) + 1, params[0].dtype)
        self.used = self.flat[-len(params) - 1 : -1]
        parts = np.split(self.flat[: sum(sizes)], np.cumsum(sizes)[:-1])
        self.parts = [part.reshape(p.shape) for part, p in zip(parts, params, strict=True)]
        self.missing = len(params)
        self.request: Request | None = None

    def put(self, index: int, gradient: np.ndarray, samples: int) -> None:
        """Take the gradient of one parameter; that over no samples may be NaN."""
        if samples:
            np.multiply(gradient, gradient.dtype.type(samples), out=self.parts[index])
            self.used[index] = 1
        self.missing -= 1

    def means(self) -> Iterator[tuple[Parameter, np.ndarray | None]]:
        """The mean gradients, from the sums; None for parameters without one."""
        samples = self.flat[-1]
        for p, part, used in zip(self.params, self.parts, self.used, strict=True):
            yield p, np.divide(part, samples, out=memory.empty(p.shape, p.dtype)) if used else None

    def clear(self) -> None:
        """Await the next gradients."""
        self.flat[...] = 0
        self.missing, self.request = len(self.params), None


class Reducer:
    """Averages the gradients of parameters over all ranks; a `fastlayers.autograd.Listener`.

    Parameters
    ----------
    params : sequence of Parameter
        In the order of their layers; their gradients come in roughly the reverse order.
    capacity : int
        Bytes of a bucket.
    channel : Channel
    """

    def __init__(self, params: Sequence[Parameter], capacity: int, channel: Channel) -> None:
        self._channel, self._buckets = channel, list(_filled(params, capacity))
        self._places = {
            id(p): (bucket, index)
            for bucket in self._buckets
            for index, p in enumerate(bucket.params)
        }
        self._samples, self._syncs, self._started = 0, True, 0

    def expect(self, samples: int, syncs: bool) -> None:
        """A forward pass of so many samples begins; its gradients are averaged if it `syncs`."""
        self._samples += samples
        self._syncs = syncs

    def begin(self, leaves: Collection[int]) -> bool:
        """Whether the gradients are to be averaged."""
        return self._syncs and not self._places.keys().isdisjoint(leaves)

    def ready(self, leaf: Tensor, gradient: np.ndarray) -> None:
        """Copy a gradient, and begin the sums of the buckets that are full."""
        if id(leaf) not in self._places:
            return
        bucket, index = self._places[id(leaf)]
        before = leaf.grad_array()
        bucket.put(index, gradient if before is None else before + gradient, self._samples)
        self._start_full()

    def finish(self) -> None:
        """Sum what is left, and replace the gradients by the means."""
        for bucket in self._buckets[self._started :]:
            for index, p in enumerate(bucket.params if bucket.missing else ()):
                gradient = p.grad_array()
                if not bucket.used[index] and gradient is not None:  # not averaged before
                    bucket.put(index, gradient, self._samples)
            bucket.missing = 0
        self._start_full()
        for bucket in self._buckets:
            bucket.request.wait()  # type: ignore[union-attr]
            for p, mean in bucket.means():
                p.grad = mean
            bucket.clear()
        self._samples = self._started = 0

    def _start_full(self) -> None:
        """Start the sums in the order of the buckets, which is the same on all ranks."""
        for bucket in self._buckets[: self._started]:
            bucket.request.test()  # type: ignore[union-attr]  # MPI works when it is called
        for bucket in self._buckets[self._started :]:
            if bucket.missing:
                return
            bucket.flat[-1] = self._samples
            bucket.request = self._channel.start_sum(bucket.flat)
            self._started += 1


def _filled(params: Sequence[Parameter], capacity: int) -> Iterator[Bucket]:
    """Buckets of up to `capacity` bytes, of the last parameters first."""
    for dtype in sorted({p.dtype.str for p in params}):
        held: list[Parameter] = []
        for p in reversed([p for p in params if p.dtype.str == dtype]):
            if held and sum(h.nbytes for h in held) + p.nbytes > capacity:
                yield Bucket(held)
                held = []
            held.append(p)
        yield Bucket(held)
