import numpy as np
import pytest

import fastlayers as fl
from fastlayers.autograd import Tensor
from fastlayers.vision.transforms import (
    CenterCrop,
    Pad,
    RandomCrop,
    RandomHorizontalFlip,
    RandomVerticalFlip,
)

PIXELS = np.arange(1, 6 * 7 * 3 + 1, dtype=np.uint8).reshape(6, 7, 3)


def forms(array):
    """An image (H, W, C) in all forms, each with a function back to it."""
    planes = Tensor(np.ascontiguousarray(array.transpose(2, 0, 1)))
    return [
        (array, lambda x: x),
        (array[..., 0], lambda x: x[..., None]),
        (planes, lambda x: np.asarray(x).transpose(1, 2, 0)),
    ]


def check(transform, expected):
    """That a transform without chance gives an array, in all forms."""
    for image, back in forms(PIXELS):
        found = transform(image)
        assert type(found) is type(image)
        back_to = back(found)
        np.testing.assert_array_equal(back_to, expected[..., : back_to.shape[-1]])


def test_flips():
    check(RandomHorizontalFlip(1), PIXELS[:, ::-1])
    check(RandomVerticalFlip(1), PIXELS[::-1])
    check(RandomHorizontalFlip(0), PIXELS)
    fl.manual_seed(0)
    flip = RandomHorizontalFlip()
    count = sum(flip(PIXELS) is not PIXELS for _ in range(1000))
    assert 440 < count < 560  # 500, with a deviation of 16


@pytest.mark.parametrize(
    ("padding", "widths"),
    [
        (2, ((2, 2), (2, 2))),
        ((1,), ((1, 1), (1, 1))),
        ((1, 2), ((2, 2), (1, 1))),
        ((1, 2, 3, 4), ((2, 4), (1, 3))),
        (0, ((0, 0), (0, 0))),
    ],
)
@pytest.mark.parametrize("mode", ["constant", "edge", "reflect", "symmetric"])
def test_pad(padding, widths, mode):
    check(Pad(padding, padding_mode=mode), np.pad(PIXELS, (*widths, (0, 0)), mode))
    if mode == "constant":
        check(Pad(padding, fill=9), np.pad(PIXELS, (*widths, (0, 0)), constant_values=9))


def test_pad_with_a_color():
    found = Pad(1, fill=(1, 2, 3))(PIXELS)
    assert found[0, 0].tolist() == found[-1, -1].tolist() == [1, 2, 3]
    chw = Pad(1, fill=(1, 2, 3))(Tensor(PIXELS.transpose(2, 0, 1).copy()))
    np.testing.assert_array_equal(np.asarray(chw), found.transpose(2, 0, 1))


def test_center_crop():
    check(CenterCrop(4), PIXELS[1:5, 2:6])  # (7 - 4) / 2 rounds to 2
    check(CenterCrop((5, 3)), PIXELS[0:5, 2:5])  # (6 - 5) / 2 rounds to 0
    check(CenterCrop((9, 8)), np.pad(PIXELS, ((1, 2), (0, 1), (0, 0))))
    check(CenterCrop((9, 3)), np.pad(PIXELS, ((1, 2), (0, 0), (0, 0)))[:, 2:5])


def test_random_crop_gives_every_part():
    fl.manual_seed(0)
    crop = RandomCrop((4, 5), padding=1)
    framed = np.pad(PIXELS, ((1, 1), (1, 1), (0, 0)))
    for image, back in forms(PIXELS):
        places = set()
        for _ in range(300):
            found = back(crop(image))
            [place] = [
                (i, j)
                for i in range(5)
                for j in range(5)
                if np.array_equal(found, framed[i : i + 4, j : j + 5, : found.shape[-1]])
            ]
            places.add(place)
        assert len(places) == 25


def test_random_crop_of_all():
    check(RandomCrop((6, 7)), PIXELS)
    wide = RandomCrop((8, 9), pad_if_needed=True)
    for image, _ in forms(PIXELS):
        found = wide(image)
        shape = found.shape[-2:] if isinstance(found, Tensor) else found.shape[:2]
        assert shape == (8, 9)


def test_seeds():
    def drawn():
        fl.manual_seed(3)
        return [RandomCrop(3)(RandomHorizontalFlip()(PIXELS)).tolist() for _ in range(4)]

    assert drawn() == drawn()


def test_reprs():
    assert repr(RandomCrop(32, padding=4)) == "RandomCrop(size=(32, 32), padding=4)"
    assert repr(RandomHorizontalFlip()) == "RandomHorizontalFlip(p=0.5)"
    assert repr(RandomVerticalFlip(0.25)) == "RandomVerticalFlip(p=0.25)"
    assert repr(CenterCrop(3)) == "CenterCrop(size=(3, 3))"
    assert repr(Pad(4)) == "Pad(padding=4, fill=0, padding_mode=constant)"
