import json
import multiprocessing
import os
import threading

import numpy as np
import pytest

import fastlayers as fl
from fastlayers import random
from fastlayers.nn import functional as F

ONES = np.ones(1000, np.float32)


@pytest.fixture(autouse=True)
def forked():
    with random.fork_rng():
        yield


def drawn():
    """Numbers of the generator, among them half words, and the masks of dropout."""
    generator = random.numpy_generator()
    numbers = generator.random(3).tolist(), generator.integers(0, 9, 3, np.uint32).tolist()
    return numbers, F.dropout(ONES).array().tobytes(), random.dropout_stream()


def numbers():
    return drawn()[0]


def masks():
    return drawn()[1:]


@pytest.mark.parametrize("rank", [0, 3])
def test_a_state_draws_the_same_again(rank):
    random.set_rank(rank)
    drawn()
    text = json.dumps(random.get_rng_state())
    expected = [drawn() for _ in range(3)]
    assert json.dumps(random.get_rng_state()) != text
    for other in range(2):
        fl.manual_seed(other)
        random.set_rng_state(json.loads(text))
        assert json.dumps(random.get_rng_state()) == text
        assert [drawn() for _ in range(3)] == expected


def test_a_state_is_a_copy():
    state = random.get_rng_state()
    text = json.dumps(state)
    random.set_rng_state(state)
    first = drawn()
    assert json.dumps(state) == text
    random.set_rng_state(state)
    assert drawn() == first


def test_a_state_of_a_fork_is_that_of_the_block():
    before = random.get_rng_state()
    with random.fork_rng():
        assert random.get_rng_state() == before
        drawn()
        assert random.get_rng_state() != before
        random.set_rank(1)
    assert random.get_rng_state() == before
    assert random.dropout_stream() == (before["key"], before["calls"])


def test_ranks_differ_in_their_masks_alone():
    found = []
    for rank in range(8):
        fl.manual_seed(0)
        random.set_rank(rank)
        found.append((numbers(), random.get_rng_state(), masks()))
    assert [f[:2] for f in found] == [found[0][:2]] * 8
    assert len({mask for _, _, (mask, _) in found}) == 8
    assert len({key for _, _, (_, (key, _)) in found}) == 8


@pytest.mark.parametrize("rank", [0, 1, 1000])
def test_seeds_and_states_hold_before_and_after_a_rank(rank):
    random.set_rank(0)
    fl.manual_seed(4)
    alone, state = masks(), random.get_rng_state()
    random.set_rank(rank)
    fl.manual_seed(4)
    after = masks()
    random.set_rank(5)
    fl.manual_seed(4)
    random.set_rank(rank)
    assert masks() == after
    assert (after == alone) == (rank == 0)
    again = masks()
    fl.manual_seed(9)
    random.set_rng_state(state)  # which rank 0 saved
    assert masks() == again
    with random.fork_rng():
        random.set_rng_state(state)
        assert masks() == again


def test_masks_of_rank_0_are_those_of_the_seed():
    """The numbers that they were before there were ranks."""
    fl.manual_seed(0)
    key = np.random.SeedSequence((0, 1)).generate_state(1, np.uint64)[0]
    assert random.dropout_stream() == (key, 0)
    random.set_rank(2)
    assert (
        random.dropout_stream()[0]
        == (np.random.SeedSequence((int(key), 2)).generate_state(1, np.uint64)[0])
    )
    random.set_rank(0)
    assert random.dropout_stream() == (key, 2)


def broken(path, value):
    """A state with another value at a place, or without one."""
    state = json.loads(json.dumps(random.get_rng_state()))
    place = state
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return state


INNER = ("generator", "state", "state")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        *[(INNER, value) for value in (-1, 2**128, 1.5, "1", None)],
        (("generator", "bit_generator"), "MT19937"),
        *[(("generator",), value) for value in (None, {}, 3)],
        *[(("generator", "has_uint32"), value) for value in (2**70, "1")],
        *[((name,), value) for name in ("key", "calls") for value in (-1, 2**64, 0.5, "1", None)],
    ],
)
def test_bad_states_change_nothing(path, value):
    state, before = broken(path, value), random.get_rng_state()
    with pytest.raises(
        ValueError, match=r"^set_rng_state: state must be as get_rng_state\(\) give"
    ):
        random.set_rng_state(state)
    assert random.get_rng_state() == before


@pytest.mark.parametrize("state", [None, {}, 3, [1], {"generator": {}}])
def test_states_that_are_none(state):
    with pytest.raises(ValueError, match="^set_rng_state: state must be as .*, got another"):
        random.set_rng_state(state)


@pytest.mark.parametrize(
    ("rank", "kind"), [(-1, ValueError), ("1", TypeError), (1.0, TypeError), (None, TypeError)]
)
def test_bad_ranks(rank, kind):
    before = random.get_rng_state()
    with pytest.raises(kind, match=r"^set_rank: rank must .*, got "):
        random.set_rank(rank)
    assert random.get_rng_state() == before


def test_a_generator_of_its_own():
    random.manual_seed(0)
    before = random.get_rng_state()
    generator = random.Generator("cpu")
    assert generator.manual_seed(3) is generator and generator.initial_seed() == 3
    drawn = generator.numpy.random(3)
    assert random.as_numpy("op", generator) is generator.numpy
    np.testing.assert_array_equal(drawn, np.random.default_rng(3).random(3))
    assert generator.seed() == generator.initial_seed() != 3
    assert random.get_rng_state() == before
    assert random.Generator().initial_seed() == random.Generator().initial_seed()


def test_a_generator_refuses():
    with pytest.raises(RuntimeError, match="Generator: device must be 'cpu', .* got 'cuda'"):
        random.Generator("cuda")
    with pytest.raises(RuntimeError, match="manual_seed: seed must be a 64-bit integer, got 1844"):
        random.Generator().manual_seed(2**64)
    with pytest.raises(TypeError, match="op: generator must be a Generator .* got int"):
        random.as_numpy("op", 3)


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are not forked here")
def test_a_fork_while_another_thread_holds_the_lock():
    held, free = threading.Event(), threading.Event()

    def hold():
        with random._lock:
            held.set()
            free.wait(0.05)  # and then anyway, as the fork waits for the lock

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    process = multiprocessing.get_context("fork").Process(target=random.manual_seed, args=(0,))
    process.start()
    free.set()
    process.join(20)
    code = process.exitcode
    process.kill()
    thread.join()
    assert code == 0
