"""Compiled loops: raw arrays in, raw arrays out, callable from a user's own ``@njit`` code.

Kernels check nothing and allocate nothing that they return; `fastlayers.ops` does both.
Submodules, and with them Numba, are loaded when a name is first used.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "col2im": "unfold",
    "im2col": "unfold",
    "matmul": "linear",
    "prepare_gemm": "gemm",
}
_MODULES = (
    "activation",
    "arithmetic",
    "avg_pool",
    "batchnorm",
    "batchnorm_pool",
    "batchnorm_rows",
    "conv",
    "conv_planar",
    "conv_pool",
    "depthwise",
    "dropout",
    "filter_transform",
    "gemm",
    "grouped_tile",
    "layout",
    "linear",
    "linear_small",
    "linear_tile",
    "loss",
    "micro",
    "optimizer",
    "philox",
    "pool",
    "reduce",
    "runs",
    "speed",
    "transform",
    "unfold",
    "vectors",
    "window_loops",
    "windows",
    "windows_gradient",
    "windows_mean",
    "winograd",
    "winograd_gradient",
    "winograd_rows",
)

__all__ = [*_MODULES, *_HOMES]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    elif name in _MODULES:
        value = importlib.import_module(f"{__name__}.{name}")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
