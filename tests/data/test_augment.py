"""Random shifts of images."""

import numpy as np
import pytest

from fastlayers import random
from fastlayers.data import DataLoader, RandomShift, TensorDataset

IMAGES = np.arange(1, 6 * 2 * 4 * 5 + 1, dtype=np.float32).reshape(6, 2, 4, 5)


def epoch(loader):
    return [[np.asarray(part) for part in batch] for batch in loader]


def shifted(image, down, right):
    framed = np.pad(image, ((0, 0), (1, 1), (1, 1)))
    return framed[:, down : down + 4, right : right + 5]


def test_every_image_is_moved_on_its_own():
    loader = RandomShift(DataLoader(TensorDataset(IMAGES, np.arange(6)), 3), seed=1)
    assert len(loader) == 2
    moves = set()
    for images, labels in epoch(loader):
        for image, label in zip(images, labels, strict=True):
            places = [(i, j) for i in range(3) for j in range(3)]
            [found] = [p for p in places if np.array_equal(image, shifted(IMAGES[label], *p))]
            moves.add(found)
    assert len(moves) > 1


def test_no_pixels_change_nothing():
    [[images]] = epoch(RandomShift(DataLoader(TensorDataset(IMAGES), 6), pixels=0))
    assert np.array_equal(images, IMAGES)


@pytest.mark.parametrize("seed", [None, 3])
def test_same_seed_same_shifts_in_spite_of_an_early_end(seed):
    def run():
        random.manual_seed(0)
        loader = RandomShift(DataLoader(TensorDataset(IMAGES), 2, num_workers=1), seed=seed)
        next(iter(loader))
        return epoch(loader)

    first, second = run(), run()
    assert all(np.array_equal(a, b) for [a], [b] in zip(first, second, strict=True))


def test_epochs_differ():
    loader = RandomShift(DataLoader(TensorDataset(IMAGES), 6), seed=0)
    assert not np.array_equal(epoch(loader)[0][0], epoch(loader)[0][0])


@pytest.mark.parametrize("pixels", [-1, 0.5, True])
def test_wrong_pixels(pixels):
    with pytest.raises(ValueError, match="RandomShift: pixels must be a non-negative integer, got"):
        RandomShift(DataLoader(TensorDataset(IMAGES)), pixels)
