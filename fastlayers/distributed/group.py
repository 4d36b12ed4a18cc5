"""The processes that ``mpiexec`` started: which they are, how they communicate, how they end.

All communication goes through a `Channel`. Its calls wait by polling MPI, and sleep between polls
if that takes long: so an interrupt gets through, ranks that share a core yield to each other, and
those that wait for a rank notice if it has ended.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import socket
import sys
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

import numpy as np

from fastlayers import random
from fastlayers.runtime import cores, notice, threads

__all__ = [
    "Channel",
    "Request",
    "barrier",
    "end_all",
    "init",
    "is_initialized",
    "is_launched",
    "local_rank",
    "rank",
    "total",
    "world_size",
]

# The variable that each launcher sets: Open MPI's mpiexec, MPICH's and Intel's, and Slurm's srun
# with PMIx. Slurm's own variables are set in batch scripts too, which are single processes.
_LAUNCHERS = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "PMIX_RANK")
# Seconds: a wait polls without a pause, about 1 us per poll, for longer than a sum of 4 MiB takes
# between two processes of a machine; then every `PAUSE`. Every `LOOK` it checks whether a rank has
# ended, whose last call may still be in transit for `GRACE`.
PATIENCE, PAUSE, LOOK, GRACE = 5e-3, 5e-5, 0.2, 5.0
_GOODBYE = 1
MOST_CORES = 8192  # that Linux has numbers for


class _World:
    """This process among the others; alone until `init`."""

    def __init__(self) -> None:
        self.mpi: Any = None
        self.control: Any = None  # a communicator for messages outside of collective calls
        self.channel: Any = None  # for sums
        self.rank, self.size, self.local_rank = 0, 1, 0
        self.initialized = False


_world = _World()


def is_launched() -> bool:
    """Whether an MPI launcher started this process."""
    return any(name in os.environ for name in _LAUNCHERS)


def init() -> None:
    """Join the other processes of this program, once; alone where no launcher started it.

    Every rank gets its share of the host's cores as kernel threads, unless ``set_num_threads`` or a
    variable that `get_num_threads` follows sets the number, and rank 0's random state, but its own
    dropout masks. From then on an uncaught exception ends all ranks.

    Raises
    ------
    ModuleNotFoundError
        If a launcher started this process and mpi4py is not installed.

    References
    ----------
    MPI Forum, "MPI: A Message-Passing Interface Standard", https://www.mpi-forum.org/docs
    """
    if _world.initialized:
        return
    if not is_launched():
        _world.initialized = True
        return
    _unbind()
    # Read when MPI starts; other MPI libraries choose well by themselves. By default Open MPI sums
    # an array in place along a tree, 2 log2(P) times all bytes, not 2: 0.97 ms, not 0.34, for 4 MiB
    # of 2 processes of a machine.
    os.environ.setdefault("OMPI_MCA_coll_libnbc_iallreduce_algorithm", "rabenseifner")
    # Open MPI aborts a rank whose connection is closed, and reports it as the cause: let it wait
    # these seconds for the launcher to report which rank was killed at the other end.
    os.environ.setdefault("OMPI_MCA_opal_abort_delay", "1")
    try:
        from mpi4py import MPI
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "distributed.init: a program started by mpiexec needs the package mpi4py: "
            "pip install 'fastlayers[mpi]'"
        ) from error
    everyone = MPI.COMM_WORLD
    _world.mpi, _world.control = MPI, everyone.Dup()
    _world.rank, _world.size = everyone.Get_rank(), everyone.Get_size()
    _world.initialized = True
    if _world.size == 1:
        return
    sys.excepthook = _ending_all(sys.excepthook)
    atexit.register(_say_goodbye)
    neighbours = everyone.Split_type(MPI.COMM_TYPE_SHARED)
    _world.local_rank = neighbours.Get_rank()
    _share_cores(neighbours)
    neighbours.Free()
    random.set_rank(_world.rank)
    _world.channel = Channel()
    state = _world.channel.broadcast_text(json.dumps(random.get_rng_state()))
    random.set_rng_state(json.loads(state))


def is_initialized() -> bool:
    """Whether `init` was called."""
    return _world.initialized


def rank() -> int:
    """Number of this process, from 0; 0 before `init`."""
    return _world.rank


def local_rank() -> int:
    """Number of this process among those on its host, from 0."""
    return _world.local_rank


def world_size() -> int:
    """How many processes there are; 1 before `init`."""
    return _world.size


def barrier() -> None:
    """Wait until every rank has called this."""
    if _world.size > 1:
        Request(_world.control.Ibarrier()).wait()


def total(values: Sequence[float]) -> list[float]:
    """Sums of a few numbers over all ranks, bitwise the same on each."""
    sums = np.array(values, np.float64)
    if _world.size > 1:
        _world.channel.sum(sums)
    return [float(value) for value in sums]


class Request:
    """A call that runs in the background.

    When it is done, the beginning of `source` is copied to `target`.
    """

    __slots__ = ("_request", "_source", "_target")

    def __init__(
        self, request: Any, target: np.ndarray | None = None, source: np.ndarray | None = None
    ) -> None:
        self._request, self._target, self._source = request, target, source

    def test(self) -> bool:
        """Whether it is done; also lets MPI work on it."""
        if not self._request.Test():
            return False
        if self._target is not None and self._source is not None:
            self._target[...] = self._source[: self._target.size].reshape(self._target.shape)
            self._target = None
        return True

    def wait(self) -> None:
        """Return when it is done.

        Raises
        ------
        RuntimeError
            If another rank has ended, for which it would wait forever.
        """
        begin = looked = time.perf_counter()
        ended: int | None = None
        while not self.test():
            now = time.perf_counter()
            if now - begin < PATIENCE:
                continue
            time.sleep(PAUSE)
            if ended is None and now - looked > LOOK:
                ended, looked = _ended_rank(), now
            elif ended is not None and now - looked > GRACE:
                raise RuntimeError(
                    f"distributed: rank {ended} must make the calls of the others, but it has "
                    f"ended while rank {_world.rank} waits for it"
                )


class Channel:
    """A connection to all other ranks; calls match only calls on the same channel.

    Channels must be created, and called, in the same order on all ranks.
    """

    def __init__(self) -> None:
        self._comm: Any = _world.control.Dup() if _world.size > 1 else None

    def start_sum(self, array: np.ndarray) -> Request:
        """Start to replace a contiguous array by the sum of all ranks' arrays, bitwise equal."""
        whole = array
        if array.size < _world.size:  # too few to halve: Open MPI would send 2 (P - 1) messages
            whole = np.zeros(_world.size, array.dtype)
            whole[: array.size] = array.reshape(-1)
        request = self._comm.Iallreduce(_world.mpi.IN_PLACE, whole, op=_world.mpi.SUM)
        return Request(request) if whole is array else Request(request, array, whole)

    def sum(self, array: np.ndarray) -> None:
        """Replace a contiguous array by the sum of all ranks' arrays."""
        if self._comm is not None:
            self.start_sum(array).wait()

    def broadcast(self, array: np.ndarray) -> None:
        """Replace a contiguous array by rank 0's."""
        if self._comm is not None:
            Request(self._comm.Ibcast(array, root=0)).wait()

    def broadcast_text(self, text: str) -> str:
        """Rank 0's text."""
        content = np.frombuffer(text.encode(), np.uint8)
        size = np.array([content.size], np.int64)
        self.broadcast(size)
        content = content.copy() if _world.rank == 0 else np.empty(int(size[0]), np.uint8)
        self.broadcast(content)
        return content.tobytes().decode()


def _unbind() -> None:
    """Take a share of the host's cores if Open MPI's mpiexec has bound the rank to a single one.

    It does so with one or two ranks by default; its own process is not bound.
    """
    found = [os.environ.get(f"OMPI_COMM_WORLD_LOCAL_{name}", "") for name in ("RANK", "SIZE")]
    if not all(map(str.isdecimal, found)) or not hasattr(os, "sched_setaffinity"):
        return
    place, ranks = map(int, found)
    host = sorted(os.sched_getaffinity(os.getppid()))
    share = len(host) // ranks
    if len(os.sched_getaffinity(0)) < share:
        os.sched_setaffinity(0, host[place * share : (place + 1) * share])


def _share_cores(neighbours: Any) -> None:
    """Assign this rank its share of the cores that the ranks of its host may use together."""
    if threads.is_chosen():
        return
    own = cores.affinity()
    mine = np.zeros(MOST_CORES, np.uint8)  # equally long on all ranks, whichever cores they have
    mine[list(own)] = 1
    together = mine.copy()
    neighbours.Allreduce(mine, together, op=_world.mpi.MAX)
    available = cores.without_siblings(np.flatnonzero(together).tolist())
    if (quota := cores.quota()) is not None:  # of a container that holds the host's ranks
        available = min(available, quota)
    share = available // neighbours.Get_size()
    threads.share(max(1, min(cores.without_siblings(own), share)), "share of the host's cores")


Hook = Callable[[type[BaseException], BaseException, TracebackType | None], Any]


def _ending_all(before: Hook) -> Hook:
    """A hook for uncaught exceptions that also ends the other ranks, which would wait forever."""

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        before(kind, error, trace)
        end_all(
            f"{kind.__name__}: {error}".removesuffix(": "), 130 if kind is KeyboardInterrupt else 1
        )

    return hook


def end_all(reason: str, status: int) -> None:
    """End all ranks, after this one has printed why; returns if there is only one."""
    if _world.size == 1:
        return
    notice.tell(
        f"fastlayers: rank {_world.rank} of {_world.size} on {socket.gethostname()} failed, "
        f"so all ranks end: {reason}"
    )
    with contextlib.suppress(Exception):  # the others wait, even if this output fails
        sys.stdout.flush()
    _world.control.Abort(status)


def _say_goodbye() -> None:
    """Tell the others that this rank makes no more calls, and sleep until they end too."""
    others = [r for r in range(_world.size) if r != _world.rank]
    nothing = np.empty(0, np.uint8)
    sent = [_world.control.Isend(nothing, dest=r, tag=_GOODBYE) for r in others]
    ended = _world.control.Ibarrier()
    while not ended.Test():
        time.sleep(0.01)
    for r in others:
        _world.control.Recv(nothing, source=r, tag=_GOODBYE)
    _world.mpi.Request.Waitall(sent)


def _ended_rank() -> int | None:
    """A rank that has said goodbye."""
    status = _world.mpi.Status()
    found = _world.control.Iprobe(tag=_GOODBYE, status=status)
    return status.Get_source() if found else None
