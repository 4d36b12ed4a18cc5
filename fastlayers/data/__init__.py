"""Datasets, and batches of them for training."""

from fastlayers.data.augment import RandomShift
from fastlayers.data.cifar10 import CIFAR10
from fastlayers.data.collate import collate
from fastlayers.data.dataset import Dataset, ImageDataset, Subset, TensorDataset, random_split
from fastlayers.data.digits import Digits
from fastlayers.data.download import data_folder, fetch
from fastlayers.data.idx import read_idx
from fastlayers.data.loader import DataLoader
from fastlayers.data.mnist import MNIST, FashionMNIST
from fastlayers.data.sampler import DistributedSampler

__all__ = [
    "CIFAR10",
    "MNIST",
    "DataLoader",
    "Dataset",
    "Digits",
    "DistributedSampler",
    "FashionMNIST",
    "ImageDataset",
    "RandomShift",
    "Subset",
    "TensorDataset",
    "collate",
    "data_folder",
    "fetch",
    "random_split",
    "read_idx",
]
