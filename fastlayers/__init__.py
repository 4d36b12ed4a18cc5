"""Train convolutional networks on a CPU, fast and without torch.

``import fastlayers as fl`` gives PyTorch-shaped layers (`fl.nn`), optimisers (`fl.optim`), data
(`fl.data`), images (`fl.vision`) and training (`fl.training`), also on several processes
(`fl.distributed`), and below them the ops on NumPy arrays (`fl.ops`) and the compiled kernels
(`fl.kernels`).

Each is loaded when it is first used, and Numba with the first kernel.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastlayers import (
        data,
        distributed,
        kernels,
        models,
        nn,
        ops,
        optim,
        random,
        testing,
        training,
        utils,
        vision,
    )
    from fastlayers.autograd import Tensor, no_grad, tensor
    from fastlayers.checkpoint import load, save
    from fastlayers.lazy import is_fusion_enabled, set_fusion_enabled
    from fastlayers.precompile import warmup
    from fastlayers.profiling import profile
    from fastlayers.random import Generator, manual_seed
    from fastlayers.runtime.threads import get_num_threads, set_num_threads

__version__ = "0.1.0"

__all__ = [
    "Generator",
    "Tensor",
    "data",
    "distributed",
    "get_num_threads",
    "is_fusion_enabled",
    "kernels",
    "load",
    "manual_seed",
    "models",
    "nn",
    "no_grad",
    "ops",
    "optim",
    "profile",
    "random",
    "save",
    "set_fusion_enabled",
    "set_num_threads",
    "tensor",
    "testing",
    "training",
    "utils",
    "vision",
    "warmup",
]

_HOMES = {
    "Generator": "random",
    "Tensor": "autograd",
    "get_num_threads": "runtime.threads",
    "is_fusion_enabled": "lazy",
    "load": "checkpoint",
    "manual_seed": "random",
    "no_grad": "autograd",
    "profile": "profiling",
    "save": "checkpoint",
    "set_fusion_enabled": "lazy",
    "set_num_threads": "runtime.threads",
    "tensor": "autograd",
    "warmup": "precompile",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    elif name in __all__:
        value = importlib.import_module(f"{__name__}.{name}")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
