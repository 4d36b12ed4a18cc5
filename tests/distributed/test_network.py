"""Ranks on two hosts, which are network namespaces of this machine joined by a slow wire."""

import json
from pathlib import Path

import pytest
from distributed import namespaces, program
from distributed.test_failure import TRAIN, assert_killed, outcome
from distributed.test_parallel import furthest

import fastlayers as fl

PROGRAM = Path(program.__file__).read_text()
DELAY = 5e-3


@pytest.fixture(scope="module")
def hosts(tmp_path_factory):
    try:
        with namespaces.Hosts(tmp_path_factory.mktemp("hosts"), DELAY) as both:
            yield both
    except OSError as error:
        pytest.skip(f"no network namespaces: {error}")


def test_where_ranks_are(ranks, hosts):
    out = ranks(
        3,
        """
        import os, socket, time
        import numpy as np
        from fastlayers import distributed

        distributed.init()
        channel, array = distributed.Channel(), np.ones(1)
        channel.sum(array)
        begin = time.perf_counter()
        for _ in range(20):
            channel.sum(array)
        print(
            distributed.rank(),
            distributed.local_rank(),
            socket.gethostname(),
            array[0] == 3**21,
            time.perf_counter() - begin > 19 * float(os.environ["DELAY"]),
        )
        """,
        hosts=hosts.launch([2, 1]),
        DELAY=str(DELAY),
    )
    first, second = hosts.names
    assert sorted(out.splitlines()) == [
        f"0 0 {first} True True",
        f"1 1 {first} True True",
        f"2 0 {second} True True",
    ]


@pytest.mark.parametrize("on_each", [[1, 1], [2, 1]], ids=str)
def test_training_on_two_hosts_is_that_of_one_process(ranks, hosts, tmp_path, on_each):
    together, alone = tmp_path / "together.npz", tmp_path / "alone.npz"
    options = program.OPTIONS
    before = hosts.sent()
    out = ranks(sum(on_each), PROGRAM, json.dumps(options), together, hosts=hosts.launch(on_each))
    assert len({line.split()[1] for line in out.splitlines()}) == 1  # all ranks' states
    program.main(options, alone)
    assert furthest(fl.load(together), fl.load(alone)) <= 1e-5
    gradients = options["steps"] * sum(
        p.array().nbytes for p in program.MODELS[options["model"]]().parameters()
    )
    assert all(after - start > gradients for start, after in zip(before, hosts.sent(), strict=True))


@pytest.mark.parametrize("way", ["raise", "kill"])
def test_a_rank_that_fails_ends_those_of_the_other_host(ranks, hosts, way):
    status, out, err = outcome(ranks.start(2, TRAIN, way, hosts=hosts.launch([1, 1])))
    assert status != 0
    assert "step 3" in out
    if way == "kill":
        assert_killed(out, err, 1)
    else:
        assert f"rank 1 of 2 on {hosts.names[1]} failed, so all ranks end: ValueError" in err, err
