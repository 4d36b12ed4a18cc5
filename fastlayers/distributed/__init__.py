"""Data-parallel training over MPI: the same program on several processes, started by ``mpiexec``.

Each rank trains on its part of every batch; gradients are averaged over all ranks.
"""

from fastlayers.distributed.group import (
    Channel,
    barrier,
    init,
    is_initialized,
    is_launched,
    local_rank,
    rank,
    world_size,
)
from fastlayers.distributed.parallel import DistributedDataParallel

__all__ = [
    "DistributedDataParallel",
    "Channel",
    "barrier",
    "init",
    "is_initialized",
    "is_launched",
    "local_rank",
    "rank",
    "world_size",
]
