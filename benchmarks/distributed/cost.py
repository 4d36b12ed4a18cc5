"""The time of a data-parallel training step: compute, and sums of gradients over a network.

A message of n bytes takes ``latency + n / bandwidth`` (Hockney's model), and a sum over P ranks as
many messages as its algorithm has on its longest path:

=========  ===================  ================  ================
algorithm  messages             bytes moved       bytes added up
=========  ===================  ================  ================
tree       2 ceil(log2 P)       2 n ceil(log2 P)  n ceil(log2 P)
doubling   ceil(log2 P)         n ceil(log2 P)    n ceil(log2 P)
halving    2 ceil(log2 P)       2 n (P - 1) / P   n (P - 1) / P
ring       2 (P - 1)            2 n (P - 1) / P   n (P - 1) / P
=========  ===================  ================  ================

References
----------
Hockney, "The communication challenge for MPP: Intel Paragon and Meiko CS-2", Parallel Computing
20 (1994); Thakur, Rabenseifner, Gropp, "Optimization of collective communication operations in
MPICH", Int. J. High Performance Computing Applications 19 (2005), sections 4.5 and 5.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

__all__ = [
    "ALGORITHMS",
    "MIB",
    "Host",
    "Network",
    "Sum",
    "Work",
    "buckets",
    "step",
    "sum_cost",
]

MIB = 1 << 20
# Sums of batch norm over all ranks, per layer: two over its channels forward, one backward.
SYNC_SUMS = 3


@dataclass(frozen=True)
class Network:
    """The connection between ranks; all of them send and receive at the same time.

    Attributes
    ----------
    latency : float
        Seconds of a message, however short.
    bandwidth : float
        Bytes a second, each way.
    handling : float
        Seconds that a host's cores spend per byte sent and byte received.
    """

    name: str
    latency: float
    bandwidth: float
    handling: float = 0.0


@dataclass(frozen=True)
class Host:
    """Seconds that a rank's cores spend per byte of a gradient.

    Attributes
    ----------
    pack, unpack : float
        To put it into its bucket, and to turn the sum into a mean.
    add : float
        To add what another rank sent.
    call : float
        Seconds of the calls per parameter, however small.
    """

    pack: float = 0.0
    unpack: float = 0.0
    add: float = 0.0
    call: float = 0.0


@dataclass(frozen=True)
class Sum:
    """What a sum over all ranks consists of, on its longest path."""

    messages: int
    moved: float  # bytes, of all messages
    handled: float  # bytes that a rank sends, and as many that it receives
    added: float  # bytes


def _rounds(ranks: int) -> int:
    return (ranks - 1).bit_length()


def _tree(n: float, ranks: int) -> Sum:
    """To rank 0 and back: what Open MPI takes by default for sums in place."""
    rounds = _rounds(ranks)
    return Sum(2 * rounds, 2 * rounds * n, rounds * n, rounds * n)


def _doubling(n: float, ranks: int) -> Sum:
    """All in pairs, at doubling distances: for few bytes."""
    rounds = _rounds(ranks)
    return Sum(rounds, rounds * n, rounds * n, rounds * n)


def _halving(n: float, ranks: int) -> Sum:
    """Rabenseifner's, in halves, quarters and so on, as in `fastlayers.distributed`."""
    share = (ranks - 1) / ranks * n
    return Sum(2 * _rounds(ranks), 2 * share, 2 * share, share)


def _ring(n: float, ranks: int) -> Sum:
    return replace(_halving(n, ranks), messages=2 * (ranks - 1))


ALGORITHMS: dict[str, Callable[[float, int], Sum]] = {
    "tree": _tree,
    "doubling": _doubling,
    "halving": _halving,
    "ring": _ring,
}


def sum_cost(
    nbytes: float, ranks: int, network: Network, add: float = 0.0, algorithm: str = "halving"
) -> tuple[float, float]:
    """Seconds of a sum on the network, and on a host's cores meanwhile."""
    s = ALGORITHMS[algorithm](nbytes, ranks)
    wire = s.messages * network.latency + s.moved / network.bandwidth
    return wire, s.handled * network.handling + s.added * add


@dataclass(frozen=True)
class Work:
    """A training step of one rank by itself.

    Attributes
    ----------
    forward, backward, update : float
        Seconds.
    gradients : sequence of tuple
        For each parameter, in the model's order, the bytes of its gradient and the share of
        backward after which it is complete.
    buffers : sequence of int
        Bytes of each broadcast of buffers, before forward.
    norms : sequence of int
        Channels of each batch norm.
    """

    forward: float
    backward: float
    update: float
    gradients: Sequence[tuple[int, float]]
    buffers: Sequence[int] = ()
    norms: Sequence[int] = ()

    @property
    def seconds(self) -> float:
        """Of the whole step."""
        return self.forward + self.backward + self.update

    def taking(self, seconds: float) -> Work:
        """The same step, scaled to take this time."""
        factor = seconds / self.seconds
        parts = {name: factor * getattr(self, name) for name in ("forward", "backward", "update")}
        return replace(self, **parts)


def buckets(gradients: Sequence[tuple[int, float]], capacity: float) -> list[tuple[int, float]]:
    """Bytes of each bucket, and the share of backward after which it is full.

    As DistributedDataParallel fills them: the last parameters first.
    """
    found: list[tuple[int, float]] = []
    ready = 0.0  # a bucket waits for those before it
    for nbytes, when in reversed(gradients):
        ready = max(ready, when)
        held = found.pop() if found and found[-1][0] + nbytes <= capacity else (0, 0.0)
        found.append((held[0] + nbytes, ready))
    return found


def step(
    work: Work,
    ranks: int,
    network: Network,
    host: Host,
    capacity: float = 4 * MIB,
    overlap: bool = True,
    algorithm: str = "halving",
    sync_norms: bool = False,
) -> float:
    """Seconds of a step of `ranks` ranks, each with its own `work`.

    The host's cores either compute or handle messages. With `overlap` the network works meanwhile;
    without, the cores wait for each sum. MPI works on a sum only when it is called, once per layer,
    so the real step is between the two.
    """
    if ranks == 1:
        return work.seconds
    blocked = 0.0
    for nbytes in () if sync_norms else work.buffers:
        blocked += _rounds(ranks) * (network.latency + nbytes / network.bandwidth)
    for channels in work.norms if sync_norms else ():
        blocked += SYNC_SUMS * sum(sum_cost(8 * channels, ranks, network, host.add, algorithm))
    cores = free = blocked + work.forward  # when the cores, and the network, are done
    waited = 0.0
    for nbytes, ready in buckets(work.gradients, capacity):
        wire, own = sum_cost(nbytes, ranks, network, host.add, algorithm)
        cores += host.pack * nbytes
        free = max(free, cores + ready * work.backward) + wire + own
        cores += own
        waited += wire
    cores += work.backward + host.call * len(work.gradients)
    unpack = host.unpack * sum(nbytes for nbytes, _ in work.gradients)
    return (max(cores, free) if overlap else cores + waited) + unpack + work.update
