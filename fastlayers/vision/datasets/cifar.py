"""CIFAR-10 and CIFAR-100, read from the files in which they are published."""

from __future__ import annotations

import os
import shutil
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fastlayers.data.download import atomic_write, data_folder, fetch
from fastlayers.vision.datasets.base import Function, VisionDataset
from fastlayers.vision.datasets.pickled import read_pickled

__all__ = ["CIFAR10", "CIFAR100"]

_RECORD_BYTES = 1 + 3 * 32 * 32  # the label, then the planes
_PLANES = (3, 32, 32)
Records = tuple[NDArray[np.uint8], list[int]]  # planes (N, 3072), and labels


class CIFAR10(VisionDataset):
    """The CIFAR-10 photographs: 50,000 training and 10,000 test images of ten kinds of things.

    As `torchvision.datasets.CIFAR10
    <https://docs.pytorch.org/vision/stable/generated/torchvision.datasets.CIFAR10.html>`_, but with
    images that are ready for use without a transform: float32 of shape (3, 32, 32) in [0, 1]. The
    source is https://www.cs.toronto.edu/~kriz/cifar.html. Its Python version is read without
    executing its pickles; its binary version, with the same images, can be read as well.

    Parameters
    ----------
    root : path, optional
        The folder that holds ``cifar-10-batches-py`` or ``cifar-10-batches-bin``. By default see
        `fastlayers.data.data_folder`.
    train : bool
        Whether to give the training images or the test images.
    transform, target_transform : callable, optional
        Called with each image, uint8 of shape (32, 32, 3), and each label, an int.
    download : bool
        Whether to download and unpack the archive of the Python version into ``root``, if there is
        no complete folder.

    Attributes
    ----------
    data : ndarray
        The images, uint8 of shape (N, 32, 32, 3).
    targets : list of int
        The labels.

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
        "airplane",
        "automobile",
        "bird",
        "cat",
        "deer",
        "dog",
        "frog",
        "horse",
        "ship",
        "truck",
    )
    _folder: ClassVar[str] = "cifar-10-batches-py"
    _binary: ClassVar[str | None] = "cifar-10-batches-bin"
    _train_files: ClassVar[tuple[str, ...]] = tuple(f"data_batch_{n}" for n in range(1, 6))
    _test_files: ClassVar[tuple[str, ...]] = ("test_batch",)
    _meta: ClassVar[tuple[str, bytes]] = ("batches.meta", b"label_names")
    _labels: ClassVar[bytes] = b"labels"
    _archive: ClassVar[str] = "cifar-10-python.tar.gz"
    _url: ClassVar[str] = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
    _md5: ClassVar[str] = "c58f30108f718f92721af3b95e74349a"

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
        parent = data_folder(root)
        paths = self._find(parent)
        if paths is None and download:
            self._extract(fetch(self._archive, self._url, self._md5, parent), parent)
            paths = self._find(parent)
        if paths is None:
            raise FileNotFoundError(self._missing(parent))
        parts = [self._read(path) for path in paths]
        planes = np.concatenate([pixels for pixels, _ in parts]).reshape(-1, *_PLANES)
        self.data = planes.transpose(0, 2, 3, 1)
        self.targets = [label for _, labels in parts for label in labels]

    def _find(self, parent: Path) -> list[Path] | None:
        """The files, in the order of the images, of the first version that is complete."""
        names = self._train_files if self.train else self._test_files
        versions = [[parent / self._folder / name for name in (*names, *self._needed())]]
        if self._binary:
            versions.append([parent / self._binary / f"{name}.bin" for name in names])
        for paths in versions:
            if all(path.is_file() for path in paths):
                return paths[: len(names)]
        return None

    def _needed(self) -> tuple[str, ...]:
        """Files other than those with images."""
        return ()

    def _missing(self, parent: Path) -> str:
        names = self._train_files if self.train else self._test_files
        missing = [n for n in names if not (parent / self._folder / n).is_file()] or self._needed()
        also = ""
        if self._binary:
            absent = [n for n in names if not (parent / self._binary / f"{n}.bin").is_file()]
            also = f", nor {', '.join(f'{n}.bin' for n in absent)} in {parent / self._binary}"
        return (
            f"{type(self).__name__}: did not find {', '.join(missing)} in "
            f"{parent / self._folder}{also}. Pass download=True, or get {self._url} by hand and "
            f"unpack it in {parent}"
        )

    def _read(self, path: Path) -> Records:
        pixels, labels = _read_binary(path) if path.suffix == ".bin" else self._read_batch(path)
        wrong = next((label for label in labels if not 0 <= label < len(self.classes)), None)
        if wrong is not None:
            raise ValueError(
                f"{type(self).__name__}: {path} ({path.stat().st_size} bytes) must hold labels "
                f"from 0 to {len(self.classes) - 1}, got {wrong}"
            )
        return pixels, labels

    def _read_batch(self, path: Path) -> Records:
        pixels, labels = _entries(type(self).__name__, path, b"data", self._labels)
        if not isinstance(pixels, np.ndarray) or pixels.shape[1:] != (3072,) or pixels.ndim != 2:
            shape = getattr(pixels, "shape", type(pixels).__name__)
            raise ValueError(
                f"{type(self).__name__}: {path} must hold images of shape (N, 3072), got {shape}"
            )
        if not _is_list(labels, int) or len(labels) != len(pixels):
            raise ValueError(
                f"{type(self).__name__}: {path} must hold one label for each of {len(pixels)} "
                f"images, got {len(labels) if isinstance(labels, list) else labels!r}"
            )
        return pixels, labels

    def _extract(self, archive: Path, parent: Path) -> None:
        """Unpack the expected members by name, so that no member can write elsewhere."""
        folder = parent / self._folder
        folder.mkdir(parents=True, exist_ok=True)
        with tarfile.open(archive, "r:gz") as tar:
            members = {member.name: member for member in tar if member.isreg()}
            for name in (*self._train_files, *self._test_files, self._meta[0]):
                member = members.get(f"{self._folder}/{name}")
                source = tar.extractfile(member) if member else None
                if source is None:
                    raise ValueError(
                        f"{type(self).__name__}: {archive} must hold the regular file "
                        f"{self._folder}/{name}, got "
                        f"{', '.join(sorted(members)) or 'no regular files'}"
                    )
                with source, atomic_write(folder / name) as target:
                    shutil.copyfileobj(source, target)


class CIFAR100(CIFAR10):
    """The CIFAR-100 photographs: 50,000 training and 10,000 test images of a hundred kinds.

    As `torchvision.datasets.CIFAR100
    <https://docs.pytorch.org/vision/stable/generated/torchvision.datasets.CIFAR100.html>`_, with
    the shapes, parameters and errors of `CIFAR10`; labels are the fine ones. The folder is
    ``root/cifar-100-python``, and its file ``meta`` gives the `classes`.
    """

    _folder = "cifar-100-python"
    _binary = None
    _train_files = ("train",)
    _test_files = ("test",)
    _meta = ("meta", b"fine_label_names")
    _labels = b"fine_labels"
    _archive = "cifar-100-python.tar.gz"
    _url = "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz"
    _md5 = "eb9058c3a382ffc7106e4002c42a8d85"

    def _needed(self) -> tuple[str, ...]:
        return (self._meta[0],)

    def _read(self, path: Path) -> Records:
        name, key = self._meta
        meta = path.with_name(name)
        (names,) = _entries("CIFAR100", meta, key)
        if not _is_list(names, bytes):
            raise ValueError(f"CIFAR100: {meta} must hold a list of names, got {names!r}")
        self.classes = tuple(text.decode("utf-8", "replace") for text in names)
        return super()._read(path)


def _read_binary(path: Path) -> Records:
    size = path.stat().st_size
    if size == 0 or size % _RECORD_BYTES:
        raise ValueError(
            f"CIFAR10: {path} must hold records of {_RECORD_BYTES} bytes each, got {size} bytes"
        )
    records = np.fromfile(path, dtype=np.uint8).reshape(-1, _RECORD_BYTES)
    return records[:, 1:], records[:, 0].tolist()


def _entries(op: str, path: Path, *keys: bytes) -> Sequence[Any]:
    """The values of a pickled dict under some keys."""
    try:
        found = read_pickled(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{op}: {path} must be a file of the dataset, got {error}") from error
    if missing := [key.decode() for key in keys if key not in found]:
        raise ValueError(f"{op}: {path} must hold {', '.join(missing)}, got {sorted(found)}")
    return [found[key] for key in keys]


def _is_list(value: Any, kind: type) -> bool:
    return type(value) is list and all(type(item) is kind for item in value)
