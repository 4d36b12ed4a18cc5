"""The base class of layers and models."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from fastlayers import lazy
from fastlayers.autograd import Tensor
from fastlayers.ops import _check

__all__ = ["IncompatibleKeys", "Module", "Parameter"]


_TABLES = ("_parameters", "_modules", "_buffers")


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
        super().__init__(data, requires_grad)
        array = self.settled()
        if not array.flags.c_contiguous:
            self._array = np.ascontiguousarray(array).reshape(array.shape)

    def __repr__(self) -> str:
        return f"Parameter containing:\n{super().__repr__()}"


class IncompatibleKeys(NamedTuple):
    """Names that a state lacks, and names that the module doesn't know."""

    missing_keys: list[str]
    unexpected_keys: list[str]


class Module:
    """Base of layers and models: parameters, buffers and submodules found by attribute.

    A subclass calls ``super().__init__()`` first, assigns parameters and modules to attributes
    and defines `forward`.
    """

    training: bool
    _parameters: dict[str, Any]
    _buffers: dict[str, Any]
    _modules: dict[str, Any]

    def __init__(self) -> None:
        for table in _TABLES:
            object.__setattr__(self, table, {})
        self.training = True

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Compute the output; defined by each subclass."""
        raise NotImplementedError(f"{type(self).__name__}: a Module must define forward, got none")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Compute the output; what waits for following ops has run when the outermost call ends."""
        state = lazy.state
        if state.depth:
            return self.forward(*args, **kwargs)
        state.depth = 1
        try:
            output = self.forward(*args, **kwargs)
        finally:
            state.depth = 0
        if state.waiting:
            lazy.run_waiting()
        return output

    def __setattr__(self, name: str, value: Any) -> None:
        if "_modules" not in self.__dict__:
            if isinstance(value, (Parameter, Module)):
                raise AttributeError(
                    f"{type(self).__name__}: super().__init__() must be called before {name!r} is "
                    f"assigned, got no call"
                )
            object.__setattr__(self, name, value)
            return
        if name in self._buffers and not isinstance(value, (Parameter, Module)):
            keep = value is None or isinstance(value, np.ndarray)
            self.register_buffer(name, value if keep else np.asarray(value))
            return
        for table, kind in ((self._parameters, Parameter), (self._modules, Module)):
            if isinstance(value, kind) or (name in table and value is None):
                self._keep(table, name, value)
                return
        # Not `_forget`, after which the attribute is missing for a moment: another thread may ask
        # for `training` while this one calls `eval`.
        for table in (self._parameters, self._buffers, self._modules):
            table.pop(name, None)
        object.__setattr__(self, name, value)

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...

    def __delattr__(self, name: str) -> None:
        if not self._forget(name):
            object.__delattr__(self, name)

    def _keep(self, table: dict[str, Any], name: str, value: Any) -> None:
        """List a value in its table, and as a plain attribute: by `__getattr__` it took 0.6 us."""
        if name == "training" or hasattr(Module, name):
            raise AttributeError(
                f"{type(self).__name__}: name must not be that of every module's attribute, "
                f"got {name!r}"
            )
        if name not in table:
            self._forget(name)
        table[name] = self.__dict__[name] = value

    def _forget(self, name: str) -> bool:
        """Drop an attribute of any kind, so that no two kinds hold the same name."""
        found = self.__dict__.pop(name, self) is not self
        for table in (self._parameters, self._buffers, self._modules):
            found |= table.pop(name, self) is not self
        return found

    def register_parameter(self, name: str, parameter: Parameter | None) -> None:
        """Add a parameter, or a place for one."""
        self._check_kind("register_parameter", "parameter", parameter, Parameter)
        self._keep(self._parameters, name, parameter)

    def register_buffer(self, name: str, array: np.ndarray | None) -> None:
        """Add an array that belongs to the state but is not trained, or a place for one."""
        self._check_kind("register_buffer", "array", array, np.ndarray)
        if array is not None:
            array = _check.plain(type(self).__name__, name, array)
        self._keep(self._buffers, name, array)

    def add_module(self, name: str, module: Module | None) -> None:
        """Add a submodule under a name."""
        self._check_kind("add_module", "module", module, Module)
        self._keep(self._modules, name, module)

    def _check_kind(self, op: str, name: str, value: Any, kind: type) -> None:
        if value is not None and not isinstance(value, kind):
            raise TypeError(
                f"{type(self).__name__}: {op}: {name} must be a {kind.__name__} or None, "
                f"got {type(value).__name__}"
            )

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, Module]]:
        """This module and all below it, each once, with dotted names."""
        seen: set[int] = set()
        stack: list[tuple[str, Module]] = [(prefix, self)]
        while stack:
            path, module = stack.pop()
            if id(module) in seen:
                continue
            seen.add(id(module))
            yield path, module
            below = [(_join(path, n), m) for n, m in module._modules.items() if m is not None]
            stack.extend(reversed(below))

    def modules(self) -> Iterator[Module]:
        """This module and all below it, each once."""
        return (module for _, module in self.named_modules())

    def named_children(self) -> Iterator[tuple[str, Module]]:
        """The modules directly below this one."""
        return ((n, m) for n, m in self._modules.items() if m is not None)

    def children(self) -> Iterator[Module]:
        """The modules directly below this one."""
        return (module for _, module in self.named_children())

    def named_parameters(self, prefix: str = "") -> Iterator[tuple[str, Parameter]]:
        """All parameters, each once, with dotted names."""
        seen: set[int] = set()
        for path, module in self.named_modules(prefix):
            for name, parameter in module._parameters.items():
                if parameter is not None and id(parameter) not in seen:
                    seen.add(id(parameter))
                    yield _join(path, name), parameter

    def parameters(self) -> Iterator[Parameter]:
        """All parameters, each once."""
        return (parameter for _, parameter in self.named_parameters())

    def named_buffers(self, prefix: str = "") -> Iterator[tuple[str, np.ndarray]]:
        """All buffers with dotted names."""
        for path, module in self.named_modules(prefix):
            for name, array in module._buffers.items():
                if array is not None:
                    yield _join(path, name), array

    def buffers(self) -> Iterator[np.ndarray]:
        """All buffers."""
        return (array for _, array in self.named_buffers())

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
        """Forget the gradients of all parameters, or set them to 0."""
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

    def to(self, target: DTypeLike) -> Self:
        """Move to "cpu", the only device, or convert floating point values to a dtype."""
        if isinstance(target, str) and target.partition(":")[0] in ("cuda", "mps", "xpu"):
            raise ValueError(f"Module.to: target must be 'cpu', the only device, got {target!r}")
        if target == "cpu":
            return self
        dtype = _check.float_type("Module.to", "target", target)
        for module in self.modules():
            for parameter in module._parameters.values():
                if parameter is not None:
                    parameter.grad = None
                    parameter.data = parameter.array().astype(dtype)
            for name, array in list(module._buffers.items()):
                if array is not None and array.dtype.kind == "f":
                    module._keep(module._buffers, name, array.astype(dtype))
        return self

    def float(self) -> Self:
        """Convert floating point values to float32."""
        return self.to(np.float32)

    def double(self) -> Self:
        """Convert floating point values to float64."""
        return self.to(np.float64)

    def _state(self) -> dict[str, tuple[dict[str, Any], str]]:
        """Find where each key's value is kept: (table, name); a shared one has several keys."""
        places: dict[str, tuple[dict[str, Any], str]] = {}

        def visit(module: Module, path: str) -> None:
            for table in (module._parameters, module._buffers):
                for name, value in table.items():
                    if value is not None:
                        places[_join(path, name)] = (table, name)
            for name, child in module.named_children():
                visit(child, _join(path, name))

        visit(self, "")
        return places

    def state_dict(self) -> dict[str, np.ndarray]:
        """Parameters and buffers by PyTorch's key names; the arrays themselves, not copies."""
        values = {key: table[name] for key, (table, name) in self._state().items()}
        return {k: v.data if isinstance(v, Tensor) else v for k, v in values.items()}

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
        ValueError
            If keys (when strict) or shapes do not fit; nothing is changed then.
        TypeError
            If a value is not numeric, or cannot be converted to the dtype.
        """
        own = self.state_dict()
        keys = IncompatibleKeys(
            [k for k in own if k not in state_dict], [k for k in state_dict if k not in own]
        )
        if strict and (keys.missing_keys or keys.unexpected_keys):
            raise ValueError(
                f"load_state_dict: state_dict must have the keys of {type(self).__name__}, "
                f"got missing keys {keys.missing_keys} and unexpected keys {keys.unexpected_keys}"
            )
        values = {k: np.asarray(state_dict[k]) for k in own if k in state_dict}
        for key, value in values.items():
            if value.shape != own[key].shape:
                raise ValueError(
                    f"load_state_dict: state_dict[{key!r}] must have shape {own[key].shape}, "
                    f"got {value.shape}"
                )
            if not np.can_cast(value.dtype, own[key].dtype, "same_kind"):
                raise TypeError(
                    f"load_state_dict: state_dict[{key!r}] must be {own[key].dtype}, "
                    f"got {value.dtype}"
                )
            if not own[key].flags.writeable:
                raise ValueError(
                    f"load_state_dict: the model's {key!r} must be writable, got a read-only array"
                )
            # Here, since the cast warns of an overflow, and warnings may be errors.
            values[key] = value.astype(own[key].dtype, copy=False)
        for key, value in values.items():
            own[key][...] = value
        return keys

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


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
