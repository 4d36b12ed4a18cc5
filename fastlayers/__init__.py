"""Train convolutional networks on a CPU, fast and without torch.

``import fastlayers as fl``, or ``as torch``, provides tensors and PyTorch's functions on them
(`fl.exp`, `fl.cat`), layers (`fl.nn`), optimisers (`fl.optim`), datasets, transforms and models
(`fl.vision`), loaders (`fl.data`) and training (`fl.training`), also on several processes
(`fl.distributed`), and below them the ops on NumPy arrays (`fl.ops`) and the compiled kernels
(`fl.kernels`).

Each is loaded when it is first used, and Numba with the first kernel.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastlayers import (
        accelerator,
        autograd,
        backends,
        cuda,
        data,
        distributed,
        func,
        functions,
        kernels,
        linalg,
        models,
        nn,
        ops,
        optim,
        random,
        state,
        testing,
        training,
        utils,
        vision,
    )
    from fastlayers.autograd import (
        Tensor,
        enable_grad,
        inference_mode,
        is_grad_enabled,
        no_grad,
        set_grad_enabled,
    )
    from fastlayers.autograd.dtypes import *
    from fastlayers.autograd.printing import set_printoptions
    from fastlayers.autograd.types import Size, device
    from fastlayers.functions import *
    from fastlayers.lazy import is_fusion_enabled, set_fusion_enabled
    from fastlayers.precompile import warmup
    from fastlayers.profiling import profile
    from fastlayers.profiling.explain import explain
    from fastlayers.random import Generator, manual_seed
    from fastlayers.runtime.threads import get_num_threads, set_num_threads
    from fastlayers.state import load, save

__version__ = "0.1.0"

# With the names of `_SHARED`, which `dir` lists too.
__all__ = [
    "Generator",
    "Size",
    "Tensor",
    "accelerator",
    "autograd",
    "backends",
    "cuda",
    "data",
    "device",
    "distributed",
    "enable_grad",
    "explain",
    "func",
    "functions",
    "get_num_threads",
    "inference_mode",
    "is_fusion_enabled",
    "is_grad_enabled",
    "kernels",
    "linalg",
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
    "set_grad_enabled",
    "set_num_threads",
    "set_printoptions",
    "state",
    "testing",
    "training",
    "utils",
    "vision",
    "warmup",
]

_HOMES = {
    "Generator": "random",
    "Size": "autograd.types",
    "Tensor": "autograd",
    "device": "autograd.types",
    "enable_grad": "autograd",
    "explain": "profiling.explain",
    "get_num_threads": "runtime.threads",
    "inference_mode": "autograd",
    "is_fusion_enabled": "lazy",
    "is_grad_enabled": "autograd",
    "load": "state",
    "manual_seed": "random",
    "no_grad": "autograd",
    "profile": "profiling",
    "save": "state",
    "set_fusion_enabled": "lazy",
    "set_grad_enabled": "autograd",
    "set_num_threads": "runtime.threads",
    "set_printoptions": "autograd.printing",
    "warmup": "precompile",
}
# Whose names are all those of `fastlayers`, so that they are listed in one place only.
_SHARED = ("autograd.dtypes", "functions")  # tensors come first: functions are their methods


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    elif name in __all__:
        value = importlib.import_module(f"{__name__}.{name}")
    else:
        value = _shared(name)
    globals()[name] = value
    return value


def _shared(name: str) -> Any:
    import importlib.util

    # A module that is being imported, `from fastlayers import lazy`, is looked up here first.
    other = name.startswith("_") or importlib.util.find_spec(f"{__name__}.{name}") is not None
    for home in () if other else _SHARED:
        module = importlib.import_module(f"{__name__}.{home}")
        if name in module.__all__:
            return getattr(module, name)
    from fastlayers.names import absent

    raise absent(__name__, name, () if other else __dir__())


def __dir__() -> list[str]:
    shared = (importlib.import_module(f"{__name__}.{home}").__all__ for home in _SHARED)
    return sorted([*__all__, "__version__", *(name for names in shared for name in names)])
