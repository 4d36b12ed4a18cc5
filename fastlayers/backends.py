"""Settings of PyTorch's backends: the kernels here have none, and programs may set them.

What cuDNN's switches ask for holds anyway: results are bitwise reproducible.
https://docs.pytorch.org/docs/stable/backends.html
"""

__all__ = ["cuda", "cudnn", "mkldnn", "mps"]


class _Backend:
    """A backend that is not available."""

    benchmark = deterministic = enabled = allow_tf32 = False

    def is_available(self) -> bool:
        """Whether the backend can be used: False."""
        return False

    def is_built(self) -> bool:
        """Whether the library was built with it: False."""
        return False


cuda, cudnn, mkldnn, mps = _Backend(), _Backend(), _Backend(), _Backend()
