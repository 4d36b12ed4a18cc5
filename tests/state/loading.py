"""What is loaded, as arrays."""

from typing import Any

import fastlayers as fl


def load_arrays(*arguments: Any, **options: Any) -> Any:
    """Load, with arrays in the place of tensors."""
    return arrays(fl.load(*arguments, **options))


def arrays(value: Any) -> Any:
    if isinstance(value, fl.Tensor):
        return value.numpy()
    if isinstance(value, dict):
        return {key: arrays(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(arrays(item) for item in value)
    return value
