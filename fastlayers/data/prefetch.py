"""Work ahead of a consumer in one background thread."""

import threading
from collections.abc import Iterator
from queue import SimpleQueue
from typing import TypeVar

T = TypeVar("T")

THREAD_NAME = "fastlayers-DataLoader"


def prefetched(source: Iterator[T], depth: int) -> Iterator[T]:
    """Give the items of `source`, prepared by a daemon thread up to `depth` items ahead.

    The thread starts with the first item asked for. It ends when the source does, or as soon as
    this generator is closed or collected. An exception of the source is raised here, with its
    traceback.
    """
    # The queues are SimpleQueues since this generator may be collected at any moment, even in the
    # worker itself or at interpreter exit: their put() never waits for a lock another one holds.
    permits: SimpleQueue[None] = SimpleQueue()
    ready: SimpleQueue[T | BaseException] = SimpleQueue()
    stop = threading.Event()
    arguments = (source, permits, ready, stop)
    threading.Thread(target=_produce, args=arguments, name=THREAD_NAME, daemon=True).start()
    try:
        for _ in range(depth):
            permits.put(None)
        while not isinstance(item := ready.get(), BaseException):
            permits.put(None)
            yield item
        if not isinstance(item, StopIteration):
            raise item
    finally:
        stop.set()
        permits.put(None)  # wakes a worker that waits for a permit
        item = None  # type: ignore[assignment]  # else error, traceback and frame form a cycle


def _produce(
    source: Iterator[T],
    permits: "SimpleQueue[None]",
    ready: "SimpleQueue[T | BaseException]",
    stop: threading.Event,
) -> None:
    try:
        while True:
            permits.get()
            if stop.is_set():
                return
            ready.put(next(source))
    # Whatever ends the work, be it StopIteration or SystemExit, must reach the waiting consumer.
    except BaseException as error:
        ready.put(error)
