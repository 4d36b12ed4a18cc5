"""Data-parallel training over MPI: the same program on several processes, started by ``mpiexec``.

Each rank trains on its part of every batch; gradients are averaged over all ranks.
"""

from fastlayers.distributed.batchnorm import SyncBatchNorm, convert_sync_batchnorm
from fastlayers.distributed.group import (
    Channel,
    barrier,
    end_all,
    init,
    is_initialized,
    is_launched,
    local_rank,
    rank,
    total,
    world_size,
)
from fastlayers.distributed.parallel import DistributedDataParallel

__all__ = [
    "Channel",
    "DistributedDataParallel",
    "SyncBatchNorm",
    "barrier",
    "convert_sync_batchnorm",
    "end_all",
    "init",
    "is_initialized",
    "is_launched",
    "local_rank",
    "rank",
    "total",
    "world_size",
]
