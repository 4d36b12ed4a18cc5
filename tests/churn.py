"""A thread's random use of the pool, in which every live array holds a number of its own.

``python tests/churn.py SEED`` forks, and both processes go on.
"""

import gc
import os
import random
import sys
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np

from fastlayers.runtime import memory

# Words of an array: the smallest that the pool lends, ones that share a block with it, larger ones.
SMALLEST = memory.SMALLEST_BLOCK // 8
SIZES = (SMALLEST, SMALLEST, SMALLEST + 1, SMALLEST + 500, 2 * SMALLEST, 3 * SMALLEST)
MOST = 40  # arrays that live at a time

VIEWS: tuple[Callable[[np.ndarray], Any], ...] = (
    lambda a: a,
    lambda a: a[7:],
    lambda a: a[3:][::2],
    lambda a: a[::-1][5:-5].reshape(2, -1).T if a.size % 2 == 0 else a[1:-1],
    lambda a: np.asarray(memoryview(a)[11:]),
    lambda a: a.view(np.int64)[4:].view(np.uint64),
    lambda a: np.broadcast_to(a[9:10], (3, 5)),
    lambda a: a.base[2:],
    lambda a: np.frombuffer(a, np.uint64, 6, 16),
    lambda a: np.lib.stride_tricks.as_strided(a, (5, 5), (8, 8)),
)


class Node:
    """Garbage that only a collection finds; some give what they hold back to life."""

    def __init__(self, held: Any, back: deque | None) -> None:
        self.held, self.back, self.me = held, back, self

    def __del__(self) -> None:
        if self.back is not None:
            self.back.append(self.held)


class Churn:
    """Takes arrays, keeps views of them in many ways, and drops them; counts what was checked."""

    def __init__(self, seed: int) -> None:
        self.seed, self.random = seed, random.Random(seed)
        self.live: deque[tuple[Any, int]] = deque()
        self.number = self.checked = 0

    def take(self) -> tuple[Any, int]:
        """An array, or a view of one that is not kept otherwise, and the number in it."""
        self.number += 1
        value = self.seed << 32 | self.number
        array = memory.empty(self.random.choice(SIZES), np.uint64)
        array.fill(value)
        return self.random.choice(VIEWS)(array), value

    def check(self, held: tuple[Any, int]) -> None:
        view, value = held
        self.checked += 1
        if not (view == value).all():
            raise AssertionError(f"seed {self.seed}: array {value & 0xFFFFFFFF} was overwritten")

    def fail(self) -> None:
        """Raise, with an array in the frame, which the error's traceback keeps."""
        held = self.take()
        self.check(held)
        raise ValueError(held)

    def step(self) -> None:
        chance, live = self.random.random(), self.live
        if chance < 0.04:  # a cycle, which may come back
            live.append(self.take())
            Node(live.pop(), live if chance < 0.02 else None)
        elif chance < 0.06:  # a cycle of an error, its frame and itself
            try:
                self.fail()
            except ValueError as error:
                kept = error
                live.append(kept.args[0])
        elif chance < 0.09:  # whose end takes an array
            held = self.take()
            reference = weakref.ref(held[0], lambda _: live.append(self.take()))
            self.check((reference(), held[1]))
            live.append(held)
            Node(reference, None)
        elif chance < 0.14:  # a call inside a call
            outer = memory.scratch((5000, 100), np.uint64)
            outer[0].fill(self.number)
            inner = memory.scratch((5000, 100), np.uint64)
            inner[0].fill(self.number + 1)
            self.check((outer[0], self.number))
        elif chance < 0.142:
            gc.collect()
        elif chance < 0.145:
            memory.empty_cache()
        else:
            live.append(self.take())
        while len(live) > MOST:
            live.rotate(self.random.randrange(MOST))
            self.check(live.popleft())

    def run(self, steps: int) -> int:
        for _ in range(steps):
            self.step()
        return self.finish()

    def finish(self) -> int:
        """Check what lives; gives how many arrays were checked in all."""
        for _ in range(len(self.live)):  # a collection may add to it
            self.live.rotate()
            self.check(self.live[0])
        return self.checked


def fork(seed: int) -> None:
    churn = Churn(seed)
    for _ in range(5):
        churn.run(500)
        child = os.fork()
        churn.seed += child == 0
        churn.run(500)
        if child == 0:
            os._exit(0)
        if os.waitpid(child, 0)[1]:
            raise AssertionError(f"seed {seed}: the child failed")
        churn.finish()
    print(churn.checked)


if __name__ == "__main__":
    fork(int(sys.argv[1]))
