"""Answers to what programs ask about CUDA: there is none.

Seeds are accepted, so that a program that sets all of them runs.
"""

from __future__ import annotations

from typing import Any, NoReturn

__all__ = [
    "current_device",
    "current_stream",
    "device_count",
    "empty_cache",
    "get_device_name",
    "get_device_properties",
    "is_available",
    "is_bf16_supported",
    "is_initialized",
    "manual_seed",
    "manual_seed_all",
    "max_memory_allocated",
    "memory_allocated",
    "reset_peak_memory_stats",
    "set_device",
    "synchronize",
]


def is_available() -> bool:
    """Whether there is a CUDA device: False."""
    return False


def is_bf16_supported() -> bool:
    """Whether a CUDA device computes with bfloat16: False."""
    return False


def is_initialized() -> bool:
    """Whether CUDA is in use: False."""
    return False


def device_count() -> int:
    """How many CUDA devices there are: 0."""
    return 0


def manual_seed(seed: int) -> None:
    """Do nothing: there is no CUDA random state."""


def manual_seed_all(seed: int) -> None:
    """Do nothing: there is no CUDA random state."""


def empty_cache() -> None:
    """Do nothing: there is no CUDA memory."""


def reset_peak_memory_stats(device: Any = None) -> None:
    """Do nothing: there is no CUDA memory."""


def memory_allocated(device: Any = None) -> int:
    """Bytes in use: 0."""
    return 0


def max_memory_allocated(device: Any = None) -> int:
    """Most bytes in use so far: 0."""
    return 0


def _none(name: str) -> NoReturn:
    raise RuntimeError(
        f"cuda.{name}: there must be a CUDA device, got none: fastlayers computes on the CPU; ask "
        f"cuda.is_available() first"
    )


def current_device() -> int:
    """Not supported: there is no device.

    Raises
    ------
    RuntimeError
        Always, as all functions that need a device.
    """
    _none("current_device")


def set_device(device: Any) -> None:
    """Not supported, as `current_device`."""
    _none("set_device")


def get_device_name(device: Any = None) -> str:
    """Not supported, as `current_device`."""
    _none("get_device_name")


def get_device_properties(device: Any = None) -> Any:
    """Not supported, as `current_device`."""
    _none("get_device_properties")


def current_stream(device: Any = None) -> Any:
    """Not supported, as `current_device`."""
    _none("current_stream")


def synchronize(device: Any = None) -> None:
    """Not supported, as `current_device`."""
    _none("synchronize")
