"""MNIST and Fashion-MNIST, read from the IDX files in which they are published."""

import os
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fastlayers.autograd import Tensor
from fastlayers.data.download import data_folder, fetch, find_file
from fastlayers.data.idx import read_idx
from fastlayers.vision.datasets.base import Function, VisionDataset


class MNIST(VisionDataset):
    """The MNIST handwritten digits: 60,000 training and 10,000 test images.

    As `torchvision.datasets.MNIST
    <https://docs.pytorch.org/vision/stable/generated/torchvision.datasets.MNIST.html>`_, but with
    images that are ready for use without a transform: float32 of shape (1, 28, 28) in [0, 1].

    Parameters
    ----------
    root : path, optional
        The folder to look in: first in ``root/MNIST/raw``, then in ``root`` itself, for the IDX
        files with or without ``.gz``. By default see `data_folder`.
    train : bool
        Whether to give the training images or the test images.
    transform, target_transform : callable, optional
        Called with each image, uint8 of shape (28, 28), and each label, an int.
    download : bool
        Whether to download what is missing, into ``root/MNIST/raw``.

    Attributes
    ----------
    data : Tensor
        The images, uint8 of shape (N, 28, 28).
    targets : Tensor
        The labels, int64 of shape (N,).

    Raises
    ------
    TypeError
        A transform cannot be called.
    FileNotFoundError
        A file is missing and could not be downloaded.
    ValueError
        A file is damaged, or holds something else.
    """

    classes: Any = (
        "0 - zero",
        "1 - one",
        "2 - two",
        "3 - three",
        "4 - four",
        "5 - five",
        "6 - six",
        "7 - seven",
        "8 - eight",
        "9 - nine",
    )
    _name: ClassVar[str] = "MNIST"
    _address: ClassVar[str] = "https://ossci-datasets.s3.amazonaws.com/mnist/"
    _md5: ClassVar[dict[str, str]] = {
        "train-images-idx3-ubyte": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
        "train-labels-idx1-ubyte": "d53e105ee54ea40749a09fcbcd1e9432",
        "t10k-images-idx3-ubyte": "9fb629c4189551a2d022fa330f9573f3",
        "t10k-labels-idx1-ubyte": "ec29112dd5afa0611ce80d1b7f02629c",
    }

    def __init__(
        self,
        root: str | os.PathLike[str] | None = None,
        train: bool = True,
        transform: Function | None = None,
        target_transform: Function | None = None,
        download: bool = False,
    ) -> None:
        super().__init__(root, transform, target_transform)
        self.train = train
        part = "train" if train else "t10k"
        folder = data_folder(root)
        images_path = self._locate(f"{part}-images-idx3-ubyte", folder, download)
        labels_path = self._locate(f"{part}-labels-idx1-ubyte", folder, download)
        images = self._read(images_path, (28, 28))
        labels = self._read(labels_path, ())
        if len(images) != len(labels):
            raise ValueError(
                f"{self._name}: {labels_path} must have one label for each image of "
                f"{images_path}, got {len(labels)} for {len(images)}"
            )
        if labels.size and labels.max() >= len(self.classes):
            raise ValueError(
                f"{self._name}: {labels_path} must hold labels from 0 to "
                f"{len(self.classes) - 1}, got {labels.max()}"
            )
        self.data, self.targets = Tensor(images), Tensor(labels.astype(np.int64))

    def _locate(self, stem: str, root: Path, download: bool) -> Path:
        raw = root / self._name / "raw"
        archive, url = f"{stem}.gz", f"{self._address}{stem}.gz"
        if path := find_file((raw, root), (stem, archive)):
            return path
        if download:
            return fetch(archive, url, self._md5[stem], raw)
        raise FileNotFoundError(
            f"{self._name}: found neither {stem} nor {archive} in {raw} or {root}. "
            f"Pass download=True, or get {url} by hand and put it into {raw}"
        )

    def _read(self, path: Path, item_shape: tuple[int, ...]) -> NDArray[Any]:
        array = read_idx(path)
        if array.dtype != np.uint8 or array.ndim == 0 or array.shape[1:] != item_shape:
            shape = ", ".join(["N", *map(str, item_shape)])
            raise ValueError(
                f"{self._name}: {path} must hold uint8 of shape ({shape}), "
                f"got {array.dtype} of shape {array.shape}"
            )
        return array


class FashionMNIST(MNIST):
    """Zalando's Fashion-MNIST: 60,000 training and 10,000 test images of ten kinds of clothing.

    As `torchvision.datasets.FashionMNIST
    <https://docs.pytorch.org/vision/stable/generated/torchvision.datasets.FashionMNIST.html>`_,
    with the shapes, parameters and errors of `MNIST`; the folder is ``root/FashionMNIST/raw``. Its
    files have the names of MNIST's: do not put both into ``root`` itself.
    """

    classes: Any = (
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    )
    _name: ClassVar[str] = "FashionMNIST"
    _address: ClassVar[str] = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
    _md5: ClassVar[dict[str, str]] = {
        "train-images-idx3-ubyte": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
        "train-labels-idx1-ubyte": "25c81989df183df01b3e8a0aad5dffbe",
        "t10k-images-idx3-ubyte": "bef4ecab320f06d8554ea6380940ec79",
        "t10k-labels-idx1-ubyte": "bb300cfdad3c16e7a12a480ee83cd310",
    }
