"""Accelerators: there are none. For programs that ask before they choose a device.

https://docs.pytorch.org/docs/stable/accelerator.html
"""

from fastlayers.autograd.types import device

__all__ = ["current_accelerator", "device_count", "is_available"]


def is_available() -> bool:
    """Whether there is an accelerator: False."""
    return False


def device_count() -> int:
    """How many accelerators there are: 0."""
    return 0


def current_accelerator(check_available: bool = False) -> device | None:
    """The accelerator in use: None."""
    return None
