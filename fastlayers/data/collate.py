"""From samples to batches: stacking of fields, and wrapping of the result into tensors."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastlayers.autograd import Tensor


def collate(samples: Sequence[Any]) -> Any:
    """Stack the fields of several samples along a new first axis.

    Follows `torch.utils.data.default_collate
    <https://pytorch.org/docs/stable/data.html#torch.utils.data.default_collate>`_, save that
    Python floats become float32, the default dtype of a float tensor.

    Parameters
    ----------
    samples : sequence
        At least one sample. Each is an array, a Tensor, a number, or a tuple, list or mapping of
        those; all samples have the same structure and the same shapes.

    Returns
    -------
    ndarray, list or dict
        One array of shape ``(len(samples), ...)`` per field: dtypes are kept, Python ints give
        int64 and Python floats float32. Tuples and lists give a list, mappings a dict.

    Raises
    ------
    TypeError
        A field is neither numeric nor a container.
    ValueError
        The samples differ in structure or in shape.
    """
    first = samples[0]
    if isinstance(first, Mapping):
        return {key: collate([sample[key] for sample in samples]) for key in first}
    if isinstance(first, tuple | list):
        if len({len(sample) for sample in samples}) > 1:
            lengths = [len(sample) for sample in samples]
            raise ValueError(f"collate: samples must have equally many fields, got {lengths}")
        return [collate(field) for field in zip(*samples, strict=True)]
    return _stack(samples)


def _stack(values: Sequence[Any]) -> NDArray[Any]:
    if all(_is_python_number(value) for value in values):
        return np.asarray(values, dtype=_dtype_of_numbers(values))
    arrays = [_as_array(value) for value in values]
    if any(array.shape != arrays[0].shape for array in arrays):
        shapes = sorted({array.shape for array in arrays})
        raise ValueError(f"collate: samples of a batch must have equal shapes, got {shapes}")
    return np.stack(arrays)


def _is_python_number(value: Any) -> bool:
    # NumPy's float64 is a subclass of float, but its dtype was chosen and stays.
    return isinstance(value, int | float) and not isinstance(value, np.generic)


def _dtype_of_numbers(values: Sequence[int | float]) -> type[np.generic]:
    if any(isinstance(value, float) for value in values):
        return np.float32
    return np.bool_ if all(isinstance(value, bool) for value in values) else np.int64


def _as_array(value: Any) -> NDArray[Any]:
    if isinstance(value, Tensor):
        return np.asarray(value.data)
    if isinstance(value, np.ndarray | np.generic) or _is_python_number(value):
        return np.asarray(value)
    raise TypeError(
        "collate: samples must hold arrays, Tensors or numbers, in tuples, lists or mappings, "
        f"got {type(value).__name__}"
    )


def to_tensors(batch: Any) -> Any:
    """Wrap every array of a collated batch into a Tensor, tuples becoming lists."""
    if isinstance(batch, Mapping):
        return {key: to_tensors(field) for key, field in batch.items()}
    if isinstance(batch, tuple | list):
        return [to_tensors(field) for field in batch]
    return Tensor(batch)
