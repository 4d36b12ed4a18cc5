"""Modules that hold other modules."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Self

from fastlayers.nn.module import Module

__all__ = ["Identity", "ModuleDict", "ModuleList", "Sequential"]


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
        _set(self, self._at(index), module)

    def __delitem__(self, index: int | slice) -> None:
        if not isinstance(index, slice):
            self._at(index)
        modules = list(self)
        del modules[index]
        self._renumber(modules)

    def _renumber(self, modules: Iterable[Module]) -> None:
        self._modules.clear()
        for number, module in enumerate(modules):
            self._modules[str(number)] = module

    def __len__(self) -> int:
        return len(self._modules)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._modules.values())

    def append(self, module: Module) -> Self:
        """Append a module."""
        _set(self, str(len(self)), module)
        return self

    def extend(self, modules: Iterable[Module]) -> Self:
        """Append modules."""
        for module in modules:
            self.append(module)
        return self

    def insert(self, index: int, module: Module) -> Self:
        """Insert a module before an index; those after it get higher numbers."""
        count = len(self)
        if not -count <= index <= count:
            raise IndexError(
                f"{type(self).__name__}: index must be in [{-count}, {count}], got {index}"
            )
        _check_module(self, module)
        modules = list(self)
        modules.insert(index, module)
        self._renumber(modules)
        return self

    def pop(self, index: int | slice) -> Any:
        """Remove a module and return it; those after it get lower numbers."""
        module = self[index]
        del self[index]
        return module

    if TYPE_CHECKING:

        def __getitem__(self, index: int | slice) -> Any: ...

    def __iadd__(self, other: Iterable[Module]) -> Self:
        return self.extend(list(other))


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
                _set(self, name, module)
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

    def __add__(self, other: Sequential) -> Sequential:
        if not isinstance(other, Sequential):
            return NotImplemented
        return Sequential(*self, *other)


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

    def __add__(self, other: Iterable[Module]) -> ModuleList:
        return ModuleList([*self, *other])

    def __repr__(self) -> str:
        """As for a module, with equal neighbours on one line."""
        lines, texts = [], [repr(module) for module in self]
        first = 0
        for text, group in itertools.groupby(texts):
            count = len(list(group))
            name = f"({first})" if count == 1 else f"({first}-{first + count - 1})"
            times = "" if count == 1 else f"{count} x "
            lines.append(f"{name}: {times}{text}".replace("\n", "\n  "))
            first += count
        if not lines:
            return f"{type(self).__name__}()"
        return "\n  ".join([f"{type(self).__name__}(", *lines]) + "\n)"


class ModuleDict(Module):
    """Modules by name, whose parameters belong to the module that holds the dict.

    Parameters
    ----------
    modules : mapping of str to Module, or iterable of pairs

    References
    ----------
    https://docs.pytorch.org/docs/stable/generated/torch.nn.ModuleDict.html
    """

    def __init__(self, modules: Mapping[str, Module] | Iterable[Any] = ()) -> None:
        super().__init__()
        self.update(modules)

    def __getitem__(self, key: str) -> Any:
        if key not in self._modules:
            raise KeyError(f"ModuleDict: key must be one of {list(self)}, got {key!r}")
        return self._modules[key]

    def __setitem__(self, key: str, module: Module) -> None:
        _set(self, key, module)

    def __delitem__(self, key: str) -> None:
        self.pop(key)

    def __len__(self) -> int:
        return len(self._modules)

    def __iter__(self) -> Iterator[str]:
        return iter(self._modules)

    def __contains__(self, key: object) -> bool:
        return key in self._modules

    def keys(self) -> Iterable[str]:
        """The names."""
        return self._modules.keys()

    def values(self) -> Iterable[Any]:
        """The modules."""
        return self._modules.values()

    def items(self) -> Iterable[tuple[str, Any]]:
        """Names and modules."""
        return self._modules.items()

    def update(self, modules: Mapping[str, Module] | Iterable[Any]) -> None:
        """Add modules, over those of the same names."""
        pairs: Any = modules.items() if isinstance(modules, Mapping | ModuleDict) else modules
        for key, module in pairs:
            self[key] = module

    def pop(self, key: str) -> Any:
        """Remove a module and return it."""
        module = self[key]
        del self._modules[key]
        return module

    def clear(self) -> None:
        """Remove all modules."""
        self._modules.clear()


class Identity(Module):
    """Returns its input; arguments are accepted and ignored."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()

    def forward(self, input: Any) -> Any:
        """Return the input."""
        return input


def _check_module(container: Module, module: Any) -> None:
    if not isinstance(module, Module):
        raise TypeError(
            f"{type(container).__name__}: module must be a Module, got {type(module).__name__}"
        )


def _set(container: Module, name: str, module: Any) -> None:
    _check_module(container, module)
    container.add_module(name, module)
