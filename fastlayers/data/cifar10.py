"""CIFAR-10, read from the binary version of its files."""

import os
import shutil
import tarfile
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from fastlayers.data.dataset import ImageDataset
from fastlayers.data.download import atomic_write, data_folder, fetch

_TRAIN_FILES = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
_TEST_FILES = ("test_batch.bin",)
_FOLDER = "cifar-10-batches-bin"
_ARCHIVE = "cifar-10-binary.tar.gz"
_IMAGE_SHAPE = (3, 32, 32)
_RECORD_BYTES = 1 + 3 * 32 * 32  # the label, then the planes


class CIFAR10(ImageDataset):
    """The CIFAR-10 photographs: 50,000 training and 10,000 test images of ten kinds of things.

    As `torchvision.datasets.CIFAR10
    <https://pytorch.org/vision/stable/generated/torchvision.datasets.CIFAR10.html>`_, but read
    from the binary version of https://www.cs.toronto.edu/~kriz/cifar.html, which needs no pickle,
    and with the images ready for use: float32 of shape (N, 3, 32, 32) in [0, 1], and labels int64
    (N,).

    Parameters
    ----------
    root : path, optional
        The folder that holds ``cifar-10-batches-bin``. By default see `data_folder`.
    train : bool
        Whether to give the training images or the test images.
    download : bool
        Whether to download and unpack the archive, into ``root``, if a file is missing.

    Raises
    ------
    FileNotFoundError
        A file is neither there nor could it be downloaded.
    ValueError
        A file is damaged, or holds something else.
    """

    classes: ClassVar[tuple[str, ...]] = (
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
    _url: ClassVar[str] = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
    _md5: ClassVar[str] = "c32a1d4ab5d03f1284b67883e8d87530"

    def __init__(
        self,
        root: str | os.PathLike[str] | None = None,
        train: bool = True,
        download: bool = False,
    ) -> None:
        names = _TRAIN_FILES if train else _TEST_FILES
        parent = data_folder(root)
        folder = parent / _FOLDER
        if download and _missing(folder, names):
            _extract(fetch(_ARCHIVE, self._url, self._md5, parent), folder)
        if missing := _missing(folder, names):
            raise FileNotFoundError(
                f"CIFAR10: did not find {', '.join(missing)} in {folder}. Pass download=True, or "
                f"get {self._url} by hand and unpack it in {parent}"
            )
        records = np.concatenate([_read_records(folder / name) for name in names])
        planes = records[:, 1:].reshape(-1, *_IMAGE_SHAPE)
        pixels = np.divide(planes, np.float32(255), dtype=np.float32)
        super().__init__(pixels, records[:, 0].astype(np.int64))


def _missing(folder: Path, names: tuple[str, ...]) -> list[str]:
    return [name for name in names if not (folder / name).is_file()]


def _read_records(path: Path) -> NDArray[np.uint8]:
    size = path.stat().st_size
    if size == 0 or size % _RECORD_BYTES:
        raise ValueError(
            f"CIFAR10: {path} must hold records of {_RECORD_BYTES} bytes each, got {size} bytes"
        )
    records = np.fromfile(path, dtype=np.uint8).reshape(-1, _RECORD_BYTES)
    if (largest := records[:, 0].max()) >= len(CIFAR10.classes):
        raise ValueError(
            f"CIFAR10: {path} ({size} bytes) must hold labels from 0 to "
            f"{len(CIFAR10.classes) - 1}, got {largest}"
        )
    return records


def _extract(archive: Path, folder: Path) -> None:
    """Unpack the expected members by name, so that no member can write elsewhere."""
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive, "r:gz") as tar:
        members = {member.name: member for member in tar if member.isreg()}
        for name in (*_TRAIN_FILES, *_TEST_FILES):
            member = members.get(f"{_FOLDER}/{name}")
            source = tar.extractfile(member) if member else None
            if source is None:
                raise ValueError(
                    f"CIFAR10: {archive} must hold the regular file {_FOLDER}/{name}, got "
                    f"{', '.join(sorted(members)) or 'no regular files'}"
                )
            with source, atomic_write(folder / name) as target:
                shutil.copyfileobj(source, target)
