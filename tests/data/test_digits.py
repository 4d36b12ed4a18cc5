from importlib import resources

import numpy as np
import pytest

from fastlayers.data import Digits, TensorDataset


def test_shapes_and_split():
    train, test = Digits(), Digits(train=False)
    assert isinstance(train, TensorDataset)
    assert train.images.shape == (1437, 1, 8, 8) and test.images.shape == (360, 1, 8, 8)
    for part in (train, test):
        assert part.images.dtype == np.float32 and part.labels.dtype == np.int64
        assert part.images.min() == 0 and part.images.max() == 1
        assert len(part) == len(part.labels)
        assert set(part.labels.tolist()) == set(range(len(part.classes)))
    np.testing.assert_array_equal(train.images * 16, np.round(train.images * 16))


def test_published_class_counts():
    """The counts of the test set in the source's own description (optdigits.names)."""
    labels = np.concatenate([Digits().labels, Digits(train=False).labels])
    counts = [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert np.bincount(labels).tolist() == counts


def test_equals_scikit_learn():
    source = pytest.importorskip("sklearn.datasets").load_digits()
    images = np.concatenate([Digits().images, Digits(train=False).images])
    np.testing.assert_array_equal(images[:, 0] * 16, source.images)
    labels = np.concatenate([Digits().labels, Digits(train=False).labels])
    np.testing.assert_array_equal(labels, source.target)


def test_attribution_comes_along():
    text = resources.files("fastlayers.data").joinpath("digits-LICENSE.txt").read_text()
    assert "Alpaydin" in text and "Kaynak" in text and "CC BY 4.0" in text
