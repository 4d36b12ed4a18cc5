"""The ranks that the launcher started: numbers, cores, random numbers, and the kernels' cache."""

import hashlib
import os
import subprocess
import sys

import pytest

from fastlayers.runtime.cores import available

# Cores that each of the two or three ranks of a host may run on, the quota of the container that
# they are in, and the threads each gets.
CORES = [
    ([range(8), range(8)], None, [4, 4]),
    ([range(8), range(8), range(8)], None, [2, 2, 2]),
    ([range(4), range(4, 8)], None, [4, 4]),
    ([[0], [5]], None, [1, 1]),
    ([[3], [3]], None, [1, 1]),
    ([range(2), range(8)], None, [2, 4]),
    ([range(8), [7, 6], [4]], None, [2, 2, 1]),
    ([[0], [0], [0]], None, [1, 1, 1]),
    ([range(8), range(8)], 4, [2, 2]),
    ([range(8), range(8), range(8)], 2, [1, 1, 1]),
    ([range(8), range(8)], 12, [4, 4]),
]
UNNAMED = dict.fromkeys(("FASTLAYERS_NUM_THREADS", "NUMBA_NUM_THREADS", "OMP_NUM_THREADS"), "")
SHARES = """
import os, sys
from mpi4py import MPI
from fastlayers import distributed
from fastlayers.distributed import group
from fastlayers.runtime import threads

distributed.init()
for number, cores, quota in eval(sys.argv[1]):
    everyone = MPI.COMM_WORLD.Split(distributed.rank() < number)
    if distributed.rank() < number:
        os.sched_getaffinity = lambda process: set(cores[distributed.rank()])
        group.cores.quota = lambda: quota
        group.cores.without_siblings = len
        group._share_cores(everyone)
        print(distributed.rank(), threads.get_num_threads())
"""


def by_rank(out):
    """The words that each rank printed in one line."""
    return [line.split()[1:] for line in sorted(out.splitlines()) if line]


def test_ranks_and_what_they_share(ranks):
    out = ranks(
        3,
        """
        import os, sys
        import numpy as np
        import fastlayers as fl
        from fastlayers import distributed, nn

        assert not distributed.is_initialized() and distributed.is_launched()
        assert (distributed.rank(), distributed.world_size()) == (0, 1)
        assert "mpi4py" not in sys.modules
        distributed.init()
        distributed.init()
        assert distributed.is_initialized()
        rank, size = distributed.rank(), distributed.world_size()

        first, second = distributed.Channel(), distributed.Channel()
        array = np.arange(3.0) + rank
        other = array.copy()
        requests = [first.start_sum(array), second.start_sum(other)]
        for request in requests[:: 1 if rank else -1]:  # each rank waits in its own order
            request.wait()
        assert array.tolist() == other.tolist() == [3, 6, 9]
        assert first.broadcast_text(f"rank {rank} says ü") == "rank 0 says ü"
        if rank == 1:
            open("said", "w").close()
        distributed.barrier()
        assert os.path.exists("said")

        drawn = np.concatenate([p.array().ravel() for p in nn.Linear(3, 2).parameters()])
        masks = nn.functional.dropout(np.ones(64, np.float32)).array()
        line = distributed.rank(), distributed.local_rank(), size, drawn.tobytes().hex()
        print(*line, (masks > 0).astype(int).tobytes().hex())
        """,
    )
    locals_, sizes, drawn, masks = zip(*by_rank(out), strict=True)
    assert (locals_, sizes) == (("0", "1", "2"), ("3",) * 3)
    assert len(set(drawn)) == 1  # of a seed that nobody named
    assert len(set(masks)) == 3


def test_a_host_s_cores_are_shared(ranks):
    cases = [(len(cores), [list(c) for c in cores], quota) for cores, quota, _ in CORES]
    out = ranks(3, SHARES, cases)
    for rank in range(3):
        found = [int(n) for r, n in map(str.split, out.splitlines()) if int(r) == rank]
        assert found == [threads[rank] for *_, threads in CORES if rank < len(threads)]


@pytest.mark.parametrize(
    "variables, chosen, threads",
    [
        ({}, None, lambda cores: max(1, cores // 2)),
        ({"FASTLAYERS_NUM_THREADS": "3"}, None, lambda cores: 3),
        ({"OMP_NUM_THREADS": "4"}, None, lambda cores: 4),
        ({"NUMBA_NUM_THREADS": "5"}, None, lambda cores: 5),
        ({}, 2, lambda cores: 2),
    ],
)
def test_threads_are_those_named(ranks, variables, chosen, threads):
    out = ranks(
        2,
        f"""
        import os
        import fastlayers as fl
        from fastlayers import distributed

        if {chosen}:
            fl.set_num_threads({chosen})
        distributed.init()
        print(distributed.rank(), fl.get_num_threads())
        """,
        **(UNNAMED | variables),
    )
    cores, _ = available()
    assert by_rank(out) == [[str(threads(cores))]] * 2


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="the system binds nothing")
def test_one_rank_has_all_cores(ranks):
    out = ranks(
        1,
        """
        import os
        import fastlayers as fl

        fl.distributed.init()
        print(fl.get_num_threads(), len(os.sched_getaffinity(0)))
        """,
        **UNNAMED,
    )
    assert out.split() == [str(available()[0]), str(len(os.sched_getaffinity(0)))]


def alone(program, **variables):
    return subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | variables,
        capture_output=True,
        text=True,
        check=False,
    )


def test_alone_without_mpi():
    done = alone(
        "import sys\n"
        "from fastlayers import distributed\n"
        "distributed.init(); distributed.barrier()\n"
        "assert distributed.world_size() == 1 and distributed.rank() == 0\n"
        "assert distributed.is_initialized() and not distributed.is_launched()\n"
        "assert 'mpi4py' not in sys.modules\n"
    )
    assert done.returncode == 0, done.stderr


def test_launched_without_mpi4py():
    done = alone(
        "import sys\n"
        "sys.modules['mpi4py'] = None\n"
        "from fastlayers import distributed\n"
        "distributed.init()\n",
        PMI_SIZE="2",
    )
    assert done.returncode == 1
    assert "a program started by mpiexec needs the package mpi4py: pip install" in done.stderr


def test_other_structures_are_an_error_on_all_ranks(ranks):
    out = ranks(
        3,
        """
        from fastlayers import distributed, nn

        distributed.init()
        rank = distributed.rank()
        other = {0: nn.Linear(3, 2), 1: nn.Linear(3, 2), 2: nn.Linear(3, 4)}
        try:
            distributed.DistributedDataParallel(nn.Sequential(nn.ReLU(), other[rank]))
        except ValueError as error:
            print(rank, error)
        distributed.barrier()
        """,
    )
    lines = sorted(out.splitlines())
    text = "DistributedDataParallel: module must have the same structure on all ranks, got another "
    assert [line[2:].startswith(text + "on ranks [2]") for line in lines] == [True] * 3, out
    assert lines[2].endswith(
        ": here '1.weight: float32 (4, 3), requires_grad=True', "
        "on rank 0 '1.weight: float32 (2, 3), requires_grad=True'"
    )


def test_caches_of_ranks_that_start_together(ranks, tmp_path):
    program = """
    import sys
    import numpy as np
    import fastlayers as fl
    from fastlayers import distributed, nn
    from fastlayers.runtime import cache

    distributed.init()
    x = nn.functional.relu(np.linspace(-1, 1, 101, dtype=np.float32)).array()
    assert np.array_equal(x, np.maximum(np.linspace(-1, 1, 101, dtype=np.float32), 0))
    print(distributed.rank(), cache.progress().kernels)
    """
    variables = {"FASTLAYERS_CACHE_DIR": str(tmp_path / "cache")}
    ranks(3, program, **variables)
    files = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert files and {path.suffix for path in files} == {".nbc"}  # nothing unfinished is left
    for path in files:
        digest, data = path.read_bytes()[:32], path.read_bytes()[32:]
        assert hashlib.sha256(data).digest() == digest
    assert by_rank(ranks(2, program, **variables)) == [["0"], ["0"]]  # all is found
