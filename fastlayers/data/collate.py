"""From samples to batches: stacking of fields, and wrapping of the result into tensors."""

import copy
from collections.abc import Callable, Mapping, MutableMapping, MutableSequence, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastlayers.autograd import Tensor

_TEXT = (str, bytes)
_NUMERIC = "biufc"  # kinds of dtypes


def default_collate(batch: Sequence[Any]) -> Any:
    """Stack the fields of several samples along a new first axis, into Tensors.

    Follows `torch.utils.data.default_collate
    <https://docs.pytorch.org/docs/stable/data.html#torch.utils.data.default_collate>`_, except that
    Python floats become float32, the default dtype of a float tensor.

    Parameters
    ----------
    batch : sequence
        At least one sample. Each is an array, a Tensor, a number, a text, or a tuple, list or
        mapping of those; all samples have the same structure and the same shapes.

    Returns
    -------
    Tensor, list, tuple or mapping
        One Tensor of shape ``(len(batch), ...)`` per field: dtypes are kept, Python ints give
        int64 and Python floats float32. Texts (``str``, ``bytes``) stay a list. Tuples give a
        list; named tuples, lists and mappings one of their type.

    Raises
    ------
    TypeError
        A field is neither numeric nor text nor a container, for example None.
    ValueError
        The samples differ in structure or in shape.
    """
    return default_convert(collate(batch))


def collate(samples: Sequence[Any]) -> Any:
    """Stack fields as `default_collate` does, into arrays.

    Returns
    -------
    ndarray, list, tuple or mapping

    Raises
    ------
    TypeError, ValueError
        As for `default_collate`.
    """
    first = samples[0]
    if isinstance(first, _TEXT):
        return list(samples)
    if isinstance(first, Mapping):
        return _like_mapping(first, {key: collate([s[key] for s in samples]) for key in first})
    if not isinstance(first, Sequence):
        return _stack(samples)
    if len({len(sample) for sample in samples}) > 1:
        lengths = [len(sample) for sample in samples]
        raise ValueError(f"collate: samples must have equally many fields, got {lengths}")
    return _like_sequence(first, [collate(field) for field in zip(*samples, strict=True)])


def default_convert(data: Any) -> Any:
    """Wrap every array of a sample or a batch into a Tensor, without a copy.

    Follows ``torch.utils.data.default_convert``: tuples become lists, other containers keep their
    type, and anything else stays as it is.
    """
    if isinstance(data, np.ndarray | np.generic):
        return Tensor(data) if data.dtype.kind in _NUMERIC else data
    return _of_fields(data, default_convert)


def cut(batch: Any, choose: Callable[[int], slice]) -> Any:
    """Some of the samples of a batch: each field is cut as `choose` says for its length."""
    if isinstance(batch, Tensor | np.ndarray):
        return batch[choose(batch.shape[0])]
    if isinstance(batch, list) and all(isinstance(item, _TEXT) for item in batch):
        return batch[choose(len(batch))]
    return _of_fields(batch, lambda field: cut(field, choose))


def _of_fields(data: Any, function: Callable[[Any], Any]) -> Any:
    """A container of a function's result for each field; `data` itself if it is not a container."""
    if isinstance(data, Mapping):
        return _like_mapping(data, {key: function(field) for key, field in data.items()})
    if isinstance(data, Sequence) and not isinstance(data, _TEXT):
        return _like_sequence(data, [function(field) for field in data])
    return data


def _like_mapping(first: Mapping[Any, Any], fields: dict[Any, Any]) -> Any:
    """The fields in a mapping of the type of `first`, or in a dict where that can't be made."""
    if type(first) is dict:
        return fields
    try:
        if isinstance(first, MutableMapping):  # which may have more to it than its items
            made = copy.copy(first)
            made.update(fields)
            return made
        return type(first)(fields)  # type: ignore[call-arg]
    except TypeError:
        return fields


def _like_sequence(first: Sequence[Any], fields: list[Any]) -> Any:
    """The fields in a named tuple or a sequence of the type of `first`, or in a list."""
    if type(first) in (list, tuple):
        return fields
    if isinstance(first, tuple):
        return type(first)(*fields) if hasattr(first, "_fields") else fields
    try:
        if isinstance(first, MutableSequence):
            made = copy.copy(first)
            for position, field in enumerate(fields):
                made[position] = field
            return made
        return type(first)(fields)  # type: ignore[call-arg]
    except TypeError:
        return fields


def _stack(values: Sequence[Any]) -> NDArray[Any]:
    if all(_is_python_number(value) for value in values):
        return np.asarray(values, dtype=_dtype_of_numbers(values))
    arrays = [_as_array(value) for value in values]
    if any(array.shape != arrays[0].shape for array in arrays):
        shapes = sorted({array.shape for array in arrays})
        raise ValueError(f"collate: samples of a batch must have equal shapes, got {shapes}")
    return np.stack(arrays)


def _is_python_number(value: Any) -> bool:
    # NumPy's float64 is a subclass of float, but its dtype was chosen deliberately and is kept.
    return isinstance(value, int | float) and not isinstance(value, np.generic)


def _dtype_of_numbers(values: Sequence[int | float]) -> type[np.generic]:
    if any(isinstance(value, float) for value in values):
        return np.float32
    return np.bool_ if all(isinstance(value, bool) for value in values) else np.int64


def _as_array(value: Any) -> NDArray[Any]:
    if isinstance(value, Tensor):
        return value.array()
    given = type(value).__name__
    if isinstance(value, np.ndarray | np.generic) or _is_python_number(value):
        array = np.asarray(value)
        if array.dtype.kind in _NUMERIC:
            return array
        given = f"{given} of {array.dtype}"
    raise TypeError(
        "collate: samples must hold arrays, Tensors, numbers or texts, in tuples, lists or "
        f"mappings, got {given}"
    )
