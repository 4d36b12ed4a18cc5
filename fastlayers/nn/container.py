"""Modules that hold other modules."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Self

from fastlayers.nn.module import Module

__all__ = ["Identity", "ModuleList", "Sequential"]


class _Numbered(Module):
    """Submodules in order, found by number."""

    def _at(self, index: int) -> str:
        count = len(self._modules)
        if not -count <= index < count:
            raise IndexError(
                f"{type(self).__name__}: index must be in [{-count}, {count}), got {index}"
            )
        return list(self._modules)[index]

    def __setitem__(self, index: int, module: Module) -> None:
        self._set(self._at(index), module)

    def _set(self, name: str, module: Module) -> None:
        if not isinstance(module, Module):
            raise TypeError(
                f"{type(self).__name__}: module must be a Module, got {type(module).__name__}"
            )
        self.add_module(name, module)

    def __len__(self) -> int:
        return len(self._modules)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._modules.values())

    def append(self, module: Module) -> Self:
        """Add a module behind the last one."""
        self._set(str(len(self)), module)
        return self

    def extend(self, modules: Iterable[Module]) -> Self:
        """Add modules behind the last one."""
        for module in modules:
            self.append(module)
        return self


class Sequential(_Numbered):
    """Modules applied one after the other.

    Parameters
    ----------
    *modules : Module
        Or one mapping of names to modules.
    """

    def __init__(self, *modules: Any) -> None:
        super().__init__()
        if len(modules) == 1 and isinstance(modules[0], Mapping):
            for name, module in modules[0].items():
                self._set(name, module)
        else:
            self.extend(modules)

    def forward(self, input: Any) -> Any:
        """Apply all modules."""
        for module in self:
            input = module(input)
        return input

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return Sequential(dict(list(self._modules.items())[index]))
        return self._modules[self._at(index)]


class ModuleList(_Numbered):
    """A list of modules, whose parameters belong to the module that holds the list.

    Parameters
    ----------
    modules : iterable of Module
    """

    def __init__(self, modules: Iterable[Module] = ()) -> None:
        super().__init__()
        self.extend(modules)

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return ModuleList(list(self)[index])
        return self._modules[self._at(index)]


class Identity(Module):
    """Returns its input; arguments are accepted and ignored."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()

    def forward(self, input: Any) -> Any:
        """Return the input."""
        return input
