import numpy as np
import pytest
from cases import DTYPES, Case, check, check_threads, conv

from fastlayers import ops, reference
from fastlayers.ops.conv.algorithm import Pass
from fastlayers.ops.conv.shape import ConvShape, conv_shape
from fastlayers.ops.conv.winograd_rows import WinogradRows

# Kernels 5 wide: rows above and below the image, tiles of 1 to 6, blocks that are not full, more
# filters than a tile has rows, and tables that do not fill a tile's columns.
CASES = [
    conv((16, 3, 12, 14), (6, 3, 5, 5)),
    conv((32, 6, 9, 10), (16, 6, 5, 5), padding=2),
    conv((14, 2, 7, 5), (7, 2, 3, 5), False, padding=(1, 3)),
    conv((31, 2, 6, 23), (6, 2, 1, 5)),
    conv((30, 5, 4, 8), (13, 5, 4, 5), padding=(3, 1)),
    conv((16, 2, 2, 8), (3, 2, 7, 5), padding=(6, 0)),
    conv((16, 1, 5, 9), (2, 1, 5, 5), padding="same"),
]


def shape_of(case: Case) -> ConvShape:
    arrays = case.arrays(np.float32)
    options = {"stride": 1, "padding": 0, "dilation": 1, **case.options}
    stride, padding, dilation = (
        value if isinstance(value, (tuple, str)) else (value, value)
        for value in (options[name] for name in ("stride", "padding", "dilation"))
    )
    rest = (padding, dilation, case.options.get("groups", 1), 4)
    return conv_shape("conv2d", arrays["input"].shape, arrays["weight"].shape, stride, *rest)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_serves_passes_of_enough_terms(case):
    shape = shape_of(case)
    assert WinogradRows.serves(shape, Pass.FORWARD)
    assert WinogradRows.serves(shape, Pass.BACKWARD_INPUT)
    assert WinogradRows.serves(shape, Pass.BACKWARD_WEIGHT) == (shape.fewest[2] >= 8)
    found = WinogradRows(shape).describe(Pass.FORWARD)
    assert found == f"winograd rows F(4), kernels 5 wide, {shape.images[0]} images"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_agrees_with_reference(case, dtype):
    check(case, dtype)


def test_threads_do_not_change_results():
    check_threads(conv((70, 3, 20, 20), (7, 3, 5, 5), padding=1))


@pytest.mark.parametrize(
    "case",
    [
        conv((5, 3, 12, 12), (6, 3, 5, 5)),
        conv((16, 3, 12, 5), (6, 3, 5, 5)),
        conv((16, 3, 12, 12), (6, 3, 3, 3)),
        conv((16, 3, 12, 12), (6, 3, 5, 5), stride=2),
        conv((16, 3, 12, 12), (6, 3, 5, 5), dilation=2),
        conv((16, 3, 12, 12), (6, 3, 5, 5), padding=5),
        conv((16, 4, 12, 12), (6, 2, 5, 5), groups=2),
        conv((16, 64, 56, 56), (64, 64, 5, 5)),
        conv((16, 3, 12, 12), (6, 3, 5, 5), padding=4),  # the corners' sums have 3 terms
    ],
    ids=lambda case: case.id,
)
def test_leaves_other_convolutions_to_others(case):
    assert not WinogradRows.serves(shape_of(case), Pass.FORWARD)


@pytest.mark.parametrize("activation", [None, "relu"])
def test_nan_stays_in_its_image_and_passes_the_relu(activation):
    arrays = CASES[0].arrays(np.float32)
    arrays["input"][3, 0, 2, 7] = np.nan
    y = ops.conv2d(**arrays, activation=activation)
    expected = reference.conv2d(**arrays)
    assert np.isnan(y[np.isnan(expected)]).all()
    assert np.isfinite(np.delete(y, 3, axis=0)).all()
    assert (y.min() < 0) == (activation is None) or np.isnan(y.min())


def test_error_is_a_few_times_that_of_direct():
    case = conv((32, 6, 14, 14), (16, 6, 5, 5))
    arrays = case.arrays(np.float32)
    exact = ops.conv2d(**{name: a.astype(np.float64) for name, a in arrays.items()})
    errors = [
        np.sqrt(np.mean((ops.conv2d(**arrays, algorithm=algorithm) - exact) ** 2))
        for algorithm in ("auto", "direct")
    ]
    assert errors[0] < 5 * errors[1]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", [None, "relu"])
@pytest.mark.parametrize(
    "case",
    [
        CASES[0],
        conv((31, 6, 9, 15), (13, 6, 2, 5), padding=(0, 1)),
        conv((32, 2, 40, 9), (3, 2, 5, 5)),
    ],
    ids=lambda case: case.id,
)
def test_pools_what_it_computes(case, activation, dtype):
    arrays = case.arrays(dtype)
    arrays["input"][:, :, :6, :7] = 0  # equal outputs
    arrays["input"][2, 0, -1, 3] = np.nan
    options = {**case.options, "activation": activation}
    got = ops.conv2d_max_pool2d(**arrays, **options, pool=(2, None, 0, 1, False))
    want = ops.max_pool2d_forward(ops.conv2d(**arrays, **options), 2)
    for value, expected in zip(got, want, strict=True):
        np.testing.assert_array_equal(value, expected)
