"""Interleavings of the pool's threads, systematically, in the manner of CHESS and loom.

The source of `runtime.pool` and `runtime.jobs` itself is explored, not a copy: each use of shared
memory or of the system becomes a `yield`, so that a function is a generator and a thread a
generator that calls others. `Simulation` holds the words, the futexes and the threads, runs one
thread for one such step at a time, and raises `Fault` when something is wrong. `explore` goes
through all schedules, depth first, by running the program again for each, and leaves a schedule
when it comes to a state that is known. `sample` runs random ones.

Memory is sequentially consistent here: a load sees the latest store. The pool's loads acquire and
its stores release, which is less, but enough, because each decision rests on one word (`LEFT`,
`PENDING`, `TAKEN`): that is changed by atomic exchanges and additions while others look at it, and
all else is written before it and read after it. `sample` checks the latter: it follows with vector
clocks what happens before what by acquiring and releasing, and raises `Fault` if a job's fields, or
what chunks read and write, are not ordered by that. Two words decide only whether a worker sleeps
through a job: it sets its bit in `SLEEPERS`, and the system then looks at `BOARD`; the caller
changes `BOARD` and then looks at `SLEEPERS`, by additions both, which don't pass each other.
"""

from __future__ import annotations

import ast
import functools
import inspect
import random
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from types import CodeType, SimpleNamespace
from typing import Any

from fastlayers.runtime import jobs, pool, system, words

ANY = 0xFFFFFFFF  # the half of a word that is a futex, and all bits of one
STEPS = 5000  # of all threads, after which a schedule counts as endless
FOREVER = 1 << 40
PRIMITIVES = {*words.__all__, *system.__all__, "_spawn"} - {"call"}
# Steps that others cannot see, and those that need not be told from the next one.
LOCAL = {"clock", "core", "cpu_time", "leave_core", "launched", "returned", "words"}
LOCAL |= {"give_way", "relax"}
Changes = tuple[tuple[str, str], ...]


class Fault(Exception):
    """What a schedule has shown to be wrong."""


@dataclass(frozen=True, eq=False)
class Region:
    """A parallel region, and the regions inside its chunks."""

    number: int
    count: int
    workers: int
    nested: dict[int, Region] = field(default_factory=dict)
    meets: bool = False  # each chunk waits until all have begun

    @property
    def chunks(self) -> int:
        """A bit for each chunk; regions have 8 at most."""
        return ((1 << self.count) - 1) << 8 * self.number


@dataclass(frozen=True)
class Scenario:
    """What the callers do, and what the system does.

    Time stands still, so that a thread waits in a loop either for one round or without end, and a
    turn is either over at once or never.
    """

    callers: tuple[tuple[Region, ...], ...]
    places: int = 1  # for jobs
    waits: bool = False  # in loops without end; otherwise threads sleep as soon as they can
    turn_over: bool = False
    disturbed: bool = False  # the callers
    threads: int = 64  # that the system allows
    runs: bool = True  # whether workers ever get a core
    interrupts: int = 0  # of sleeping threads, by signals
    # Whether threads may be switched also at a job's fields and between the claim of a chunk and
    # its begin. They need not, as `sample` shows that these are ordered by other words.
    fine: bool = False

    def constants(self) -> dict[str, int]:
        patience = FOREVER if self.waits else 0
        names = ("PATIENCE", "CALLER_PATIENCE", "SHORT_PATIENCE")
        turn = -1 if self.turn_over else FOREVER
        return {
            "JOBS": self.places,
            "LOOKS": 1,
            "TURN": turn,
            "PERIOD": turn,
            "LOST": turn,
            **dict.fromkeys(names, patience),
        }


class _Steps(ast.NodeTransformer):
    """Turn functions into generators that yield each use of a primitive.

    All values received are named, so that a function's variables and the place where it stands are
    all there is to know of it.
    """

    def __init__(self, functions: set[str]) -> None:
        self.functions, self.values = functions, 0

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        self.generic_visit(node)
        node.decorator_list, node.returns = [], None
        for argument in node.args.args:
            argument.annotation = None
        return node

    def visit_Call(self, node: ast.Call) -> ast.expr:
        self.generic_visit(node)
        name = node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id
        value: ast.expr
        if name in PRIMITIVES:
            value = ast.Yield(ast.Tuple([ast.Constant(name), *node.args], ast.Load()))
        elif name in self.functions:
            value = ast.YieldFrom(node)
        else:
            return node
        self.values += 1
        return ast.NamedExpr(ast.Name(f"value_{self.values}", ast.Store()), value)


def _is_kernel(node: ast.stmt) -> bool:
    return isinstance(node, ast.FunctionDef) and any(
        ast.unparse(decorator).startswith("kernel") for decorator in node.decorator_list
    )


@functools.cache
def _compiled(changes: Changes) -> list[CodeType]:
    texts = [inspect.getsource(module) for module in (jobs, pool)]
    for old, new in changes:
        assert sum(text.count(old) for text in texts) == 1, f"not once in the source: {old!r}"
        texts = [text.replace(old, new) for text in texts]
    kernels = [[node for node in ast.parse(text).body if _is_kernel(node)] for text in texts]
    functions = {node.name for nodes in kernels for node in nodes}
    steps = _Steps(functions | {"call"})
    modules = [ast.Module([steps.visit(node) for node in nodes], []) for nodes in kernels]
    return [compile(ast.fix_missing_locations(module), "steps", "exec") for module in modules]


def protocol(changes: Changes = (), **constants: int) -> dict[str, Any]:
    """The pool's functions as generators, with some of their text and constants changed."""
    spaces = []
    for module, code in zip((jobs, pool), _compiled(changes), strict=True):
        space = {name: value for name, value in vars(module).items() if isinstance(value, int)}
        space |= {name: value for name, value in constants.items() if name in space}
        space |= {"call": lambda *given: _chunk(functions["run"], *given)}
        if spaces:
            space["jobs"] = SimpleNamespace(**spaces[0])
        exec(code, space)
        spaces.append(space)
    functions: dict[str, Any] = spaces[1]
    return functions


def _launch(run: Any, region: Region) -> Iterator[Any]:
    yield ("launched", region)
    yield from run(100 + region.number, 200 + region.number, region.count, region.workers)
    yield ("returned", region)


def _chunk(run: Any, chunk: int, context: int, index: int, worker: int) -> Iterator[Any]:
    region = yield ("begin", chunk, context, index, worker)
    if region.meets:
        yield ("meet", region)
    if index in region.nested:
        yield from _launch(run, region.nested[index])
    yield ("end", region, index, worker)


def _caller(run: Any, regions: Sequence[Region]) -> Iterator[Any]:
    for region in regions:
        yield from _launch(run, region)


class Thread:
    def __init__(self, number: int, body: Generator[Any, Any, None]) -> None:
        self.number, self.body = number, body
        self.request: tuple[Any, ...] = ()
        self.asleep: tuple[int, int] | None = None
        # In a waiting loop without end: whether another thread has changed a word since the last
        # round, and whether this one waits until one does.
        self.news, self.waits, self.ended = True, False, False
        self.known: int | None = None

    def advance(self, value: Any) -> None:
        """Go on to the next step."""
        self.known = None
        try:
            self.request = self.body.send(value)
        except StopIteration:
            self.ended = True
            self.request = ("end of thread",)

    def key(self) -> int:
        """Where the thread stands, and its variables."""
        if self.known is None:
            parts: list[Any] = []
            body: Any = self.body
            while body is not None and body.gi_frame is not None:
                parts += (body.gi_frame.f_lasti, *body.gi_frame.f_locals.items())
                body = body.gi_yieldfrom
            self.known = hash(tuple(parts))
        return self.known


@functools.cache
def is_private(at: int) -> bool:
    """Whether a word is of one thread alone, as `own` checks."""
    if at < jobs.FIRST:
        return at >= pool.THREAD
    return jobs.OWN <= (at - jobs.FIRST) % jobs.SIZE < jobs.SHARES


@functools.cache
def is_field(at: int) -> bool:
    """Whether a word is a share's `LAST`."""
    of_share = (at - jobs.FIRST) % jobs.SIZE - jobs.SHARES
    return at >= jobs.FIRST and of_share >= 0 and of_share % jobs.LINE == jobs.LAST


class Simulation:
    """Words, futexes and threads. Threads are numbered: first the workers from 1, then callers."""

    def __init__(self, functions: dict[str, Any], scenario: Scenario) -> None:
        self.functions, self.scenario = functions, scenario
        self.memory: dict[int, int] = {}
        self.digest = 0  # of the memory
        self.threads: dict[int, Thread] = {}
        self.owners: dict[int, int] = {}
        self.regions: dict[int, Region] = {}
        self.begun = self.ended = self.running = 0  # bits of chunks, and of workers in chunks
        self.interrupts = scenario.interrupts
        self.current, self.gave_way, self.caller_slept = 0, True, False
        self.log: list[tuple[int, tuple[Any, ...]]] = []  # steps and their threads
        if scenario.disturbed:
            self.memory[pool.CALLER_DISTURBED] = FOREVER
        for number, regions in enumerate(scenario.callers, 100):
            self.begin_thread(number, _caller(functions["run"], regions))

    # Scheduling.

    def begin_thread(self, number: int, body: Any) -> None:
        self.threads[number] = Thread(number, body)
        self.go_on(self.threads[number], None)

    def go_on(self, thread: Thread, value: Any) -> None:
        """Advance a thread to its next step that others can see."""
        thread.advance(value)
        while not thread.ended and self.is_local(*thread.request):
            name, *given = thread.request
            thread.advance(getattr(self, name)(thread, *given))

    def is_local(self, name: str, *given: Any) -> bool:
        if name in ("load", "store"):
            return is_private(given[1]) or (not self.scenario.fine and is_field(given[1]))
        if name in ("begin", "load_pointer", "store_pointer"):
            return not self.scenario.fine
        return name in LOCAL

    def can_run(self, thread: Thread) -> bool:
        if thread.asleep is not None:
            return self.interrupts > 0
        if thread.ended or thread.waits:
            return False
        if thread.number < 100 and not self.scenario.runs:
            return False
        if thread.request[0] == "meet":
            region = thread.request[1]
            return self.begun & region.chunks == region.chunks
        return True

    def runnable(self) -> list[int]:
        return [number for number, thread in self.threads.items() if self.can_run(thread)]

    def stuck(self) -> bool:
        """Whether no thread can run, but by a signal."""
        return all(t.asleep is not None or not self.can_run(t) for t in self.threads.values())

    def step(self, number: int) -> None:
        thread = self.threads[number]
        self.current, self.gave_way = number, False
        self.log.append((number, thread.request))
        if len(self.log) > STEPS:
            raise Fault("no end")
        if thread.asleep is not None:
            self.interrupts -= 1
            self.wake_up(thread)
            return
        name, *given = thread.request
        value = getattr(self, name)(thread, *given)
        if thread.asleep is None:
            self.go_on(thread, value)

    def wake_up(self, thread: Thread) -> None:
        thread.asleep = None
        self.go_on(thread, None)

    def key(self) -> int:
        """All that decides what comes next."""
        threads = tuple(
            (number, t.key(), t.asleep, t.news, t.waits) for number, t in self.threads.items()
        )
        state = (self.digest, self.begun, self.ended, self.running, self.interrupts, threads)
        return hash(state)

    def story(self) -> str:
        """The schedule up to now."""
        lines = (f"{number:4d} {name}{given}" for number, (name, *given) in self.log[-200:])
        return "\n".join(["thread and step:", *lines])

    def finish(self) -> None:
        """Check the last state, in which no thread can go on."""
        for number, thread in self.threads.items():
            if number >= 100 and not thread.ended:
                raise Fault(f"caller {number} waits for ever, before {thread.request}")
        for k in range(self.scenario.places):
            job = jobs.FIRST + k * jobs.SIZE
            left = [self.at(job + jobs.SHARES + k * jobs.LINE) & jobs.LEFT_MASK for k in range(8)]
            if self.at(job + jobs.TAKEN) or any(left):
                raise Fault(f"place {k} is not free in the end, left: {left}")

    # Primitives.

    def at(self, at: int) -> int:
        return self.memory.get(at, 0)

    def set(self, thread: Thread, at: int, value: int) -> None:
        old = self.at(at)
        if old == value:
            return
        self.memory[at] = value
        self.digest ^= hash((at, old)) ^ hash((at, value))
        if self.scenario.waits and not is_private(at):
            for other in self.threads.values():
                if other is not thread:
                    other.news, other.waits = True, False

    def own(self, thread: Thread, at: int) -> None:
        """Check that a private word is of one thread, or of who has taken the job."""
        place = (at - jobs.FIRST) // jobs.SIZE
        key = at // jobs.LINE if at < jobs.FIRST else -1 - place
        if self.owners.setdefault(key, thread.number) != thread.number:
            raise Fault(f"threads {self.owners[key]} and {thread.number} use word {at}")

    def load(self, thread: Thread, memory: Any, at: int) -> int:
        if is_private(at):
            self.own(thread, at)
        return self.at(at)

    def store(self, thread: Thread, memory: Any, at: int, value: int) -> None:
        if is_private(at):
            self.own(thread, at)
        if (at - jobs.FIRST) % jobs.SIZE == jobs.TAKEN:
            self.owners.pop(-1 - (at - jobs.FIRST) // jobs.SIZE, None)
        self.set(thread, at, value)

    load_pointer, store_pointer = load, store

    def add(self, thread: Thread, memory: Any, at: int, value: int) -> int:
        old = self.at(at)
        self.set(thread, at, old + value)
        return old

    def swap(self, thread: Thread, memory: Any, at: int, expected: int, value: int) -> bool:
        if self.at(at) != expected:
            return False
        self.set(thread, at, value)
        return True

    def futex_wait(self, thread: Thread, memory: Any, at: int, value: int, bits: int) -> None:
        if self.at(at) & ANY == value & ANY:
            thread.asleep = (at, bits)
            self.caller_slept |= at != pool.BOARD

    def futex_wake(self, thread: Thread, memory: Any, at: int, bits: int) -> None:
        for other in self.threads.values():
            if other.asleep is not None and other.asleep[0] == at and other.asleep[1] & bits:
                self.wake_up(other)

    def relax(self, thread: Thread) -> None:
        self.gave_way = True
        if self.scenario.waits:
            thread.waits, thread.news = not thread.news, False

    def give_way(self, thread: Thread) -> None:
        self.gave_way = True

    def _spawn(self, thread: Thread, serve: Any, memory: Any, worker: int) -> int:
        if worker > self.scenario.threads:
            return 11
        if worker in self.threads:
            raise Fault(f"worker {worker} is started twice")
        self.begin_thread(worker, serve(memory, worker))
        return 0

    def clock(self, thread: Thread) -> int:
        return 1

    def core(self, thread: Thread) -> int:
        return 0

    def leave_core(self, thread: Thread, core: int) -> None:
        pass

    def cpu_time(self, thread: Thread) -> int:
        return 1

    def words(self, thread: Thread) -> int:
        return 0

    # Regions.

    def launched(self, thread: Thread, region: Region) -> None:
        self.regions[100 + region.number] = region

    def begin(self, thread: Thread, chunk: int, context: int, index: int, worker: int) -> Region:
        region = self.regions.get(chunk)
        if region is None or context != 100 + chunk:
            raise Fault(f"chunk {chunk} is called with context {context}")
        if not 0 <= index < region.count or self.begun & self.chunk(region, index):
            raise Fault(f"chunk {index} of region {region.number} is not there to be done")
        if not 0 <= worker < min(region.workers, region.count):
            raise Fault(f"worker {worker} in a region of {region.workers}")
        if self.running & self.chunk(region, worker):
            raise Fault(f"worker {worker} of region {region.number} is in two threads")
        self.begun |= self.chunk(region, index)
        self.running |= self.chunk(region, worker)
        return region

    def chunk(self, region: Region, index: int) -> int:
        return 1 << (8 * region.number + index)

    def meet(self, thread: Thread, region: Region) -> None:
        pass

    def end(self, thread: Thread, region: Region, index: int, worker: int) -> None:
        self.ended |= self.chunk(region, index)
        self.running &= ~self.chunk(region, worker)

    def returned(self, thread: Thread, region: Region) -> None:
        if self.ended & region.chunks != region.chunks:
            raise Fault(f"region {region.number} returns before its chunks are done")


@dataclass
class Found:
    """How much was explored."""

    schedules: int = 0
    states: int = 0
    caller_slept: int = 0  # schedules in which a caller did


def explore(scenario: Scenario, changes: Changes = (), preemptions: int | None = None) -> Found:
    """Go through all schedules, or those in which a thread is preempted at most so often."""
    functions = protocol(changes, **scenario.constants())
    found, known = Found(), dict[int, int]()
    rest = [(b"", FOREVER if preemptions is None else preemptions)]
    while rest:
        schedule, left = rest.pop()
        run = Simulation(functions, scenario)
        try:
            for number in schedule:
                run.step(number)
            rest += _follow(run, schedule, left, known, preemptions is not None)
        except Fault as fault:
            fault.add_note(run.story())
            raise
        found.schedules += 1
        found.caller_slept += run.caller_slept
    found.states = len(known)
    return found


def _follow(
    run: Simulation, schedule: bytes, left: int, known: dict[int, int], bounded: bool
) -> Iterator[tuple[bytes, int]]:
    """Run to the end or to a known state; schedules that branch off, with preemptions left."""
    while True:
        if run.stuck():
            run.finish()
        runnable = run.runnable()
        key = hash((run.key(), run.current, run.gave_way)) if bounded else run.key()
        if not runnable or known.get(key, -1) >= left:
            return
        known[key] = left
        goes_on = run.current in runnable and run.threads[run.current].asleep is None
        first = run.current if goes_on else runnable[0]
        cost = int(bounded and goes_on and not run.gave_way)
        if left >= cost:
            for other in runnable:
                if other != first:
                    yield schedule + bytes([other]), left - cost
        run.step(first)
        schedule += bytes([first])


class Ordered(Simulation):
    """A simulation that follows what happens before what, on a system that does as it likes.

    A word's clocks hold how far each thread was, as far as who stored the word knew.
    """

    def __init__(
        self, functions: dict[str, Any], scenario: Scenario, chance: random.Random, releases: bool
    ) -> None:
        self.chance, self.releases, self.now = chance, releases, 1
        self.clocks: dict[int, dict[int, int]] = {}
        self.words_clocks: dict[int, dict[int, int]] = {}
        self.written: dict[Any, tuple[int, int]] = {}
        self.read: dict[Any, dict[int, int]] = {}
        super().__init__(functions, scenario)

    def begin_thread(self, number: int, body: Any) -> None:
        known = self.clocks.get(self.current, {}) if number < 100 else {}
        self.clocks[number] = {**known, number: 1}
        super().begin_thread(number, body)

    def acquire(self, thread: Thread, at: int) -> None:
        _join(self.clocks[thread.number], self.words_clocks.get(at, {}))

    def release(self, thread: Thread, at: int, clocks: dict[int, int]) -> None:
        own = self.clocks[thread.number]
        _join(clocks, own)
        self.words_clocks[at] = clocks
        own[thread.number] += 1

    def note_read(self, thread: Thread, what: Any) -> None:
        clocks = self.clocks[thread.number]
        writer, when = self.written.get(what, (thread.number, 0))
        if clocks.get(writer, 0) < when:
            raise Fault(f"{thread.number} may read {what} as it was before {writer} wrote it")
        self.read.setdefault(what, {})[thread.number] = clocks[thread.number]

    def note_write(self, thread: Thread, what: Any) -> None:
        self.note_read(thread, what)
        clocks = self.clocks[thread.number]
        if any(clocks.get(reader, 0) < when for reader, when in self.read[what].items()):
            raise Fault(f"{thread.number} may write {what} while others read it: {self.read[what]}")
        self.written[what], self.read[what] = (thread.number, clocks[thread.number]), {}

    def load(self, thread: Thread, memory: Any, at: int) -> int:
        if is_private(at) or is_field(at):
            self.note_read(thread, at)
        else:
            self.acquire(thread, at)
        return super().load(thread, memory, at)

    def store(self, thread: Thread, memory: Any, at: int, value: int) -> None:
        if is_private(at) or is_field(at):
            self.note_write(thread, at)
        elif self.releases:
            self.release(thread, at, {})
        super().store(thread, memory, at, value)

    def load_pointer(self, thread: Thread, memory: Any, at: int) -> int:
        self.note_read(thread, at)
        return self.at(at)

    def store_pointer(self, thread: Thread, memory: Any, at: int, value: int) -> None:
        self.note_write(thread, at)
        self.set(thread, at, value)

    def add(self, thread: Thread, memory: Any, at: int, value: int) -> int:
        self.acquire(thread, at)
        self.release(thread, at, dict(self.words_clocks.get(at, {})))
        return super().add(thread, memory, at, value)

    def swap(self, thread: Thread, memory: Any, at: int, expected: int, value: int) -> bool:
        self.acquire(thread, at)
        if self.at(at) == expected:
            self.release(thread, at, dict(self.words_clocks.get(at, {})))
        return super().swap(thread, memory, at, expected, value)

    def clock(self, thread: Thread) -> int:
        self.now += self.chance.randrange(3)
        return self.now

    def core(self, thread: Thread) -> int:
        return self.chance.randrange(2)

    def cpu_time(self, thread: Thread) -> int:
        return self.chance.randrange(2)

    def launched(self, thread: Thread, region: Region) -> None:
        super().launched(thread, region)
        self.note_write(thread, f"context {region.number}")

    def begin(self, thread: Thread, chunk: int, context: int, index: int, worker: int) -> Region:
        region = super().begin(thread, chunk, context, index, worker)
        self.note_read(thread, f"context {region.number}")
        return region

    def end(self, thread: Thread, region: Region, index: int, worker: int) -> None:
        self.note_write(thread, f"result {index} of {region.number}")
        super().end(thread, region, index, worker)

    def returned(self, thread: Thread, region: Region) -> None:
        super().returned(thread, region)
        for index in range(region.count):
            self.note_read(thread, f"result {index} of {region.number}")
        self.note_write(thread, f"context {region.number}")


def _join(clocks: dict[int, int], others: dict[int, int]) -> None:
    for number, when in others.items():
        clocks[number] = max(clocks.get(number, 0), when)


def sample(
    scenario: Scenario, count: int, seed: int = 0, changes: Changes = (), releases: bool = True
) -> Found:
    """Run random schedules, with a clock, cores and signals that are random too."""
    chance, found = random.Random(seed), Found()
    patience = ("PATIENCE", "CALLER_PATIENCE", "SHORT_PATIENCE")
    constants = dict.fromkeys(patience, 3) | {"LOOKS": 2, "TURN": 2, "PERIOD": 1, "LOST": 0}
    functions = protocol(changes, **scenario.constants() | constants)
    for _ in range(count):
        options = {"disturbed": chance.random() < 0.2, "interrupts": chance.randrange(3)}
        run = Ordered(functions, replace(scenario, fine=True, **options), chance, releases)
        stays = chance.choice((0.0, 0.5, 0.9, 0.97))
        try:
            while not run.stuck():
                runnable = run.runnable()
                goes_on = run.current in runnable and chance.random() < stays
                run.step(run.current if goes_on else chance.choice(runnable))
            run.finish()
        except Fault as fault:
            fault.add_note(run.story())
            raise
        found.schedules += 1
        found.caller_slept += run.caller_slept
    return found
