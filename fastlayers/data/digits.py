"""The small handwritten digits that come with the library."""

from importlib import resources
from typing import ClassVar

import numpy as np

from fastlayers.data.tensors import ImageDataset

_TRAIN_COUNT = 1437


class Digits(ImageDataset):
    """1,797 handwritten digits of 8x8 pixels, bundled with the library: nothing to download.

    The test set of "Optical Recognition of Handwritten Digits" by E. Alpaydin and C. Kaynak, UCI
    Machine Learning Repository, CC BY 4.0, as it is in scikit-learn's ``load_digits``:
    https://archive.ics.uci.edu/dataset/80/optical+recognition+of+handwritten+digits. Images are
    float32 of shape (N, 1, 8, 8), the 17 levels of the source scaled to [0, 1], and labels int64
    (N,).

    The split is that of this library: in the order of the source, the first 1,437 images are for
    training and the last 360 for testing. The source names 13 writers, but not who wrote which
    image, so a writer may be in both parts.

    Parameters
    ----------
    train : bool
        Whether to give the training images or the test images.
    """

    classes: ClassVar[tuple[str, ...]] = tuple("0123456789")

    def __init__(self, train: bool = True) -> None:
        part = slice(None, _TRAIN_COUNT) if train else slice(_TRAIN_COUNT, None)
        source = resources.files("fastlayers.data").joinpath("digits.npz")
        with source.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
            images, labels = arrays["images"][part], arrays["labels"][part]
        pixels = np.divide(images[:, np.newaxis], np.float32(16), dtype=np.float32)
        super().__init__(pixels, labels.astype(np.int64))
