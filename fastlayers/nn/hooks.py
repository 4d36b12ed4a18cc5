"""Hooks: functions that a module calls before and after its `forward`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from fastlayers.autograd import hooks
from fastlayers.autograd.hooks import RemovableHandle

__all__ = ["Hooked", "RemovableHandle"]

_NONE: Mapping[int, Any] = MappingProxyType({})


class Hooked:
    """The hooks of a `Module`."""

    # By number: the hook, and whether it takes keyword arguments. A dict once there is one.
    _forward_pre_hooks: Mapping[int, tuple[Callable[..., Any], bool]] = _NONE
    _forward_hooks: Mapping[int, tuple[Callable[..., Any], bool]] = _NONE

    forward: Callable[..., Any]

    def register_forward_pre_hook(
        self, hook: Callable[..., Any], *, prepend: bool = False, with_kwargs: bool = False
    ) -> RemovableHandle:
        """Call ``hook(module, args)`` before each `forward`.

        Parameters
        ----------
        hook : callable
            What it returns, if not None, takes the place of the positional arguments: a tuple, or
            the only one.
        prepend : bool
            Call it before the hooks that are there.
        with_kwargs : bool
            Call ``hook(module, args, kwargs)``, which returns None or a pair of both.

        Returns
        -------
        RemovableHandle
            Its ``remove()`` removes the hook.

        References
        ----------
        https://docs.pytorch.org/docs/stable/generated/torch.nn.Module.html
        """
        return self._hook("_forward_pre_hooks", hook, prepend, with_kwargs)

    def register_forward_hook(
        self, hook: Callable[..., Any], *, prepend: bool = False, with_kwargs: bool = False
    ) -> RemovableHandle:
        """Call ``hook(module, args, output)`` after each `forward`.

        Parameters
        ----------
        hook : callable
            What it returns, if not None, takes the place of the output.
        prepend : bool
            Call it before the hooks that are there.
        with_kwargs : bool
            Call ``hook(module, args, kwargs, output)``.

        Returns
        -------
        RemovableHandle
            Its ``remove()`` removes the hook.

        References
        ----------
        https://docs.pytorch.org/docs/stable/generated/torch.nn.Module.html
        """
        return self._hook("_forward_hooks", hook, prepend, with_kwargs)

    def _hook(
        self, place: str, hook: Callable[..., Any], prepend: bool, with_kwargs: bool
    ) -> RemovableHandle:
        found: dict[int, Any] = self.__dict__.setdefault(place, {})
        before = list(found) if prepend else []
        handle = hooks.add(type(self).__name__, found, hook, (hook, bool(with_kwargs)))
        for number in before:
            found[number] = found.pop(number)
        return handle

    def _forward(self, args: Any, kwargs: dict[str, Any]) -> Any:
        """`forward` between its hooks, each of which may remove itself."""
        for hook, takes_kwargs in tuple(self._forward_pre_hooks.values()):
            args, kwargs = _prepared(hook, takes_kwargs, self, args, kwargs)
        output = self.forward(*args, **kwargs)
        for hook, takes_kwargs in tuple(self._forward_hooks.values()):
            given = (args, kwargs) if takes_kwargs else (args,)
            new = hook(self, *given, output)
            output = output if new is None else new
        return output


def _prepared(
    hook: Callable[..., Any], takes_kwargs: bool, module: Any, args: Any, kwargs: dict[str, Any]
) -> tuple[Any, dict[str, Any]]:
    """The arguments that a pre-hook returns, or those given."""
    if not takes_kwargs:
        new = hook(module, args)
        return (args if new is None else new if isinstance(new, tuple) else (new,)), kwargs
    new = hook(module, args, kwargs)
    if new is None:
        return args, kwargs
    if not isinstance(new, tuple) or len(new) != 2:
        raise RuntimeError(
            f"{type(module).__name__}: a forward pre-hook with kwargs must return None or a pair "
            f"of args and kwargs, got {type(new).__name__}"
        )
    return new
