"""The state of a module: its parameters and buffers by PyTorch's key names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fastlayers.autograd import Tensor
from fastlayers.nn.traversal import join

if TYPE_CHECKING:
    from fastlayers.nn.module import Module

__all__ = ["IncompatibleKeys", "StateError", "load", "values"]


class IncompatibleKeys(NamedTuple):
    """Names that a state lacks, and names that the module doesn't know."""

    missing_keys: list[str]
    unexpected_keys: list[str]

    def __repr__(self) -> str:
        if not self.missing_keys and not self.unexpected_keys:
            return "<All keys matched successfully>"
        names = f"missing_keys={self.missing_keys}, unexpected_keys={self.unexpected_keys}"
        return f"IncompatibleKeys({names})"


class StateError(ValueError, RuntimeError):
    """A state does not fit a module; PyTorch raises a RuntimeError there."""


def values(module: Module, prefix: str = "") -> Iterator[tuple[str, Module, str, Any]]:
    """Key, module, name and value of each part of the state; a shared value has several keys."""
    temporary = module._non_persistent_buffers_set
    for name, value in (*module._parameters.items(), *module._buffers.items()):
        if value is not None and name not in temporary:
            yield join(prefix, name), module, name, value
    for name, child in module._modules.items():
        if child is not None:
            yield from values(child, join(prefix, name))


def load(module: Module, state_dict: Mapping[str, Any], strict: bool) -> IncompatibleKeys:
    """Copy values into parameters and buffers, after all of them were checked."""
    if not isinstance(state_dict, Mapping):
        raise TypeError(
            f"load_state_dict: state_dict must be a mapping, got {type(state_dict).__name__}"
        )
    own = {key: (owner, name, value) for key, owner, name, value in values(module)}
    keys = IncompatibleKeys(
        [
            key
            for key, (owner, name, _) in own.items()
            if key not in state_dict and name not in owner._added_to_state
        ],
        [key for key in state_dict if key not in own],
    )
    if strict and (keys.missing_keys or keys.unexpected_keys):
        raise StateError(
            f"load_state_dict: state_dict must have the keys of {type(module).__name__}, "
            f"got missing keys {keys.missing_keys} and unexpected keys {keys.unexpected_keys}"
        )
    places = {key: own[key][2].settled() for key in own if key in state_dict}
    new = {key: _fitting(key, place, state_dict[key]) for key, place in places.items()}
    for key, place in places.items():
        place[...] = new[key]
        own[key][2].changed()
    return keys


def _fitting(key: str, place: np.ndarray, given: Any) -> np.ndarray:
    """The value of a key, with the shape and dtype of what it is copied into."""
    if isinstance(given, Tensor):
        given = given.array()
    elif hasattr(given, "detach"):  # PyTorch's: a parameter is no array
        given = given.detach()
    value = np.asarray(given)
    if place.ndim == 0 and value.shape == (1,):  # of PyTorch before 0.4, which had no scalars
        value = value.reshape(())
    if value.shape != place.shape:
        raise StateError(
            f"load_state_dict: state_dict[{key!r}] must have shape {place.shape}, got {value.shape}"
        )
    counts = place.dtype.kind == "i" and value.dtype.kind == "f" and _fits_int64(value)
    if not counts and not np.can_cast(value.dtype, place.dtype, "same_kind"):
        raise TypeError(
            f"load_state_dict: state_dict[{key!r}] must be {place.dtype}, got {value.dtype}"
        )
    if not place.flags.writeable:
        raise ValueError(
            f"load_state_dict: the model's {key!r} must be writable, got a read-only array"
        )
    # Here, since the cast warns of an overflow, and warnings may be errors.
    return value.astype(place.dtype, copy=False)


def _fits_int64(value: np.ndarray) -> bool:
    """Whether floats can be truncated to integers: counts after ``.half()``, or averaged ones."""
    return bool(np.all(np.abs(value.astype(np.float64)) < 2.0**53))  # False for NaN
