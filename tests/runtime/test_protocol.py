"""No schedule of the pool's threads breaks a region; see `explorer`.

Beyond what these tests run, the scenarios without threads that run, those of one caller with one
worker, and two callers for one place were explored without a bound on preemptions (up to 72,000
schedules each), the other two with up to 2; and 10,000 random schedules of each were run.
"""

from dataclasses import replace

import pytest
from explorer import Fault, Region, Scenario, explore, sample

SCENARIOS = {
    "one after the other": Scenario(((Region(0, 2, 2), Region(1, 3, 2)),)),
    "first more workers": Scenario(((Region(0, 3, 3), Region(1, 2, 2)),)),
    "two callers": Scenario(((Region(0, 2, 2),), (Region(1, 2, 2),)), places=2),
    "two callers for one place": Scenario(((Region(0, 2, 2),), (Region(1, 2, 2),))),
    "nested": Scenario(((Region(0, 2, 2, {0: Region(1, 2, 2)}),),), places=2),
    "nested without a place": Scenario(((Region(0, 2, 2, {1: Region(1, 2, 2)}),),)),
    "workers without a core": Scenario(((Region(0, 3, 3), Region(1, 2, 2)),), runs=False),
    "no threads allowed": Scenario(((Region(0, 3, 3), Region(1, 2, 2)),), threads=0),
    # Works only if the worker does come: a wake-up that is lost is seen.
    "chunks that meet": Scenario(((Region(0, 2, 2), Region(1, 2, 2, meets=True)),)),
}
SYSTEMS = {
    "sleeps": {},
    "waits": {"waits": True},
    "turn over": {"turn_over": True},
    "signals": {"interrupts": 1},
}
# Schedules of one caller with one worker are explored with up to 2 preemptions on each system,
# others with 1, and some further on one system.
SMALL = {"one after the other", "nested", "nested without a place", "chunks that meet"}
DEEP = {"one after the other": 3, "nested without a place": 3, "two callers for one place": 2}
ALONE = {"workers without a core", "no threads allowed"}

# What makes the protocol wrong: the changes, and a scenario that shows it.
WRITES = """\
        store(memory, share + LAST, last)
        store(memory, share + LEFT, (workers << WORKERS_BIT) | (last - first))
"""
CHUNKS_NOT_DONE = "    store(memory, job + PENDING, 2 * count)\n"
CLAIM = "if swap(memory, share + LEFT, word, word - 1):"
RUN = """\
            jobs.run_chunk(memory, job, index, worker)
            done += 1
"""
ANNOUNCE = "    add(memory, SLEEPERS, bit)\n"
SLEEP = "    futex_wait(memory, BOARD, seen, (bit | (bit >> 32)) & ANY)\n"
TELL = "    add(memory, BOARD, 1)\n"
ASLEEP = "    asleep = add(memory, SLEEPERS, 0) & ((1 << (workers - 1)) - 1)\n"
RETURN = "    _await(memory, job)\n    store(memory, job + jobs.TAKEN, 0)\n"
OTHERS = " or word >> WORKERS_BIT <= worker"
MISTAKES = {
    "chunks are left before it is said which": (
        [(WRITES, "".join(reversed(WRITES.splitlines(keepends=True))))],
        "one after the other",
    ),
    "chunks are left before they count as not done": (
        [(CHUNKS_NOT_DONE, ""), (WRITES, WRITES + "    " + CHUNKS_NOT_DONE)],
        "one after the other",
    ),
    "a worker claims from any job": ([(OTHERS, "")], "first more workers"),
    "the last chunk is read before the claim": (
        [
            (
                "        left = word & LEFT_MASK\n",
                "        last, left = LAST_OF, word & LEFT_MASK\n",
            ),
            ("load(memory, share + LAST) - left", "last - left"),
            ("LAST_OF", "load(memory, share + LAST)"),
        ],
        "one after the other",
    ),
    "a claim is two steps": (
        [(CLAIM, "if not store(memory, share + LEFT, word - 1):")],
        "one after the other",
    ),
    "a chunk counts as done before it is": (
        [(RUN, "            _complete(memory, job, 1)\n" + RUN.splitlines(keepends=True)[0])],
        "one after the other",
    ),
    "a caller that sleeps is not seen": (
        [("== 2 * done + 1", "== 2 * done")],
        "one after the other",
    ),
    "a caller sleeps without saying so": (
        [("    add(memory, job + jobs.PENDING, 1)\n", "")],
        "one after the other",
    ),
    "a caller returns before the last chunk is done": (
        [("jobs.PENDING) == 0", "jobs.PENDING) <= 2")],
        "one after the other",
    ),
    "a place is free before its job is done": (
        [(RETURN, "".join(reversed(RETURN.splitlines(keepends=True))))],
        "two callers for one place",
    ),
    "a worker's turn ends with chunks that it does not count": (
        [
            (
                "                _complete(memory, job, done)\n                done",
                "                done",
            )
        ],
        "one after the other",
    ),
    "a worker sleeps, then says so": (
        [(ANNOUNCE, ""), (SLEEP, SLEEP + ANNOUNCE)],
        "chunks that meet",
    ),
    "a worker sleeps whatever it has seen": (
        [(SLEEP, SLEEP.replace("seen", "load(memory, BOARD)"))],
        "chunks that meet",
    ),
    "a caller looks for sleepers, then tells of the job": (
        [(TELL, ""), (ASLEEP, ASLEEP + TELL)],
        "chunks that meet",
    ),
    "two callers start workers": (
        [("if swap(memory, STARTING, 0, 1):", "if not store(memory, STARTING, 1):")],
        "two callers",
    ),
}


# With more preemptions than others.
HARD = {
    "the last chunk is read before the claim": 3,
    "a place is free before its job is done": 2,
}


def bound(name):
    return 2 if name in SMALL else 1


@pytest.mark.parametrize("name", SCENARIOS)
def test_schedules(name):
    for system in SYSTEMS.values():
        found = explore(replace(SCENARIOS[name], **system), preemptions=bound(name))
        assert found.schedules >= (1 if name in ALONE else 400)


@pytest.mark.parametrize("name", DEEP)
def test_more_preemptions(name):
    found = explore(SCENARIOS[name], preemptions=DEEP[name])
    assert found.schedules >= 1000
    assert found.caller_slept >= 50


def test_switches_at_each_step():
    found = explore(replace(SCENARIOS["one after the other"], fine=True), preemptions=2)
    assert found.schedules >= 1500
    assert found.caller_slept >= 50


@pytest.mark.parametrize("name", SCENARIOS)
def test_random_schedules(name):
    found = sample(SCENARIOS[name], 500)
    assert name in ALONE or found.caller_slept >= 10


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_found(mistake):
    changes, name = MISTAKES[mistake]
    with pytest.raises(Fault):
        for system in SYSTEMS.values():
            scenario = replace(SCENARIOS[name], fine=True, **system)
            explore(scenario, tuple(changes), HARD.get(mistake, bound(name)))


def test_stores_must_release():
    with pytest.raises(Fault, match="may read"):
        sample(SCENARIOS["one after the other"], 500, releases=False)
