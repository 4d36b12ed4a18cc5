"""The base class of layers and models."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike

from fastlayers import lazy
from fastlayers.autograd import Tensor
from fastlayers.autograd.types import Size
from fastlayers.nn import state
from fastlayers.nn.conversion import Conversion
from fastlayers.nn.hooks import Hooked
from fastlayers.nn.state import IncompatibleKeys, StateError
from fastlayers.nn.table import Table
from fastlayers.ops import check

__all__ = ["IncompatibleKeys", "Module", "Parameter", "StateError"]


# The tables of a module, with a word for their values, and what these must be.
_TABLES = {
    "_parameters": ("parameter", "an nn.Parameter"),
    "_modules": ("module", "an nn.Module"),
    "_buffers": ("buffer", "an array, a tensor"),
}


class Parameter(Tensor):
    """A tensor that a module lists among its parameters, in C order.

    Parameters
    ----------
    data : array_like
        The values; float32 or float64.
    requires_grad : bool
        Whether it is trained.
    """

    __slots__ = ()

    def __init__(self, data: ArrayLike | Tensor, requires_grad: bool = True) -> None:
        if type(data) is int or isinstance(data, Size):  # they would be sizes
            raise TypeError(f"Parameter: data must be a tensor or an array, got {data!r}")
        super().__init__(data, requires_grad=requires_grad)
        array = self.settled()
        if not array.flags.c_contiguous:
            self._array = np.ascontiguousarray(array).reshape(array.shape)

    def __repr__(self) -> str:
        return f"Parameter containing:\n{super().__repr__()}"


class Module(Conversion, Hooked):
    """Base of layers and models: parameters, buffers and submodules found by attribute.

    A subclass calls ``super().__init__()`` first, assigns parameters and modules to attributes
    and defines `forward`. Over a parameter, a buffer or a module only another of its kind, or
    None, can be assigned: a TypeError otherwise. A name that holds a dot, is empty or belongs to
    another attribute is a KeyError.
    """

    training: bool
    _parameters: dict[str, Any]
    _buffers: dict[str, Any]
    _modules: dict[str, Any]
    _non_persistent_buffers_set: set[str]
    # Names that states of older versions lack; the module's own value is kept then.
    _added_to_state: ClassVar[frozenset[str]] = frozenset()

    def __init__(self) -> None:
        for table in _TABLES:
            object.__setattr__(self, table, Table(self))
        object.__setattr__(self, "_non_persistent_buffers_set", set())
        self.training = True

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Compute the output; defined by each subclass."""
        raise NotImplementedError(f"{type(self).__name__}: a Module must define forward, got none")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Compute the output; deferred ops have run when the outermost call ends."""
        state = lazy.state
        hooked = self._forward_hooks or self._forward_pre_hooks
        if state.call:
            return self._forward(args, kwargs) if hooked else self.forward(*args, **kwargs)
        state.call = next(lazy.calls)
        try:
            output = self._forward(args, kwargs) if hooked else self.forward(*args, **kwargs)
            if state.waiting:
                lazy.run_waiting()
        finally:
            state.call = 0
        return output

    def __setattr__(self, name: str, value: Any) -> None:
        kind = _kind(value)
        if "_modules" not in self.__dict__:
            if kind is not None:
                raise AttributeError(
                    f"{type(self).__name__}: super().__init__() must be called before {name!r} is "
                    f"assigned, got no call"
                )
            object.__setattr__(self, name, value)
            return
        if kind is not None:
            table: dict[str, Any] = getattr(self, kind)
            if name not in table:
                self._check_name(kind, name)
            self._keep(table, name, value)
            return
        for kind in _TABLES:
            table = getattr(self, kind)
            if name in table:
                self._check_value(kind, name, value)
                self._keep(table, name, as_buffer(self, name, value))
                return
        object.__setattr__(self, name, value)

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...

    def __delattr__(self, name: str) -> None:
        if not self._forget(name):
            object.__delattr__(self, name)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take over a copy's attributes, with tables of its own."""
        self.__dict__.update(state)
        for name in _TABLES:
            table = Table(self)
            table.update(state.get(name, {}))
            self.__dict__[name] = table

    def __dir__(self) -> list[str]:
        return [name for name in super().__dir__() if not name[:1].isdigit()]

    def _keep(self, table: dict[str, Any], name: str, value: Any) -> None:
        """List a value in its table, which makes it an attribute."""
        if name not in table:
            self._forget(name)
        table[name] = value

    def _forget(self, name: str) -> bool:
        """Drop an attribute of any kind, so that no two kinds hold the same name."""
        found = self.__dict__.pop(name, self) is not self
        for table in (self._parameters, self._buffers, self._modules):
            found |= table.pop(name, self) is not self
        self._non_persistent_buffers_set.discard(name)
        return found

    def _check_name(self, kind: str, name: Any, *, is_new: bool = False) -> None:
        """Raise an error unless a parameter, buffer or module can have this name.

        Another attribute of the instance can't be replaced if the value is registered, by
        `is_new`; what its class has never can.
        """
        op, word = type(self).__name__, _TABLES[kind][0]
        if not isinstance(name, str):
            raise TypeError(f"{op}: a {word}'s name must be a string, got {type(name).__name__}")
        if name == "" or "." in name:
            raise KeyError(f"{op}: a {word}'s name must hold no dot and not be empty, got {name!r}")
        holder = self if is_new else Module if kind == "_modules" else type(self)
        if name == "training" or hasattr(holder, name):
            raise KeyError(
                f"{op}: a {word}'s name must not be another attribute's, got {name!r}, "
                f"which already exists"
            )

    def _check_value(self, kind: str, name: str, value: Any) -> None:
        word, wanted = _TABLES[kind]
        is_array = kind == "_buffers" and isinstance(value, np.ndarray | np.generic | Tensor)
        if value is not None and not is_array and _kind(value) != kind:
            given = type(value).__name__
            raise TypeError(
                f"{type(self).__name__}: cannot assign {given!r} as {word} {name!r}: "
                f"it must be {wanted} or None, got {given}"
            )

    def _register_member(self, kind: str, name: str, value: Any) -> None:
        """Check name and value, and list the value."""
        table: dict[str, Any] = getattr(self, kind)
        if not isinstance(name, str) or name not in table:
            self._check_name(kind, name, is_new=True)
        self._check_value(kind, name, value)
        self._keep(table, name, as_buffer(self, name, value))

    def register_parameter(self, name: str, param: Parameter | None) -> None:
        """Add a parameter, or a place for one."""
        self._register_member("_parameters", name, param)

    def register_buffer(
        self, name: str, tensor: np.ndarray | Tensor | None, persistent: bool = True
    ) -> None:
        """Add a tensor that is not trained, or a place for one.

        Parameters
        ----------
        name : str
        tensor : Tensor or ndarray, optional
            An array becomes a tensor of its memory.
        persistent : bool
            Whether it is part of the state.
        """
        self._register_member("_buffers", name, tensor)
        change = set.discard if persistent else set.add
        change(self._non_persistent_buffers_set, name)

    def add_module(self, name: str, module: Module | None) -> None:
        """Add a submodule under a name."""
        self._register_member("_modules", name, module)

    register_module = add_module

    def train(self, mode: bool = True) -> Self:
        """Switch this module and all below it to training mode, or to evaluation mode."""
        for module in self.modules():
            module.training = bool(mode)
        return self

    def eval(self) -> Self:
        """Switch this module and all below it to evaluation mode."""
        return self.train(False)

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Train all parameters, or freeze them."""
        for parameter in self.parameters():
            parameter.requires_grad = requires_grad
        return self

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Delete the gradients of all parameters, or set them to 0."""
        for parameter in self.parameters():
            if set_to_none:
                parameter.grad = None
            elif parameter.grad is not None:
                parameter.grad.zero_()

    def apply(self, function: Callable[[Module], Any]) -> Self:
        """Call `function` with every module, those below first."""
        for module in self.children():
            module.apply(function)
        function(self)
        return self

    def state_dict(
        self,
        *,
        destination: dict[str, Any] | None = None,
        prefix: str = "",
        keep_vars: bool = False,
    ) -> dict[str, Any]:
        """Parameters and buffers by PyTorch's key names: tensors of their memory, not copies.

        Parameters
        ----------
        destination : dict, optional
            Where they are put, and what is returned.
        prefix : str
            Put before the keys, with the dot that belongs to it.
        keep_vars : bool
            Give the parameters and buffers themselves.
        """
        out: dict[str, Any] = {} if destination is None else destination
        for key, _, _, value in state.values(self):
            out[prefix + key] = value if keep_vars else value.data
        return out

    def load_state_dict(
        self, state_dict: Mapping[str, ArrayLike], strict: bool = True
    ) -> IncompatibleKeys:
        """Copy values into parameters and buffers, after all of them were checked.

        Parameters
        ----------
        state_dict : mapping of str to array_like
            As from `state_dict`, or PyTorch's.
        strict : bool
            Whether the keys must be the same.

        Returns
        -------
        IncompatibleKeys
            Missing and unexpected keys.

        Raises
        ------
        StateError
            A ValueError and a RuntimeError: keys (when strict) or shapes do not fit. Nothing is
            changed then.
        ValueError
            If one of the model's arrays is read-only.
        TypeError
            If a value is not numeric, or cannot be converted to the dtype.
        """
        return state.load(self, state_dict, strict)

    def extra_repr(self) -> str:
        """The layer's options as `repr` shows them."""
        return ""

    def __repr__(self) -> str:
        lines = [
            f"({name}): {child!r}".replace("\n", "\n  ") for name, child in self.named_children()
        ]
        if not lines:
            return f"{type(self).__name__}({self.extra_repr()})"
        return "\n  ".join([f"{type(self).__name__}({self.extra_repr()}", *lines]) + "\n)"


def _kind(value: Any) -> str | None:
    """The table that a value is listed in by its type alone."""
    if isinstance(value, Parameter):
        return "_parameters"
    return "_modules" if isinstance(value, Module) else None


def as_buffer(module: Module, name: str, value: Any) -> Any:
    """A buffer as a tensor; None, parameters and modules as they are."""
    if value is None or _kind(value) is not None or isinstance(value, Tensor):
        return value
    return Tensor(check.plain(type(module).__name__, name, np.asanyarray(value)))
