"""Modules as functions of their parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastlayers.autograd import Tensor
from fastlayers.nn.module import Module, StateError, as_buffer

__all__ = ["functional_call"]

# Where a value is kept: its module, the module's table, and the name in it.
_Place = tuple[Module, dict[str, Any], str]


def functional_call(
    module: Module,
    parameter_and_buffer_dicts: Mapping[str, Any] | Sequence[Mapping[str, Any]],
    args: Any = None,
    kwargs: Mapping[str, Any] | None = None,
    *,
    tie_weights: bool = True,
    strict: bool = False,
) -> Any:
    """Call a module with other tensors in place of its parameters and buffers.

    Gradients reach the tensors given, which need not be leaves. Afterwards the module has its own
    values again; no other thread may call it meanwhile.

    Parameters
    ----------
    module : Module
    parameter_and_buffer_dicts : mapping of str to Tensor, or several
        By dotted names, as in ``named_parameters()``; names that are not given keep their values.
    args : tuple or anything else
        The positional arguments, or the only one.
    kwargs : mapping, optional
    tie_weights : bool
        Whether a value also replaces other occurrences of the same parameter or buffer.
    strict : bool
        Whether the names must be exactly those of all parameters and buffers.

    Raises
    ------
    ValueError
        If a name is in several mappings.
    StateError
        A ValueError and a RuntimeError: with `strict`, names are missing or unknown.
    AttributeError
        If a name is not that of a parameter or buffer.
    TypeError
        If a value is not a tensor, nor an array for a buffer.

    References
    ----------
    https://docs.pytorch.org/docs/stable/generated/torch.func.functional_call.html
    """
    values = _joined(parameter_and_buffer_dicts)
    known = dict(_places(module))
    if strict:
        _check_names(module, values, known)
    new = []
    for name, value in values.items():
        place = _place(module, name)
        targets = _tied(place, known) if tie_weights else [place]
        new += [(target, _value(target, value)) for target in targets]
    positional = args if isinstance(args, tuple) else () if args is None else (args,)
    before = [(place, place[1][place[2]]) for place, _ in new]
    try:
        for place, value in new:
            _put(place, value)
        return module(*positional, **(kwargs or {}))
    finally:
        for place, value in before:
            _put(place, value)


def _joined(given: Any) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for part in [given] if isinstance(given, Mapping) else given:
        if repeated := sorted(values.keys() & part.keys()):
            raise ValueError(
                f"functional_call: parameter_and_buffer_dicts must hold a name once, got {repeated}"
                f" in several"
            )
        values |= part
    return values


def _places(module: Module) -> Any:
    """Name and place of each parameter and buffer, including repeated ones."""
    for path, part in module.named_modules(remove_duplicate=False):
        for table in (part._parameters, part._buffers):
            for name, value in table.items():
                if value is not None:
                    yield f"{path}.{name}" if path else name, (part, table, name)


def _check_names(module: Module, values: dict[str, Any], known: dict[str, _Place]) -> None:
    missing, unknown = sorted(known.keys() - values.keys()), sorted(values.keys() - known.keys())
    if missing or unknown:
        raise StateError(
            f"functional_call: parameter_and_buffer_dicts must have the names of "
            f"{type(module).__name__}, got missing names {missing} and unexpected names {unknown}"
        )


def _place(module: Module, name: str) -> _Place:
    path, _, key = name.rpartition(".")
    owner = module.get_submodule(path)
    for table in (owner._parameters, owner._buffers):
        if key in table:
            return owner, table, key
    raise AttributeError(
        f"functional_call: parameter_and_buffer_dicts must hold names of parameters and buffers, "
        f"got {name!r}"
    )


def _tied(place: _Place, known: dict[str, _Place]) -> list[_Place]:
    """All places of the value that is at one."""
    _, table, name = place
    value = table[name]
    same = [other for other in known.values() if other[1][other[2]] is value]
    return same or [place]


def _value(place: _Place, value: Any) -> Any:
    module, table, name = place
    if table is module._buffers:
        return as_buffer(module, name, value)
    if not isinstance(value, Tensor):
        raise TypeError(
            f"functional_call: {name!r} of {type(module).__name__} must be a tensor, "
            f"got {type(value).__name__}"
        )
    return value


def _put(place: _Place, value: Any) -> None:
    _, table, name = place
    table[name] = value
