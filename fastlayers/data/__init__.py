"""Datasets, and batches of them for training."""

from typing import TYPE_CHECKING, Any

from fastlayers.data.augment import RandomShift
from fastlayers.data.collate import collate, default_collate, default_convert
from fastlayers.data.dataset import (
    ChainDataset,
    ConcatDataset,
    Dataset,
    IterableDataset,
    Subset,
)
from fastlayers.data.digits import Digits
from fastlayers.data.distributed import DistributedSampler
from fastlayers.data.download import data_folder, fetch
from fastlayers.data.idx import read_idx
from fastlayers.data.loader import DataLoader
from fastlayers.data.sampler import (
    BatchSampler,
    RandomSampler,
    Sampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)
from fastlayers.data.split import random_split
from fastlayers.data.tensors import ImageDataset, TensorDataset
from fastlayers.data.worker import WorkerInfo, get_worker_info

if TYPE_CHECKING:
    from fastlayers.vision.datasets import CIFAR10, MNIST, FashionMNIST

__all__ = [
    "CIFAR10",
    "MNIST",
    "BatchSampler",
    "ChainDataset",
    "ConcatDataset",
    "DataLoader",
    "Dataset",
    "Digits",
    "DistributedSampler",
    "FashionMNIST",
    "ImageDataset",
    "IterableDataset",
    "RandomSampler",
    "RandomShift",
    "Sampler",
    "SequentialSampler",
    "Subset",
    "SubsetRandomSampler",
    "TensorDataset",
    "WeightedRandomSampler",
    "WorkerInfo",
    "collate",
    "data_folder",
    "default_collate",
    "default_convert",
    "fetch",
    "get_worker_info",
    "random_split",
    "read_idx",
]

# Former names of datasets of `fastlayers.vision.datasets`, kept for one version.
_MOVED = ("CIFAR10", "FashionMNIST", "MNIST")


def __getattr__(name: str) -> Any:
    if name not in _MOVED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from fastlayers.vision import datasets

    return getattr(datasets, name)
