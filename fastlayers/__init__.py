"""Train convolutional networks on a CPU, fast and without torch.

``import fastlayers as fl`` gives PyTorch-shaped layers (`fl.nn`), optimisers (`fl.optim`), data
(`fl.data`), models (`fl.models`) and training (`fl.training`), and below them the ops on NumPy
arrays (`fl.ops`) and the compiled kernels (`fl.kernels`).
"""

from fastlayers import data, kernels, models, nn, ops, optim, training
from fastlayers.autograd import Tensor, no_grad, tensor
from fastlayers.checkpoint import load, save
from fastlayers.lazy import is_fusion_enabled, set_fusion_enabled
from fastlayers.random import manual_seed
from fastlayers.runtime.threads import get_num_threads, set_num_threads

__version__ = "0.1.0"

__all__ = [
    "Tensor",
    "data",
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
    "save",
    "set_fusion_enabled",
    "set_num_threads",
    "tensor",
    "training",
]
