"""What a module holds, by name: its parameters, buffers and submodules, and those below."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from fastlayers.autograd import Tensor

if TYPE_CHECKING:
    from fastlayers.nn.module import Module, Parameter

__all__ = ["Traversal", "join"]


class Traversal:
    """Iteration over a tree of modules; a part of `Module`."""

    _parameters: dict[str, Any]
    _buffers: dict[str, Any]
    _modules: dict[str, Any]

    def named_modules(
        self, memo: set[Any] | None = None, prefix: str = "", remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Module]]:
        """This module and all below it, with dotted names.

        Parameters
        ----------
        memo : set, optional
            Modules to leave out; those that are found are added.
        prefix : str
            Put before the names.
        remove_duplicate : bool
            Whether a module that is held in several places is found once only.
        """
        seen: set[Any] = set() if memo is None else memo
        stack: list[tuple[str, Any]] = [(prefix, self)]
        while stack:
            path, module = stack.pop()
            if module in seen:
                continue
            if remove_duplicate:
                seen.add(module)
            yield path, module
            below = [(join(path, n), m) for n, m in module._modules.items() if m is not None]
            stack.extend(reversed(below))

    def modules(self) -> Iterator[Module]:
        """This module and all below it, each once."""
        return (module for _, module in self.named_modules())

    def named_children(self) -> Iterator[tuple[str, Module]]:
        """The modules directly below this one, each once."""
        seen: set[int] = set()
        for name, module in self._modules.items():
            if module is not None and id(module) not in seen:
                seen.add(id(module))
                yield name, module

    def children(self) -> Iterator[Module]:
        """The modules directly below this one, each once."""
        return (module for _, module in self.named_children())

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Parameter]]:
        """All parameters with dotted names, each once with `remove_duplicate`."""
        return self._members("_parameters", prefix, recurse, remove_duplicate)

    def parameters(self, recurse: bool = True) -> Iterator[Parameter]:
        """All parameters, each once; without `recurse` those of this module alone."""
        return (parameter for _, parameter in self.named_parameters(recurse=recurse))

    def named_buffers(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Tensor]]:
        """All buffers with dotted names, each once with `remove_duplicate`."""
        return self._members("_buffers", prefix, recurse, remove_duplicate)

    def buffers(self, recurse: bool = True) -> Iterator[Tensor]:
        """All buffers, each once; without `recurse` those of this module alone."""
        return (array for _, array in self.named_buffers(recurse=recurse))

    def _members(
        self, table: str, prefix: str, recurse: bool, remove_duplicate: bool
    ) -> Iterator[tuple[str, Any]]:
        seen: set[int] = set()
        whole = self.named_modules(prefix=prefix, remove_duplicate=remove_duplicate)
        for path, module in whole if recurse else [(prefix, self)]:
            for name, value in getattr(module, table).items():
                if value is None or id(value) in seen:
                    continue
                if remove_duplicate:
                    seen.add(id(value))
                yield join(path, name), value

    def get_submodule(self, target: str) -> Module:
        """The module of a dotted name; this one for "".

        Raises
        ------
        AttributeError
            If there is none.
        """
        module: Any = self
        for name in target.split(".") if target else []:
            below = module._modules.get(name)
            if below is None:
                raise AttributeError(
                    f"{type(module).__name__}: target must name a submodule, got {name!r} of "
                    f"{target!r}"
                )
            module = below
        found: Module = module
        return found

    def get_parameter(self, target: str) -> Parameter:
        """The parameter of a dotted name; an AttributeError if there is none."""
        parameter: Parameter = self._member("_parameters", "parameter", target)
        return parameter

    def get_buffer(self, target: str) -> Tensor:
        """The buffer of a dotted name; an AttributeError if there is none."""
        array: Tensor = self._member("_buffers", "buffer", target)
        return array

    def _member(self, table: str, kind: str, target: str) -> Any:
        path, _, name = target.rpartition(".")
        module = self.get_submodule(path)
        value = getattr(module, table).get(name)
        if value is None:
            raise AttributeError(
                f"{type(module).__name__}: target must name a {kind}, got {name!r} of {target!r}"
            )
        return value


def join(path: str, name: str) -> str:
    """A dotted name."""
    return f"{path}.{name}" if path else name
