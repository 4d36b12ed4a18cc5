import numpy as np
import pytest

from fastlayers import ops, reference
from fastlayers.ops.conv import winograd
from fastlayers.ops.conv.algorithm import Pass
from fastlayers.ops.conv.shape import conv_shape
from fastlayers.ops.conv.winograd import ForcedWinograd, Winograd
from fastlayers.runtime import memory
from fastlayers.runtime.threads import set_num_threads

# (N, H, W, C, M), padding, dilation: images below one tile, ragged tiles, channels that end in a
# part of a vector, a padding beyond the kernel's (so the input's gradient has a negative one), no
# images; dilated phases of different sizes, and more phases than rows.
SHAPES = [
    ((1, 1, 1, 24, 17), (1, 1), (1, 1)),
    ((2, 2, 5, 16, 16), (1, 2), (1, 1)),
    ((2, 7, 9, 17, 33), (1, 1), (1, 1)),
    ((1, 13, 17, 33, 24), (3, 0), (1, 1)),
    ((1, 3, 3, 16, 49), (0, 0), (1, 1)),
    ((9, 8, 8, 24, 64), (2, 1), (1, 1)),
    ((2, 7, 6, 272, 288), (1, 1), (1, 1)),  # few tiles, many filters: by panels
    ((1, 9, 9, 16, 288), (1, 1), (1, 1)),  # by panels, the last run of tiles with one
    ((1, 3, 3, 16, 288), (0, 0), (1, 1)),  # by panels, a single tile
    ((0, 5, 6, 16, 16), (1, 1), (1, 1)),
    ((1, 5, 40, 16, 18), (1, 1), (1, 1)),  # rows of many tiles, which end with an image and not
    ((1, 4, 43, 16, 18), (1, 2), (1, 1)),
    ((2, 9, 14, 17, 24), (2, 2), (2, 2)),
    ((1, 19, 8, 24, 17), (0, 7), (3, 2)),
    ((2, 12, 11, 16, 33), (4, 1), (1, 4)),
    ((1, 3, 5, 16, 16), (9, 9), (5, 6)),
    ((2, 7, 9, 272, 288), (2, 2), (2, 2)),
]
PASSES = ("y", "dx", "dw")


def draw(shape, padding, dtype, dilation=(1, 1)):
    """Give x, weight, bias and dy of unit-variance layers, channels last."""
    n, h, w, c, m = shape
    rng = np.random.default_rng(h * w + c)
    out = (h + 2 * (padding[0] - dilation[0]), w + 2 * (padding[1] - dilation[1]))
    sizes = ((n, h, w, c), (m, c, 3, 3), (m,), (n, *out, m))
    x, weight, bias, dy = (rng.standard_normal(size) for size in sizes)
    weight *= np.sqrt(2 / (9 * c))
    return tuple(np.asarray(a, dtype) for a in (x, weight, bias, dy))


def shaped(images, weight, padding, dilation=(1, 1), size=8, **options):
    n, h, w, c = images
    known = {"stride": (1, 1), "groups": 1, **options}
    arguments = (known["stride"], padding, dilation, known["groups"], size)
    return conv_shape("conv2d", (n, c, h, w), weight, *arguments)


def algorithm(x, weight, padding, tile, dilation=(1, 1)):
    """Give Winograd's convolution by tiles of one size."""
    made = Winograd(shaped(x.shape, weight.shape, padding, dilation, x.itemsize))
    made.tile = made.input_tile = tile
    return made


def forward(x, weight, bias, padding, tile, relu=False):
    return algorithm(x, weight, padding, tile).forward(x.transpose(0, 3, 1, 2), weight, bias, relu)


def run(x, weight, bias, dy, padding, tile, dilation=(1, 1)):
    made, images = algorithm(x, weight, padding, tile, dilation), x.transpose(0, 3, 1, 2)
    dw, db = made.backward_weight(images, dy)
    assert db is None
    return made.forward(images, weight, bias, False), made.backward_input(dy, weight), dw


def direct(module, x, weight, bias, dy, padding, dilation=(1, 1)):
    first, grad = (a.transpose(0, 3, 1, 2) for a in (x, dy))
    y = module.conv2d(first, weight, bias, padding=padding, dilation=dilation)
    dx, dw, _ = module.conv2d_backward(grad, first, weight, padding=padding, dilation=dilation)
    return y.transpose(0, 2, 3, 1), dx.transpose(0, 2, 3, 1), dw


@pytest.mark.parametrize("tile", [2, 4])
@pytest.mark.parametrize(("shape", "padding", "dilation"), SHAPES, ids=str)
def test_agrees_with_reference(shape, padding, dilation, tile):
    arrays = draw(shape, padding, np.float64, dilation)
    got = run(*arrays, padding, tile, dilation)
    want = direct(reference, *arrays, padding, dilation)
    for name, value, expected in zip(PASSES, got, want, strict=True):
        np.testing.assert_allclose(value, expected, 1e-11, 1e-11, err_msg=name)


# Unit-variance inputs and He's weights; F(4) measures 1 to 3 of direct convolution's error here.
@pytest.mark.parametrize("tile", [2, 4])
@pytest.mark.parametrize(
    "shape", [(8, 16, 16, 16, 16), (4, 14, 15, 64, 48), (2, 7, 7, 256, 128)], ids=str
)
def test_error_in_float32_is_near_that_of_direct_convolution(shape, tile):
    arrays = draw(shape, (1, 1), np.float32)
    exact = direct(ops, *(a.astype(np.float64) for a in arrays), (1, 1))
    ours, theirs = run(*arrays, (1, 1), tile), direct(ops, *arrays, (1, 1))
    for name, value, other, expected in zip(PASSES, ours, theirs, exact, strict=True):
        error, bound = np.abs(value - expected), 20 * np.abs(other - expected)
        assert error.max() <= bound.max(), name
        assert np.sqrt(np.mean(error**2)) <= np.sqrt(np.mean(bound**2)), name


@pytest.mark.parametrize("tile", [2, 4])
def test_relu_raises_negative_values_and_keeps_nan(tile):
    x, weight, bias, _ = draw((2, 6, 5, 16, 24), (1, 1), np.float32)
    plain = forward(x, weight, bias, (1, 1), tile)
    floored = forward(x, weight, bias, (1, 1), tile, relu=True)
    np.testing.assert_array_equal(floored, np.maximum(plain, 0))
    x[0, 0, 0, 3] = np.nan
    assert np.isnan(forward(x, weight, bias, (1, 1), tile, relu=True)[0, 0, 0]).all()


# Of the last two, many threads share blocks and chunks, or panels.
@pytest.mark.parametrize(
    "shape",
    [(16, 16, 16, 32, 16), (2, 9, 7, 256, 304), (8, 17, 18, 40, 72), (16, 6, 7, 48, 272)],
    ids=str,
)
def test_threads_do_not_change_results(shape):
    arrays, results = draw(shape, (1, 1), np.float32), []
    for threads in (1, 2, 4, 16):
        set_num_threads(threads)
        results.append(run(*arrays, (1, 1), 4))
    for other in results[1:]:
        for value, first in zip(other, results[0], strict=True):
            np.testing.assert_array_equal(value, first)


# ResNet-20's and ResNet-18's: N, H, W, C = M.
@pytest.mark.parametrize(
    "sizes", [(128, 16, 16, 32), (128, 8, 8, 64), (16, 28, 28, 128), (16, 14, 14, 256)], ids=str
)
def test_threads_that_share_have_many_tasks(sizes):
    channels = sizes[3]
    made = Winograd(shaped(sizes, (channels, channels, 3, 3), (1, 1), size=4))
    forward, weight = made._forward, made._backward_weight
    panels = -(-channels // (2 * forward.tiles.lanes))
    step = forward._step()
    groups, size = forward._shared(step)
    assert groups <= panels
    assert -(-forward.tiles.total // step) * groups * -(-step // size) >= 48
    span = weight._span()
    blocks = -(-channels // weight._shared_rows(span))
    assert -(-forward.tiles.total // span) * panels * blocks >= 48


@pytest.mark.parametrize("tile", [2, 4])
@pytest.mark.parametrize(
    ("shape", "padding", "dilation"),
    [
        ((4, 16, 20, 16, 32), (1, 1), (1, 1)),
        ((4, 15, 21, 32, 48), (0, 2), (1, 1)),  # tiles that leave the image on either side
        ((4, 18, 21, 24, 64), (2, 2), (2, 2)),
        ((4, 16, 16, 32, 33), (1, 1), (1, 1)),  # filters that end in a part of a line
    ],
    ids=str,
)
def test_nontemporal_stores_change_no_bits(shape, padding, dilation, tile, monkeypatch):
    arrays = draw(shape, padding, np.float32, dilation)
    want = run(*arrays, padding, tile, dilation)
    for limit in ("STREAMED", "STREAMED_GRADIENT"):
        monkeypatch.setattr(winograd, limit, memory.SMALLEST_BLOCK)  # larger ones are aligned
    for value, expected in zip(run(*arrays, padding, tile, dilation), want, strict=True):
        np.testing.assert_array_equal(value, expected)


@pytest.mark.parametrize(("padding", "dilation"), [(3, 1), ((2, 5), 1), (5, 2)])
def test_windows_of_padding_alone_are_the_bias(padding, dilation):
    """Tiles would leave the roundings of their other pixels there."""
    rng = np.random.default_rng(0)
    shapes = (2, 32, 16, 16), (32, 32, 3, 3), (32,)
    x, weight, bias = (rng.standard_normal(shape).astype(np.float32) for shape in shapes)
    y = ops.conv2d(x, weight, bias, padding=padding, dilation=dilation)
    expected = np.broadcast_to(bias, (2, y.shape[2], 32)).swapaxes(1, 2)
    np.testing.assert_array_equal(y[..., 0], expected)
    np.testing.assert_array_equal(y[..., -1], expected)
    plain = ops.conv2d(x, weight, padding=padding, dilation=dilation, algorithm="winograd")
    np.testing.assert_array_equal(plain[..., 0], np.zeros_like(expected))


def test_taps_that_meet_no_image_have_no_gradient():
    rng = np.random.default_rng(0)
    shapes = (8, 16, 16, 1), (8, 16, 16, 1), (16, 16, 3, 3)
    dy, x, weight = (rng.standard_normal(shape).astype(np.float32) for shape in shapes)
    for algorithm in ("auto", "winograd"):
        _, dw, _ = ops.conv2d_backward(dy, x, weight, padding=1, algorithm=algorithm)
        np.testing.assert_array_equal(dw[..., 0::2], np.zeros((16, 16, 3, 2)))
        assert dw[..., 1].all()


def test_inputs_are_not_changed():
    arrays = draw((2, 7, 9, 17, 33), (1, 1), np.float32)
    copies = [a.copy() for a in arrays]
    run(*arrays, (1, 1), 4)
    for array, copy in zip(arrays, copies, strict=True):
        np.testing.assert_array_equal(array, copy)


def test_choice_of_the_tile():
    assert winograd.choose(16, (56, 56), 64, 64, 4) == 4
    assert winograd.choose(64, (2, 2), 64, 64, 4) == 2  # a 4 x 4 tile would be three quarters waste
    assert winograd.choose(64, (1, 1), 128, 128, 4) == 0
    assert winograd.choose(64, (32, 32), 3, 64, 4) == 0
    assert winograd.choose(16, (28, 28), 64, 64, 4, (2, 2)) == 4
    assert winograd.choose(16, (14, 14), 64, 64, 4, (7, 7)) == 2  # phases of 2 x 2 pixels
    assert winograd.choose(16, (14, 14), 64, 64, 4, (14, 14)) == 0


def test_serves_what_is_fast_and_accurate():
    weight = (64, 64, 3, 3)
    shape = shaped((16, 56, 56, 64), weight, (1, 1), size=4)
    assert all(Winograd.serves(shape, which) for which in Pass)
    assert Winograd(shape).describe(Pass.FORWARD) == "winograd F(4x4), 3x3 at stride 1, 64 channels"
    small = shaped((64, 1, 1, 64), weight, (1, 1), size=4)
    assert Winograd.can(small)
    assert Winograd.accurate(small, Pass.FORWARD)
    assert not Winograd.serves(small, Pass.FORWARD)  # tiles would be waste
    assert ForcedWinograd.serves(small, Pass.FORWARD)
    assert ForcedWinograd(small).tile == ForcedWinograd(small).input_tile == 4
    # Pixels that see padding alone, and taps that do.
    wide = shaped((16, 16, 16, 64), weight, (3, 3), size=4)
    alone = shaped((16, 16, 1, 64), weight, (1, 1), size=4)
    for kind in (Winograd, ForcedWinograd):
        assert not kind.serves(wide, Pass.FORWARD)
        assert kind.serves(wide, Pass.BACKWARD_INPUT)
        assert not kind.serves(alone, Pass.BACKWARD_WEIGHT)
    uneven = Winograd(shaped((64, 8, 8, 32), (64, 32, 3, 3), (1, 1), size=4))
    assert uneven.describe(Pass.BACKWARD_INPUT).endswith(", 32 -> 64 channels")


@pytest.mark.parametrize(
    ("images", "weight", "options"),
    [
        ((16, 28, 28, 64), (64, 64, 5, 5), {}),
        ((16, 28, 28, 64), (64, 64, 3, 3), {"stride": (1, 2)}),
        ((16, 28, 28, 64), (64, 32, 3, 3), {"groups": 2}),
        ((16, 28, 28, 15), (64, 15, 3, 3), {}),
        ((16, 28, 28, 64), (15, 64, 3, 3), {}),
    ],
    ids=str,
)
def test_cannot_compute_other_convolutions(images, weight, options):
    shape = shaped(images, weight, (1, 1), size=4, **options)
    assert not Winograd.can(shape)
    assert not ForcedWinograd.can(shape)
    assert not any(Winograd.serves(shape, which) for which in Pass)
