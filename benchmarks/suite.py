"""What the classes of the asv suite share: their parameters, set-up and attributes.

asv starts a process for each benchmark and parameter, and calls `setup` before each sample; the
result of `prepared` is kept, so that only the first call draws arrays and warms up. A sample is one
call: a call of 10 us is timed to 1 %. With FASTLAYERS_BENCHMARKS=marked only the layers of the
quick subset are measured.
"""

from __future__ import annotations

import functools
import os
from abc import ABC, abstractmethod
from typing import Any

from benchmarks.cases import Work, marked, tracked

__all__ = ["Attributes", "Pass", "prepared"]


class Attributes:
    """How asv measures: 100 calls or 0.4 s per process, and two processes."""

    timeout = 300
    rounds = 2
    repeat = (5, 100, 0.4)
    warmup_time = 0.05
    # Pinned, so that the history survives changes of code for the same work.
    version = "1"


@functools.lru_cache(maxsize=1)
def prepared(op: str, which: str, layer: str) -> Work:
    """The pass, warmed up: compiled on a small input, and called once on its own arrays."""
    case, batch = tracked(op, which)[layer]
    case.small().work(2, which)()
    work = case.work(batch, which)
    work()
    return work


class Pass(ABC, Attributes):
    """One pass of an op with the layers of the table; subclasses name both.

    Attributes
    ----------
    marked : list of str
        The parameters in the quick subset.
    """

    which = "forward"
    param_names = ("layer",)

    @property
    @abstractmethod
    def op(self) -> str:
        """A name of the table."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls.marked = marked(cls.op, cls.which)
        few = os.environ.get("FASTLAYERS_BENCHMARKS") == "marked"
        cls.params = [cls.marked if few else list(tracked(cls.op, cls.which))]

    def setup(self, layer: str) -> None:
        """Bind the pass to its arrays."""
        self.work = prepared(self.op, self.which, layer)

    def time_run(self, layer: str) -> None:
        """Steady state."""
        self.work()
