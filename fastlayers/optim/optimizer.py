"""What all optimisers share: groups of parameters, their options, and saving and loading."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, TypeVar

import numpy as np

from fastlayers import kernels, lazy
from fastlayers.autograd import Tensor
from fastlayers.optim import checks, states
from fastlayers.runtime import threads
from fastlayers.runtime.memory import zeros

__all__ = ["Optimizer", "Parameter", "Params"]

T = TypeVar("T")
Group = dict[str, Any]
Table = tuple[np.ndarray, Any, int]

# What the kernels need to know of each dtype: the object's address, and an array.
_LIKE = {
    dtype: (id(dtype), np.empty(0, dtype)) for dtype in map(np.dtype, (np.float32, np.float64))
}
_ARRAY_TYPE = id(np.ndarray)
_NOTHING: dict[str, Any] = {}
# Options of PyTorch's groups that change how a step is computed, not its result.
_HINTS = frozenset({"capturable", "differentiable", "foreach", "fused"})
# Multiply-adds and loads per element.
ELEMENT_WORK = 4


Parameter = Tensor
Params = Iterable[Parameter] | Iterable[Group] | Iterable[tuple[str, Parameter]]


class Optimizer:
    """Base of the optimisers, with PyTorch's interface.

    A subclass defines `step`, which changes the parameters of `param_groups` inside `no_grad` and
    may keep anything in `state`.

    Parameters
    ----------
    params
        Parameters, pairs of a name and a parameter, or dicts each with "params" and the options
        that differ from `defaults`.
    defaults
        The options of groups that do not set their own.

    Attributes
    ----------
    param_groups : list of dict
        Each group's "params", "param_names" if they have names, and options; a change takes
        effect at the next step.
    state : dict
        What the algorithm keeps from step to step for each updated parameter.

    Raises
    ------
    TypeError
        If `params` is not an ordered iterable, or one of its items not a floating-point parameter.
    ValueError
        If there are no parameters, one is given twice, or an option is out of range.
    """

    # Entries of a parameter's state: "step", or the names of arrays of the parameter's shape. None
    # where `step` is user-defined and may keep anything.
    _state_names: ClassVar[frozenset[str] | None] = None
    _optional_state_names: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, params: Params, defaults: Mapping[str, Any]) -> None:
        self._op = type(self).__name__
        self.defaults = self._options(defaults)
        self.state: defaultdict[Parameter, dict[str, Any]] = defaultdict(dict)
        self.param_groups: list[Group] = []
        items: list[Any] = self._listed(params)
        if not items:
            raise ValueError(f"{self._op}: params must not be empty, got no parameters")
        for group in items if isinstance(items[0], dict) else [{"params": items}]:
            self.add_param_group(group)

    def add_param_group(self, param_group: Group) -> None:
        """Add parameters, with their own options, to those that `step` updates.

        Raises
        ------
        TypeError, ValueError
            As for the class; nothing is added then.
        """
        if not isinstance(param_group, dict) or "params" not in param_group:
            raise TypeError(
                f"{self._op}: param_group must be a dict with 'params', got {param_group!r}"
            )
        params = param_group["params"]
        params = [params] if checks.is_parameter(params) else self._listed(params)
        group = {"params": params} | self.defaults | self._options(param_group)
        group |= self._apart(params)
        params = group["params"]
        if any(("param_names" in group) != ("param_names" in other) for other in self.param_groups):
            raise ValueError(
                f"{self._op}: params must have names in all groups or in none, "
                f"got some without and some with them"
            )
        seen = {id(p) for p in self._params()}
        for p in params:
            checks.parameter(self._op, p)
            if id(p) in seen:
                raise ValueError(f"{self._op}: params must not repeat a parameter, got one twice")
            seen.add(id(p))
        self._check_options(group)
        self.param_groups.append(group)

    def _options(self, group: Mapping[str, Any]) -> Group:
        """Options with numbers in place of one-element arrays, and without those that only PyTorch
        has.

        What the latter ask for, if anything, must be what happens here anyway.
        """
        options = dict(group)
        for name in _HINTS & options.keys():
            checks.hint(self._op, name, options.pop(name))
        for name, value in options.items():
            pair = name == "betas" and isinstance(value, tuple | list)
            options[name] = tuple(map(checks.scalar, value)) if pair else checks.scalar(value)
        return options

    def _apart(self, items: list[Any]) -> Group:
        """The "params" of a group, and their "param_names" if given as pairs."""
        pairs = [item for item in items if isinstance(item, tuple)]
        if not pairs:
            return {"params": items}
        if len(pairs) != len(items) or any(len(pair) != 2 for pair in pairs):
            raise ValueError(
                f"{self._op}: params must all be pairs of a name and a parameter where one is, "
                f"got {len(pairs)} tuples among {len(items)} items"
            )
        names, params = zip(*pairs, strict=True)
        return {"params": list(params), "param_names": list(names)}

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Remove all gradients, or set them to zero."""
        for p in self._params():
            if set_to_none:
                p._grad = None  # `grad` checks what it is given
            elif (gradient := p.grad) is not None:
                gradient.zero_()

    def step(self, closure: Callable[[], T] | None = None) -> T | None:
        """Update every parameter that has a gradient, and return what `closure` returned, if given.

        Raises
        ------
        TypeError, ValueError
            If an option is out of range, a gradient differs from its parameter in shape or dtype,
            an array is masked, or one that is updated is read-only or has overlapping elements;
            then no parameter is changed.
        """
        result = closure() if closure is not None else None
        if lazy.state.waiting:  # calls that must still read the old values
            lazy.run_waiting()
        due = [(g, [p for p in g["params"] if p._grad is not None]) for g in self.param_groups]
        for group in self.param_groups:
            self._check_options(group)
        parts = [(g, key, ps) for g, some in due if some for key, ps in self._parts(g, some)]
        tables = [self._table(group, ps) for group, _, ps in parts]
        if any(table is None for table in tables):
            self._step_slowly(parts)
        else:
            for (group, key, params), table in zip(parts, tables, strict=True):
                self._update(group, key, params, *table)  # type: ignore[misc]
        for _, _, params in parts:
            for p in params:
                if (storage := p._storage) is not None:  # `changed`, without calling it 10 times
                    storage.version += 1
        return result

    def _table(self, group: Group, params: list[Parameter]) -> Table | None:
        """Addresses of the arrays, if all exist in the form that kernels take."""
        # `grad_array` if the tensor of a gradient has been requested: 0.1 us each.
        grads = [g if type(g := p._grad) is np.ndarray else p.grad_array() for p in params]
        arrays: list[Any] = [p._array for p in params] + grads
        if names := self._arrays(group):
            find = self.state.get
            entries = [find(p, _NOTHING) for p in params]
            for name in names:
                arrays += [entry.get(name) for entry in entries]
        dtype_id, like = _LIKE.get(arrays[0].dtype, (0, arrays[0]))
        table = np.empty((len(params), len(arrays) // len(params) + 1), np.int64)
        table[0, 0] = id(arrays)
        total = kernels.optimizer.gather(dtype_id, _ARRAY_TYPE, table)
        return None if total < 0 else (like, table, threads.workers_for(ELEMENT_WORK * total))

    def _step_slowly(self, parts: list[tuple[Group, Any, list[Parameter]]]) -> None:
        """Check everything, initialise the state of new parameters, copy what is not contiguous."""
        for _, _, params in parts:
            for p in params:
                checks.arrays(self._op, p, self.state.get(p, {}))
        for group, key, params in parts:
            for p in params:
                for name in self._arrays(group):
                    if name not in self.state[p]:
                        self.state[p][name] = zeros(p.array().shape, p.dtype)
            for dtype in _LIKE:
                some = [p for p in params if p.dtype == dtype]
                table = self._table(group, some) if some else None
                if table is not None:
                    self._update(group, key, some, *table)
                elif some:
                    self._update_copies(group, key, some, dtype)

    def _update_copies(
        self, group: Group, key: Any, params: list[Parameter], dtype: np.dtype
    ) -> None:
        """Update parameters through copies of their arrays."""
        for p in params:
            state = self.state[p] if self._arrays(group) else {}
            values = (state[name] for name in self._arrays(group))
            arrays: list[Any] = [p.array(), p.grad_array(), *values]
            arrays = [np.asarray(array) for array in arrays]  # not of a subclass
            flat = [np.array(array, dtype, order="C").reshape(-1) for array in arrays]
            places = [array.__array_interface__["data"][0] for array in flat]
            table = np.array([[*places, p.numel()]], np.int64)
            self._update(group, key, [p], _LIKE[dtype][1], table, 1)
            for role, (array, changed) in enumerate(zip(arrays, flat, strict=True)):
                if role != 1:
                    array[...] = changed.reshape(array.shape)

    def __repr__(self) -> str:
        lines = [f"{self._op} ("]
        for number, group in enumerate(self.param_groups):
            lines += [""] * bool(number) + [f"Parameter Group {number}"]
            lines += [f"    {name}: {group[name]}" for name in sorted(group) if name != "params"]
        return "\n".join([*lines, ")"])

    def state_dict(self) -> dict[str, Any]:
        """Copy of the state and options, with parameters numbered in order."""
        number = {id(p): i for i, p in enumerate(self._params())}
        groups = [
            copy.deepcopy({name: value for name, value in group.items() if name != "params"})
            | {"params": [number[id(p)] for p in group["params"]]}
            for group in self.param_groups
        ]
        state = {number[id(p)]: copy.deepcopy(entry) for p, entry in self.state.items() if entry}
        return {"state": state, "param_groups": groups}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load what `state_dict` of an optimiser for the same parameters returned.

        It may be PyTorch's: additional options of its groups must not ask for anything that is not
        done here, and values may be tensors.

        Raises
        ------
        ValueError
            If groups, parameters, options or shapes do not fit; then nothing is changed.
        """
        try:
            self.param_groups, self.state = states.loaded(self, state_dict)
        except (AttributeError, LookupError, TypeError) as error:
            raise ValueError(
                f"{self._op}: state_dict must be as state_dict() gives it, got one of another "
                f"structure: {type(error).__name__}: {error}"
            ) from error

    # What the library's own optimisers define, for `step` to run their kernels.

    def _check_options(self, group: Group) -> None:
        """Raise ValueError for an option that is out of range."""

    def _parts(self, group: Group, params: list[Parameter]) -> list[tuple[Any, list[Parameter]]]:
        """The parameters, separated by what their updates differ in."""
        return [(None, params)]

    def _arrays(self, group: Group) -> tuple[str, ...]:
        """Names of the arrays of a parameter's state that an update reads and writes."""
        return ()

    def _update(
        self,
        group: Group,
        key: Any,
        params: list[Parameter],
        like: np.ndarray,
        table: Any,
        workers: int,
    ) -> None:
        """Update the parameters of one of the `_parts` with the kernel."""
        raise NotImplementedError(f"{self._op}: an Optimizer must define step, got none")

    def _params(self) -> list[Parameter]:
        return [p for group in self.param_groups for p in group["params"]]

    def _listed(self, params: Any) -> list[Any]:
        # A set has another order in the next process, so its state could not be loaded.
        unordered = isinstance(params, set | frozenset | dict)
        if unordered or checks.is_parameter(params) or not isinstance(params, Iterable):
            raise TypeError(
                f"{self._op}: params must be an ordered iterable of parameters or of dicts, "
                f"got {type(params).__name__}"
            )
        return list(params)
