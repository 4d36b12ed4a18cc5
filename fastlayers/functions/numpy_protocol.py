"""NumPy's functions on tensors: recorded where there is a function for them, never cut in silence.

https://numpy.org/neps/nep-0013-ufunc-overrides.html,
https://numpy.org/neps/nep-0018-array-function-protocol.html
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastlayers.autograd.tensor import Tensor, wants_grad
from fastlayers.functions.table import NUMPY, method

__all__: list[str] = []

# What tells about a tensor, or makes another one of its shape.
_FACTS = (np.shape, np.ndim, np.size, np.zeros_like, np.ones_like, np.empty_like, np.full_like)


def _tensors(values: Any) -> list[Tensor]:
    """All tensors among arguments."""
    if isinstance(values, Tensor):
        return [values]
    if isinstance(values, dict):
        values = values.values()
    if isinstance(values, (list, tuple)) or type(values).__name__ == "dict_values":
        return [t for value in values for t in _tensors(value)]
    return []


def _arrays(values: Any) -> Any:
    """The arguments with arrays in the place of tensors."""
    if isinstance(values, Tensor):
        return values.settled()
    if isinstance(values, dict):
        return {key: _arrays(value) for key, value in values.items()}
    if isinstance(values, (list, tuple)):
        return type(values)(_arrays(value) for value in values)
    return values


def _refuse(name: str, arguments: Any) -> None:
    if wants_grad(_tensors(arguments)):
        raise RuntimeError(
            f"numpy.{name}: its tensors must not require a gradient, which is not recorded by "
            f"this function of NumPy; use tensor.detach().numpy() instead, or fastlayers' function"
        )


def array_ufunc(self: Tensor, ufunc: Any, how: str, *inputs: Any, **options: Any) -> Any:
    """What a ufunc, such as ``np.sqrt``, does to tensors."""
    known = NUMPY.get(ufunc)
    if known is not None and how == "__call__" and not options:
        return known(*inputs)
    _refuse(ufunc.__name__, (inputs, options))
    for out in _tensors(options.get("out", ())):
        out.changed()
    return getattr(ufunc, how)(*_arrays(inputs), **_arrays(options))


def array_function(self: Tensor, function: Any, kinds: Any, args: Any, options: Any) -> Any:
    """What another function, such as ``np.concatenate``, does to tensors."""
    known = NUMPY.get(function)
    if known is not None and function not in _FACTS:
        return known(*args, **{_DIM.get(key, key): value for key, value in options.items()})
    if function not in _FACTS:
        _refuse(function.__name__, (args, options))
    return function(*_arrays(args), **_arrays(options))


_DIM = {"axis": "dim", "keepdims": "keepdim"}
method(array_ufunc, "__array_ufunc__")
method(array_function, "__array_function__")
