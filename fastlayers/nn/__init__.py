"""Layers, losses and models' building blocks with PyTorch's names."""

from typing import TYPE_CHECKING, Any

from fastlayers.names import absent
from fastlayers.nn import activation, functional, init, utils
from fastlayers.nn.activation import *
from fastlayers.nn.batchnorm import BatchNorm1d, BatchNorm2d
from fastlayers.nn.container import Identity, ModuleDict, ModuleList, Sequential
from fastlayers.nn.conv import Conv2d
from fastlayers.nn.dropout import Dropout, Dropout1d, Dropout2d
from fastlayers.nn.linear import Flatten, Linear
from fastlayers.nn.loss import BCEWithLogitsLoss, CrossEntropyLoss, MSELoss, NLLLoss
from fastlayers.nn.module import Module, Parameter
from fastlayers.nn.parameter_list import ParameterList
from fastlayers.nn.pool import AdaptiveAvgPool2d, AvgPool2d, MaxPool2d

if TYPE_CHECKING:
    from fastlayers.distributed import SyncBatchNorm  # noqa: F401

__all__ = [
    "AdaptiveAvgPool2d",
    "AvgPool2d",
    "BCEWithLogitsLoss",
    "BatchNorm1d",
    "BatchNorm2d",
    "Conv2d",
    "CrossEntropyLoss",
    "Dropout",
    "Dropout1d",
    "Dropout2d",
    "Flatten",
    "Identity",
    "Linear",
    "MSELoss",
    "MaxPool2d",
    "Module",
    "ModuleDict",
    "ModuleList",
    "NLLLoss",
    "Parameter",
    "ParameterList",
    "Sequential",
    "functional",
    "init",
    "utils",
]
__all__ += activation.__all__


def __getattr__(name: str) -> Any:
    if name == "SyncBatchNorm":  # importing `distributed` takes time, so only when it is used
        from fastlayers.distributed import SyncBatchNorm

        return SyncBatchNorm
    raise absent("nn", name, [*__all__, "SyncBatchNorm"])
