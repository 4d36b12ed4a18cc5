import numpy as np
import pytest

from fastlayers.autograd import Tensor
from fastlayers.vision.transforms import (
    ConvertImageDtype,
    Lambda,
    Normalize,
    PILToTensor,
    ToTensor,
)

PIXELS = np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8)


class Picture:
    """What an image of PIL has that is asked for."""

    def __init__(self, array, mode):
        self.array, self.mode = array, mode

    def getbands(self):
        return tuple(self.mode)

    def __array__(self, dtype=None, copy=None):
        return self.array


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (PIXELS, PIXELS.transpose(2, 0, 1).astype(np.float32) / np.float32(255)),
        (PIXELS[..., 0], PIXELS[None, ..., 0].astype(np.float32) / np.float32(255)),
        (PIXELS[::-1, ::-1], PIXELS[::-1, ::-1].transpose(2, 0, 1) / np.float32(255)),
        (PIXELS.astype(np.int32), PIXELS.astype(np.int32).transpose(2, 0, 1)),
        (PIXELS.astype(np.float64), PIXELS.astype(np.float64).transpose(2, 0, 1)),
        (Picture(PIXELS, "RGB"), PIXELS.transpose(2, 0, 1) / np.float32(255)),
        (Picture(PIXELS[..., 0] > 9, "1"), (PIXELS[None, ..., 0] > 9).astype(np.float32)),
    ],
)
def test_to_tensor(image, expected):
    found = ToTensor()(image)
    assert isinstance(found, Tensor) and found.array().flags.c_contiguous
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(np.asarray(found), expected)


def test_pil_to_tensor_keeps_values():
    found = PILToTensor()(PIXELS)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(np.asarray(found), PIXELS.transpose(2, 0, 1))


@pytest.mark.parametrize("mean", [0.4, (0.4,), (0.1, 0.2, 0.3), np.array([0.1, 0.2, 0.3])])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_normalize(mean, dtype):
    x = np.random.default_rng(1).random((2, 3, 4, 5)).astype(dtype)
    std = [0.5, 0.25, 2.0]
    means = np.broadcast_to(np.asarray(mean, dtype), 3)[:, None, None]
    expected = (x - means) / np.asarray(std, dtype)[:, None, None]
    kept = x.copy()
    for image in (x, x[1]):
        found = Normalize(mean, std)(Tensor(image))
        assert isinstance(found, Tensor) and found.dtype == dtype
        np.testing.assert_array_equal(
            np.asarray(found), expected[1] if image.ndim == 3 else expected
        )
        assert type(Normalize(mean, std)(image)) is np.ndarray
    np.testing.assert_array_equal(x, kept)
    tensor = Tensor(x)
    assert Normalize(mean, std, inplace=True)(tensor) is tensor
    np.testing.assert_array_equal(x, expected)


@pytest.mark.parametrize(
    ("source", "target", "values", "expected"),
    [
        (np.uint8, np.float32, [0, 51, 255], [0, 0.2, 1]),
        (np.float32, np.uint8, [0, 0.5, 1], [0, 127, 255]),
        (np.float32, np.float64, [0.5], [0.5]),
        (np.uint8, np.int32, [0, 1, 255], [0, 1 << 23, 255 << 23]),
        (np.int32, np.uint8, [0, 1 << 23, 2**31 - 1], [0, 1, 255]),
        (np.float64, np.int32, [0, 1], [0, 2**31 - 1]),
        (np.uint8, np.uint8, [3], [3]),
    ],
)
def test_convert_image_dtype(source, target, values, expected):
    image = Tensor(np.array(values, source).reshape(1, 1, -1))
    found = ConvertImageDtype(target)(image)
    assert found.dtype == target
    np.testing.assert_array_equal(np.asarray(found).ravel(), np.array(expected, target))


def test_lambda():
    assert Lambda(str.upper)("a") == "A"


def test_reprs():
    assert [repr(t) for t in (ToTensor(), PILToTensor(), Lambda(abs))] == [
        "ToTensor()", "PILToTensor()", "Lambda()",
    ]  # fmt: skip
    assert repr(Normalize((0.5,), (0.25,))) == "Normalize(mean=(0.5,), std=(0.25,))"
    assert repr(ConvertImageDtype(np.float32)) == "ConvertImageDtype()"
