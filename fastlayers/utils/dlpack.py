"""Exchange of tensors with other libraries, under PyTorch's name."""

from fastlayers.functions.dlpack import from_dlpack, to_dlpack

__all__ = ["from_dlpack", "to_dlpack"]
