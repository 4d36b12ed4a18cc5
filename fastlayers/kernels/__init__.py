"""Compiled loops: raw arrays in, raw arrays out, callable from a user's own ``@njit`` code.

Kernels check nothing and allocate nothing that they return; `fastlayers.ops` does both.
Submodules, and with them Numba, are loaded when a name is first used.
"""

from fastlayers.runtime.modules import on_use

_HOMES = {
    "col2im": "conv.unfold",
    "im2col": "conv.unfold",
    "matmul": "linear.products",
    "prepare_gemm": "gemm.gemm",
}
_MODULES = (
    "activation",
    "arithmetic",
    "conv",
    "dropout",
    "gemm",
    "ir",
    "layout",
    "linear",
    "loss",
    "norm",
    "optimizer",
    "pool",
    "reduce",
    "speed",
)
# Those whose functions there are in NumPy too.
_STAND_INS = {
    name: f"fastlayers.reference.kernels.{name}"
    for name in ("activation", "arithmetic", "layout", "loss", "optimizer")
}
__all__ = [*_MODULES, *_HOMES]  # noqa: PLE0604
__getattr__, __dir__ = on_use(__name__, _MODULES, _HOMES, _STAND_INS)
