"""The tables of a module: its parameters, buffers or submodules by name."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, MutableMapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastlayers.nn.module import Module

__all__ = ["Table"]


class Table(dict[str, Any]):
    """Values by name, which are plain attributes of the module too.

    An attribute found by `__getattr__` took 0.6 us, so whatever is written into the table, as in
    ``model._modules["fc"] = layer``, is written into the attribute too.

    Parameters
    ----------
    module : Module
        Whose table it is.
    """

    __slots__ = ("_module",)

    def __init__(self, module: Module) -> None:
        super().__init__()
        self._module = weakref.ref(module)  # so that modules are freed without a garbage collection

    def __setitem__(self, name: str, value: Any) -> None:
        super().__setitem__(name, value)
        if (module := self._module()) is not None:
            module.__dict__[name] = value

    def __delitem__(self, name: str) -> None:
        super().__delitem__(name)
        if (module := self._module()) is not None:
            module.__dict__.pop(name, None)

    def popitem(self) -> tuple[str, Any]:
        """Remove the last value and return it with its name."""
        name = next(reversed(self), None)
        if name is None:
            return super().popitem()  # raises Python's error
        return name, self.pop(name)

    def pop(self, name: str, *default: Any) -> Any:
        """Remove a value and return it, or the default."""
        if name not in self:
            return super().pop(name, *default)
        value = self[name]
        del self[name]
        return value

    # These use the methods above.
    clear = MutableMapping.clear
    setdefault = MutableMapping.setdefault
    update = MutableMapping.update

    def __ior__(self, other: Any) -> Table:  # type: ignore[override,misc]
        self.update(other)
        return self

    def __reduce__(self) -> tuple[Any, tuple[()], None, None, Iterator[tuple[str, Any]]]:
        """A plain dict for copies, of which a copied module makes a table of its own."""
        return dict, (), None, None, iter(self.items())
