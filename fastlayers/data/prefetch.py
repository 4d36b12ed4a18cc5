"""Work ahead of a consumer in one background thread."""

import contextvars
import threading
import weakref
from collections.abc import Iterator
from queue import SimpleQueue
from typing import TypeVar

T = TypeVar("T")

THREAD_NAME = "fastlayers-DataLoader"


class _Consumer:
    """Lives as long as somebody may ask for an item."""

    __slots__ = ("__weakref__",)


def prefetched(source: Iterator[T], depth: int) -> Iterator[T]:
    """Give the items of `source`, prepared by a daemon thread up to `depth` items ahead.

    The thread starts with the first item asked for, in the context of who asks (its
    `fastlayers.random.fork_rng`). It ends when the source does, or, after the item that it is
    at, as soon as this generator is closed or collected. An exception of the source is raised
    here, with its traceback.
    """
    # The queues are SimpleQueues since this generator may be collected at any moment, even in the
    # worker itself or at interpreter exit: their put() never waits for a lock another one holds.
    permits: SimpleQueue[object] = SimpleQueue()
    ready: SimpleQueue[T | BaseException] = SimpleQueue()
    consumer = _Consumer()
    # The consumer's death wakes a worker that waits for a permit. No Python code runs for that, so
    # there is no line at which a KeyboardInterrupt could leave the worker waiting.
    gone = weakref.ref(consumer, permits.put)
    arguments = (_produce, source, permits, ready, gone)
    run = contextvars.copy_context().run
    try:
        threading.Thread(target=run, args=arguments, name=THREAD_NAME, daemon=True).start()
        for _ in range(depth):
            permits.put(None)
        while not isinstance(item := ready.get(), BaseException):
            permits.put(None)
            yield item
        if not isinstance(item, StopIteration):
            raise item
    finally:
        del consumer  # also from a traceback's frame
        item = None  # type: ignore[assignment]  # else error, traceback and frame form a cycle


def _produce(
    source: Iterator[T],
    permits: "SimpleQueue[object]",
    ready: "SimpleQueue[T | BaseException]",
    gone: "weakref.ref[_Consumer]",
) -> None:
    try:
        while True:
            permits.get()
            if gone() is None:
                return
            ready.put(next(source))
    # Whatever ends the work, be it StopIteration or SystemExit, must reach the waiting consumer.
    except BaseException as error:
        ready.put(error)
