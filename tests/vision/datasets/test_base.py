"""Samples and batches of image data sets, with and without transforms."""

import numpy as np
import pytest

import fastlayers as fl
from fastlayers.autograd import Tensor
from fastlayers.data import DataLoader, Subset
from fastlayers.vision import transforms as T
from fastlayers.vision.datasets import FakeData


class Mine(T.Normalize):
    def __call__(self, tensor):
        return super().__call__(tensor) * 2


class Ragged:
    def __call__(self, image):
        return image[: 5 + image[0, 0, 0] % 2]


TAIL = [T.ToTensor(), T.Normalize((0.1, 0.2, 0.3), (0.5, 0.6, 0.7))]
TRANSFORMS = [
    None,
    T.ToTensor(),
    T.PILToTensor(),
    T.Compose(TAIL),
    T.Compose([T.Compose(TAIL), T.ConvertImageDtype(np.float64)]),
    T.Compose([T.RandomCrop(8, padding=2), T.RandomHorizontalFlip(), *TAIL]),
    T.Compose([T.ToTensor(), T.RandomVerticalFlip(), TAIL[1]]),
    T.Compose([*TAIL, T.RandomVerticalFlip()]),
    T.Compose([T.ToTensor(), Mine(0.5, 0.5)]),
    T.Compose([T.Lambda(lambda x: x[..., 0]), T.ToTensor()]),
    T.Compose([Ragged(), T.CenterCrop(5), *TAIL]),
    T.Compose([Ragged(), T.ToTensor(), T.CenterCrop(5)]),
    lambda image: image.sum(),
]


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("size", [(3, 8, 8), (1, 6, 7)])
def test_batches_are_bitwise_those_of_samples(transform, size):
    if size[0] == 1 and transform is not None and TAIL[1] in getattr(transform, "transforms", ()):
        pytest.skip("three means for one channel")
    data = FakeData(9, size, transform=transform, target_transform=lambda label: label + 0.5)
    if size[0] == 1:
        data.data = Tensor(data.data[..., 0])  # as MNIST's
    indices = np.array([3, 0, 8, 3])
    fl.manual_seed(0)
    try:
        samples = [data[int(i)] for i in indices]
    except (TypeError, ValueError, IndexError) as error:
        with pytest.raises(type(error)):
            data.fetch_batch(indices)
        return
    fl.manual_seed(0)
    images, labels = data.fetch_batch(indices)
    assert images.dtype == np.asarray(samples[0][0]).dtype
    for image, label, sample in zip(images, labels, samples, strict=True):
        np.testing.assert_array_equal(np.asarray(image), np.asarray(sample[0]))
        assert label == sample[1]


def test_without_a_transform_samples_are_ready():
    data = FakeData(5, (3, 4, 6))
    image, label = data[2]
    assert image.dtype == np.float32 and image.shape == (3, 4, 6) and type(label) is int
    np.testing.assert_array_equal(image, data.data[2].transpose(2, 0, 1) / np.float32(255))
    np.testing.assert_array_equal(data.images[2], image)
    assert data.labels.tolist() == data.targets and data.labels.dtype == np.int64
    images, labels = data[1:4]
    np.testing.assert_array_equal(images, data.images[1:4])
    assert labels.tolist() == data.targets[1:4] == data[[1, 2, 3]][1].tolist()
    assert [len(part) for part in data[:0]] == [0, 0]
    with pytest.raises(IndexError, match="FakeData: index must be in"):
        data[5]
    with pytest.raises(IndexError, match="FakeData: index must be in"):
        data.fetch_batch(np.array([5]))


def test_a_transform_is_given_pixels_of_its_own():
    seen = []

    def spoil(image):
        seen.append((image.dtype, image.shape, image.flags.c_contiguous))
        image[:] = 0
        return image

    data = FakeData(3, (3, 4, 6), transform=spoil)
    before = data.data.copy()
    list(data), list(DataLoader(data, 3))
    assert set(seen) == {(np.dtype(np.uint8), (4, 6, 3), True)} and len(seen) == 6
    np.testing.assert_array_equal(data.data, before)


def test_data_and_targets_may_be_replaced():
    data = FakeData(20, (3, 4, 4), 3)
    kept = [i for i, label in enumerate(data.targets) if label == 1]
    data.data, data.targets = data.data[kept], np.array(data.targets)[kept]
    assert len(data) == len(kept) > 0
    (_, labels) = next(iter(DataLoader(data, len(kept))))
    assert set(np.asarray(labels).tolist()) == {1} and data[0][1] == 1


def test_overridden_getitem_is_used_for_batches():
    class Negated(FakeData):
        def __getitem__(self, index):
            image, label = super().__getitem__(index)
            return -image, label

    data = Negated(4, (3, 2, 2))
    images, _ = Subset(data, [2, 0]).fetch_batch(np.array([1, 0]))
    np.testing.assert_array_equal(images, -data.images[[0, 2]])


def test_repr():
    assert repr(FakeData(3)) == "Dataset FakeData\n    Number of datapoints: 3"
    data = FakeData(3, transform=T.Compose(TAIL[:1]), target_transform=T.Lambda(abs))
    data.root, data.train = "./data", False
    assert repr(data) == (
        "Dataset FakeData\n    Number of datapoints: 3\n    Root location: ./data\n"
        "    Split: Test\n    StandardTransform\nTransform: Compose(\n               ToTensor()\n"
        "           )\nTarget transform: Lambda()"
    )
    assert data.class_to_idx["7"] == 7
