"""A module that holds parameters."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Self

from fastlayers.autograd import Tensor
from fastlayers.nn.module import Module, Parameter

__all__ = ["ParameterList"]


class ParameterList(Module):
    """A list of parameters, which belong to the module that holds the list.

    Parameters
    ----------
    values : iterable of Tensor
        Tensors that are no parameters become parameters.

    Raises
    ------
    TypeError
        If a value is no tensor.

    References
    ----------
    https://docs.pytorch.org/docs/stable/generated/torch.nn.ParameterList.html
    """

    def __init__(self, values: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.extend(values)

    def __len__(self) -> int:
        return len(self._parameters)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._parameters.values())

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return ParameterList(list(self)[index])
        return self._parameters[self._at(index)]

    def __setitem__(self, index: int, value: Tensor) -> None:
        self.register_parameter(self._at(index), _parameter(value))

    def __iadd__(self, values: Iterable[Tensor]) -> Self:
        return self.extend(list(values))

    def _at(self, index: int) -> str:
        count = len(self)
        if not -count <= index < count:
            raise IndexError(f"ParameterList: index must be in [{-count}, {count}), got {index}")
        return str(index % count)

    def append(self, value: Tensor) -> Self:
        """Append a parameter."""
        self.register_parameter(str(len(self)), _parameter(value))
        return self

    def extend(self, values: Iterable[Tensor]) -> Self:
        """Append parameters."""
        for value in values:
            self.append(value)
        return self

    def __repr__(self) -> str:
        lines = []
        for i, p in enumerate(self):
            kind = f"torch.{p.dtype} of size {'x'.join(map(str, p.shape))}"
            lines.append(f"    ({i}): Parameter containing: [{kind}]")
        return "\n".join(["ParameterList(", *lines, ")"]) if lines else "ParameterList()"


def _parameter(value: Any) -> Parameter:
    if isinstance(value, Parameter):
        return value
    if not isinstance(value, Tensor):
        raise TypeError(f"ParameterList: value must be a tensor, got {type(value).__name__}")
    return Parameter(value)
