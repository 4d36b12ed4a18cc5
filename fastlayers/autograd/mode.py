"""Whether this thread records what it computes: `no_grad` and its relatives."""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable
from typing import Any

__all__ = ["enable_grad", "inference_mode", "is_grad_enabled", "no_grad", "set_grad_enabled"]


class _Mode(threading.local):
    """Whether this thread records."""

    def __init__(self) -> None:
        self.enabled = True


thread = _Mode()


def is_grad_enabled() -> bool:
    """Whether ops are recorded in this thread."""
    return thread.enabled


class _Context:
    """A context, or decorator of functions and generators, in which `enabled` holds."""

    enabled: bool

    def __init__(self) -> None:
        self._before: list[bool] = []

    def __enter__(self) -> None:
        self._before.append(thread.enabled)
        thread.enabled = self.enabled

    def __exit__(self, *error: object) -> None:
        thread.enabled = self._before.pop()

    def _again(self) -> _Context:
        """A context of its own for each call, so that a function may call itself."""
        context = _Context()
        context.enabled = self.enabled
        return context

    def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:
        if inspect.isgeneratorfunction(function):

            @functools.wraps(function)
            def generate(*args: Any, **kwargs: Any) -> Any:
                return _in_context(self._again, function(*args, **kwargs))

            return generate

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            with self._again():
                return function(*args, **kwargs)

        return call


def _in_context(context: Callable[[], _Context], generator: Any) -> Any:
    """Run the code of a generator in the context, and that of its consumer outside of it."""
    resume: Callable[[], Any] = functools.partial(next, generator)
    while True:
        try:
            with context():
                item = resume()
        except StopIteration as stop:
            return stop.value
        try:
            sent = yield item
        except GeneratorExit:
            with context():
                generator.close()
            raise
        except BaseException as error:  # the generator may handle it
            resume = functools.partial(generator.throw, error)
        else:
            resume = functools.partial(generator.send, sent)


class _Switch(_Context):
    """A context with or without a call: ``@no_grad`` is ``@no_grad()``."""

    def __new__(cls, function: Callable[..., Any] | None = None) -> Any:
        if function is None:
            return super().__new__(cls)
        return cls()(function)

    def __init__(self, function: Callable[..., Any] | None = None) -> None:
        super().__init__()


class no_grad(_Switch):  # noqa: N801  PyTorch's name
    """Context, or decorator of functions and generators, in which this thread records nothing."""

    enabled = False


class enable_grad(_Switch):  # noqa: N801  PyTorch's name
    """Context, or decorator, in which this thread records, also within `no_grad`."""

    enabled = True


class inference_mode(_Context):  # noqa: N801  PyTorch's name
    """`no_grad` under another name; with ``mode=False``, `enable_grad`.

    What is computed in it may take part in recorded ops later on, which PyTorch forbids.
    """

    def __new__(cls, mode: bool | Callable[..., Any] = True) -> Any:  # noqa: D102
        if callable(mode):
            return cls()(mode)
        return super().__new__(cls)

    def __init__(self, mode: bool = True) -> None:
        super().__init__()
        self.enabled = not mode


class set_grad_enabled(_Context):  # noqa: N801  PyTorch's name
    """Record from now on or not; as a context or decorator, until its end."""

    def __init__(self, mode: bool) -> None:
        super().__init__()
        self.enabled = bool(mode)
        self._outer = is_grad_enabled()
        thread.enabled = self.enabled

    def __enter__(self) -> None:
        self._before.append(self._outer)
        thread.enabled = self.enabled

    def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:  # noqa: D102
        thread.enabled = self._outer
        return super().__call__(function)
