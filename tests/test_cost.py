"""The cost model of `benchmarks/distributed`: its limits, its parts, and the page made of it."""

import itertools
import json
import math
import sys
from pathlib import Path

import pytest

import fastlayers as fl

sys.path.append(str(Path(__file__).parents[1]))

from benchmarks.compare import record
from benchmarks.compare.__main__ import RESULTS, ROOT, publish
from benchmarks.compare.cases import CASES
from benchmarks.distributed import __main__ as page
from benchmarks.distributed import calibrate
from benchmarks.distributed.cost import (
    ALGORITHMS,
    MIB,
    Host,
    Network,
    Work,
    buckets,
    step,
    sum_cost,
)
from fastlayers import distributed, profiling
from fastlayers.distributed.buckets import Reducer

ETHERNET = Network("", 30e-6, 1e9, 2e-10)
HOST = Host(1e-10, 2e-10, 5e-11, 3e-6)
GRADIENTS = [(3 * MIB, 1.0), (MIB, 0.6), (9 * MIB, 0.5), (40, 0.1)]
WORK = Work(0.01, 0.02, 0.001, GRADIENTS, [1000, 16], [64, 64])
RANKS = [2**i for i in range(11)]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("sync", [True, False])
def test_more_ranks_take_longer_and_one_costs_nothing(algorithm, overlap, sync):
    options = {"algorithm": algorithm, "overlap": overlap, "sync_norms": sync}
    times = [step(WORK, p, ETHERNET, HOST, **options) for p in RANKS]
    assert times[0] == WORK.seconds
    assert all(a < b for a, b in itertools.pairwise(times))
    free = Network("", 0.0, math.inf)
    assert step(WORK, 1024, free, Host(), **options) == pytest.approx(WORK.seconds)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("ranks", RANKS)
def test_overlap_hides_at_most_what_the_network_takes(algorithm, ranks):
    for capacity in (1, MIB, 4 * MIB, math.inf):
        args = WORK, ranks, ETHERNET, HOST, capacity
        hidden, exposed = (step(*args, overlap=o, algorithm=algorithm) for o in (True, False))
        wire = sum(
            sum_cost(n, ranks, ETHERNET, 0, algorithm)[0] for n, _ in buckets(GRADIENTS, capacity)
        )
        assert WORK.seconds <= hidden <= exposed
        assert exposed <= hidden + wire * (1 + 1e-9)
    slow = Network("", 0.0, 1e3)  # so that only the last bucket's wait for backward is hidden
    assert step(WORK, 2, slow, Host()) > 0.99 * step(WORK, 2, slow, Host(), overlap=False)


def test_sums_cost_what_they_do_by_hand():
    n, network = 4e6, Network("", 1e-5, 1e9, 1e-10)
    assert sum_cost(n, 4, network, 1e-10, "ring") == pytest.approx((6e-5 + 6e-3, 6e-4 + 3e-4))
    assert sum_cost(n, 4, network, 1e-10, "halving") == pytest.approx((4e-5 + 6e-3, 9e-4))
    assert sum_cost(n, 4, network, 1e-10, "doubling") == pytest.approx((2e-5 + 8e-3, 8e-4 + 8e-4))
    assert sum_cost(n, 4, network, 1e-10, "tree") == pytest.approx((4e-5 + 16e-3, 8e-4 + 8e-4))
    # Five ranks need three rounds, and the ring's cost hardly grows.
    assert sum_cost(n, 5, network, 0, "tree")[0] == pytest.approx(6e-5 + 24e-3)
    assert sum_cost(n, 1000, network, 0, "ring")[0] == pytest.approx(1998e-5 + 7.992e-3)


def test_a_step_by_hand():
    work = Work(1.0, 2.0, 0.5, [(100, 1.0), (300, 0.5)])
    network, host = Network("", 0.0, 1e3), Host(pack=1e-3, unpack=2e-3)
    # 300 bytes are there at 2 s, packed at 2.3 and summed at 2.6; the others at 3.4 and 3.5.
    assert step(work, 2, network, host, 300) == pytest.approx(3.5 + 0.8 + 0.5)
    assert step(work, 2, network, host, 300, overlap=False) == pytest.approx(3.4 + 0.4 + 0.8 + 0.5)
    # One bucket waits for all.
    assert step(work, 2, network, host, 400) == pytest.approx(3.4 + 0.4 + 0.8 + 0.5)
    # Of each of 2 layers 3 sums of 2 messages; without them 2 broadcasts of one.
    slow, quiet = Network("", 0.01, math.inf), Work(1.0, 0.0, 0.0, [], [8, 8], [4, 4])
    assert step(quiet, 2, slow, host, sync_norms=True) == pytest.approx(1.12)
    assert step(quiet, 2, slow, host) == pytest.approx(1.02)


@pytest.mark.parametrize("capacity", [1, 20_000, 200_000, MIB])
def test_buckets_are_those_of_distributed_data_parallel(capacity):
    params = list(fl.vision.models.resnet20().parameters())
    theirs = Reducer(params, capacity, distributed.group.Channel())._buckets
    ours = buckets([(p.data.nbytes, 0.0) for p in params], capacity)
    assert [n for n, _ in ours] == [sum(p.data.nbytes for p in b.params) for b in theirs]


def test_a_bucket_waits_for_those_before_it():
    assert buckets([(1, 1.0), (1, 0.2), (1, 0.5)], 1) == [(1, 0.5), (1, 0.5), (1, 1.0)]


def test_work_is_that_of_the_model(monkeypatch):
    monkeypatch.setattr(profiling, "BUDGET", 0.0)
    case = next(c for c in CASES if c.options)
    _, found = calibrate.work_of(fl.get_num_threads(), case.at(4))
    work = Work(**json.loads(json.dumps(found)))
    model = fl.vision.models.CifarCNN(batch_norm=True)
    assert [n for n, _ in work.gradients] == [p.data.nbytes for p in model.parameters()]
    ready = [when for _, when in work.gradients]
    assert ready == sorted(ready, reverse=True)
    assert ready[0] == 1 > ready[-1] > 0
    assert list(work.norms) == [6, 16]
    assert sum(work.buffers) == 2 * 4 * (6 + 16) + 2 * 8
    assert work.taking(2.0).seconds == pytest.approx(2.0)


def test_a_line_is_found_again_and_gives_the_sums_back():
    sums = {n: 4e-6 + 3e-10 * n for n in calibrate.SIZES}
    assert calibrate.line(sums) == pytest.approx((4e-6, 3e-10))
    pair = {"sums": {str(n): t for n, t in sums.items()}, "host": {"add": 1e-10}}
    names = "shared memory", "TCP loopback", "1 Gbit/s"
    ways = page.local({"pairs": [{"transport": name} | pair for name in names]})
    times = [sum(sum_cost(1e6, 2, ways[n][0], ways[n][1].add)) for n in names]
    wire = 1e6 / (1e9 / 8 * 1448 / 1538)
    assert times == pytest.approx([304e-6, 304e-6, 304e-6 + wire])


def test_the_page_is_that_of_the_records():
    found, steps = (record.read(ROOT / RESULTS, n) for n in ("distributed", "models"))
    text = page.PAGE.read_text()
    renewed = publish(text, page.parts(found, steps))
    assert renewed == text, "python -m benchmarks.distributed --render --publish"


def test_the_chart_is_drawn_and_other_hosts_are_printed(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    found, steps = (record.read(ROOT / RESULTS, n) for n in ("distributed", "models"))
    page.draw(found, steps, tmp_path / "distributed.png")
    assert (tmp_path / "distributed.png").stat().st_size > 10_000
    page.main(["--render"])
    before = capsys.readouterr().out
    page.main(["--render", "--speed", "16"])
    after = capsys.readouterr().out
    assert "10 Gbit/s" in before
    assert before.count("ResNet-18") > after.count("ResNet-18") == 2
    with pytest.raises(SystemExit):
        page.main(["--render", "--results", str(tmp_path)])
