"""Cases whose results are exact: small integers, sums of them, powers of two.

In whatever order they are summed, there is nothing to round. The sizes are those at which kernels
cut their work (vectors, tiles, blocks, chunks), one more and one less, primes, one and none.
"""

from collections.abc import Callable, Iterable
from itertools import chain, product
from random import Random

from cases import Case, conv, labelled, norm, paired, pool

from fastlayers.kernels.gemm import gemm

# Panels of half a vector to two of them, of 2 to 16 lanes, one more and one less; then primes.
WIDTHS = (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65)
PRIMES = (11, 13, 19, 23, 29, 37, 41, 43)
# Tiles of 1, 4, 6 and 12 rows, several of them, slabs of 96 pixels, and one more and one less.
HEIGHTS = (1, 2, 3, 4, 5, 6, 7, 8, 11, 12, 13, 17, 23, 24, 25, 47, 48, 49, 95, 96, 97, 191, 193)
DEPTHS = tuple(gemm.BLOCK_K * blocks + more for blocks in (1, 2) for more in (-1, 0, 1))


def mixed(choice: Callable[[tuple[int, ...]], int]) -> Case:
    """Options that come together by chance."""
    groups = choice((1, 1, 1, 2, 3, 5))
    c, m = groups * choice((1, 2, 3, 7, 16)), groups * choice((1, 3, 8, 15, 17, 33))
    kernel, dilation = (
        (choice((1, 2, 3, 5)), choice((1, 3, 4))),
        (choice((1, 1, 2, 3)), choice((1, 1, 2, 5))),
    )
    padding = (choice((0, 1, 2, 6)), choice((0, 1, 3, 5)))
    spans = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    size = [max(1, s - 2 * p + choice((0, 1, 4, 9))) for s, p in zip(spans, padding, strict=True)]
    stride = (choice((1, 1, 2, 3)), choice((1, 1, 2, 5)))
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    return conv((choice((1, 2, 5)), c, *size), (m, c // groups, *kernel), **options)


CONVOLUTIONS = [
    # Channels of the output, of the input and of both.
    *(conv((2, 3, 5, 6), (m, 3, 3, 3), padding=1) for m in WIDTHS + PRIMES),
    *(conv((2, c, 5, 4), (6, c, 2, 3)) for c in WIDTHS + PRIMES),
    *(conv((3, c, 3, 4), (m, c, 1, 1)) for c, m in product((15, 17, 31, 33), (1, 7, 16, 33))),
    # Pixels, as a row of the image and as a column of it.
    *(conv((1, 5, 1, pixels), (7, 5, 1, 1)) for pixels in HEIGHTS),
    *(conv((1, 2, pixels, 1), (17, 2, 3, 3), padding=1) for pixels in HEIGHTS),
    # Images of one pixel, the kernel of one pixel or all but its middle in the padding.
    *(conv((n, 17, 1, 1), (9, 17, k, k), padding=k // 2) for n in (1, 2, 13, 97) for k in (1, 3)),
    *(conv((2, 3, 1, 1), (4, 3, k, k), padding=k + 1, stride=2) for k in (1, 2, 3)),
    # Kernels of every shape, the larger ones larger than the image.
    *(
        conv((2, 2, 6, 5), (5, 2, kh, kw), padding=(kh // 2, kw // 2))
        for kh, kw in product((1, 2, 3, 5, 7), repeat=2)
    ),
    # Strides up to beyond the kernel, where some pixels of the input have no gradient.
    *(conv((2, 3, 9, 11), (5, 3, 3, 2), stride=s) for s in product((1, 2, 3, 4, 7), repeat=2)),
    *(conv((2, 33, 7, 8), (17, 33, 1, 1), stride=s) for s in (2, 3, (1, 2), (4, 1))),
    # Dilations, with strides that share a factor with them and that do not.
    *(
        conv((1, 3, 12, 13), (4, 3, 3, 3), dilation=d, padding=2, stride=s)
        for d in product((1, 2, 3, 5), repeat=2)
        for s in (1, 2)
    ),
    # Padding beyond the kernel less one: whole windows of zeros.
    *(
        conv((2, 3, 3, 4), (5, 3, k, k), padding=padding, stride=s)
        for k in (1, 2, 3)
        for padding in (k, k + 2, (k + 4, 0), (0, k + 1))
        for s in (1, 2)
    ),
    *(conv((1, 2, 7, 6), (3, 2, 4, 3), padding="same", dilation=d) for d in (1, 2, (1, 3))),
    # Groups: few wide ones, many narrow ones, one for each channel.
    *(conv((2, 12, 5, 6), (m, 12 // g, 3, 3), groups=g) for g in (2, 3, 4, 6) for m in (12, 24)),
    *(conv((2, 2 * c, 4, 3), (2 * c, c, 2, 2), groups=2) for c in (8, 15, 16, 17, 33)),
    *(conv((2, c, 5, 4), (c, 1, 3, 3), groups=c, padding=1) for c in (2, 3, 5, 16, 17, 33)),
    *(conv((1, 4, 7, 5), (12, 1, 3, 2), groups=4, stride=s) for s in (2, 3)),
    # Several images in a slab, and the last slab with fewer.
    *(
        conv((n, 5, *size), (9, 5, 3, 3), padding=1)
        for n in (1, 2, 3, 7, 33)
        for size in ((2, 2), (4, 5), (7, 9))
    ),
    *(conv((n, 16, 5, 4), (9, 16, 1, 1)) for n in (1, 5, 11, 23)),
    # Several slabs in an image, of bands with as many rows or with fewer in the last.
    *(
        conv((n, 5, *size), (9, 5, 3, 3), padding=padding, stride=s)
        for n in (1, 2)
        for size in ((20, 20), (31, 29), (41, 13))
        for padding in (0, 1)
        for s in (1, 2)
    ),
    conv((1, 2, 5, 211), (3, 2, 3, 3), padding=1),
    *(conv((n, c, 20, 19), (m, c, 3, 3), padding=1) for n in (1, 2) for c, m in ((5, 67), (67, 5))),
    *(conv((1, 2 * c, 14, 13), (2 * c, c, 3, 3), groups=2) for c in (31, 67)),
    # Rows of so many channels that a slab holds one image, and one chunk of the weight's gradient
    # one slab, several or all.
    *(conv((n, 1024, 8, 8), (m, 1024, 1, 1)) for n, m in ((5, 31), (8, 97), (3, 800))),
    conv((18, 600, 8, 8), (1, 600, 3, 3), padding=1),
    conv((13, 500, 2, 2), (769, 500, 3, 3), padding=1),
    # Blocks of k: a long run, many short ones, and both for each of the three passes.
    *(conv((1, c, 3, 3), (5, c, 1, 1)) for c in DEPTHS),
    *(conv((1, c, 3, 4), (5, c, 3, 3), padding=1) for c in (113, 114, 228, 341, 342)),
    *(conv((1, 3, 2, 3), (m, 3, 1, 1)) for m in DEPTHS),
    *(conv((1, 3, 3, 4), (m, 3, 3, 3), padding=1) for m in (113, 341, 342)),
    *(conv((1, 3, 2, w), (5, 3, 1, 2)) for w in DEPTHS),
    # Blocks of output channels, of panels and of rows of the weight's gradient.
    *(conv((1, 5, 5, 4), (m, 5, 3, 3), padding=1) for m in (47, 48, 49, 96, 97, 131, 257)),
    *(conv((1, c, 5, 4), (5, c, 2, 2)) for c in (127, 131, 257)),
    # No image, no batch.
    *(conv((0, 3, 5, 5), (4, 3, k, k), padding=1, stride=s) for k in (1, 3) for s in (1, 2)),
    conv((3, 6, 5), (17, 3, 3, 3), False),
    # Prime sizes both ways, and the same without images.
    *(
        conv((n, 5, h, w), (7, 5, 3, 3), padding=1)
        for n in (0, 1)
        for h, w in product((7, 11, 13), (17, 19, 23))
    ),
    *(
        conv((n, 6, 7, 9), (12, 6 // g, 3, 3), padding=1, stride=s, groups=g)
        for n in (0, 1)
        for g in (1, 2, 3, 6)
        for s in (1, 2)
    ),
    # Rows of pixels in the lanes, for few output channels: their tile is four vectors.
    *(
        conv((1, 3, 4, pixels), (m, 3, 3, 3), padding=1)
        for pixels in (15, 16, 17, 31, 32, 33, 63, 64, 65)
        for m in (1, 6, 7)
    ),
    # Gradients of so many pixels of few channels that their sums read several pixels as one row.
    *(conv((2, 2, 66, 64), (m, 2, 1, 1)) for m in (4, 5, 6)),
    # Kernels of one pixel in padding, and strides above a kernel that is dilated.
    *(conv((2, 5, 3, 4), (17, 5, 1, 1), padding=p, stride=s) for p in (1, 3) for s in (1, 2, 3)),
    *(conv((2, 3, 17, 13), (4, 3, 2, 2), stride=s, dilation=d) for s in (3, 5, 7) for d in (2, 4)),
    *(
        conv((2, c, 9, 8), (c * each, 1, k, k), groups=c, padding=2, dilation=d)
        for c, each in ((5, 1), (16, 1), (3, 2))
        for k in (2, 5)
        for d in (1, 2)
    ),
    *(mixed(random.choice) for random in map(Random, range(80))),
]

POOLED = (
    *((1, 1, 4, 4), (2, 3, 7, 9), (1, 16, 5, 11), (1, 33, 9, 6), (5, 8, 8), (0, 3, 6, 7)),
    *((1, 17, 13, 11), (3, 5, 4, 23), (2, 2, 17, 16), (1, 8, 19, 5), (7, 1, 12, 13), (2, 64, 6, 6)),
)
WINDOWS = (
    {"kernel_size": 2},
    {"kernel_size": 3, "stride": 1, "padding": 1},
    {"kernel_size": 3, "stride": 2, "padding": 1},
    {"kernel_size": (2, 4), "stride": (3, 1), "padding": (1, 2)},
    {"kernel_size": (4, 1), "stride": (1, 4), "padding": (2, 0)},
    {"kernel_size": 4, "stride": 3, "padding": 2, "ceil_mode": True},
    {"kernel_size": 1, "stride": 2},
    {"kernel_size": 2, "stride": 5},
    {"kernel_size": (1, 3), "stride": (2, 4)},
)


def halved(size: int, out: int) -> bool:
    """Whether all bins of an adaptive mean have as many cells as a power of two."""
    cells = [-(-(i + 1) * size // out) - i * size // out for i in range(out)]
    return all(count & (count - 1) == 0 for count in cells)


BINS = [(size, out) for size in range(1, 18) for out in range(1, 18) if halved(size, out)]

EDGES = (1, 2, 3, 5, 7, 11, 12, 13, 16, 17, 31, 33)

# Of as many values a channel as a power of two, the batch's mean and deviation are exact.
BATCHES = ((2,), (64,), (512,), (2, 1), (4, 8), (1, 2, 2), (1, 16, 16), (2, 8, 4), (8, 4, 4))

# Lengths at vectors and chunks, with one more and one less, then ranks.
ELEMENTS: tuple[tuple[int, ...], ...] = (
    *((n,) for n in range(38)),
    *((k + more,) for k in (48, 64, 96, 128, 256) for more in (-1, 0, 1)),
    *((n,) for n in (101, 1009, 16383, 16384, 16385, 32769, 100003)),
    *product((1, 3, 17), (0, 1, 2, 31)),
    *product((0, 1, 3), (1, 5, 16), (1, 7)),
    *product((1, 2), (1, 3, 16, 17, 33), (1, 5), (4,)),
    (),
    (2, 3, 1, 4, 5),
)


def elementwise(op: str, **options: float) -> list[Case]:
    return [Case(op, {"input": shape}, options) for shape in ELEMENTS]


OTHERS = [
    *(pool("max_pool2d", x, **window) for x in POOLED for window in WINDOWS),
    *(pool("max_pool2d", x, kernel_size=2, dilation=(3, 2), stride=1) for x in POOLED),
    # As large as is cut into tasks.
    *(pool("max_pool2d", (3, c, 61, 47), **WINDOWS[i]) for i, c in product((0, 2, 3), (12, 20))),
    *(
        pool("avg_pool2d", (3, c, 61, 47), **WINDOWS[i], divisor_override=4)
        for i, c in product((0, 2, 3), (12, 20))
    ),
    *(pool("adaptive_avg_pool2d", (17, c, 16, 16), output_size=(4, 15)) for c in (24, 31)),
    # Any quotient is rounded in the same way; their sums, in the gradient, are exact of halves.
    *(
        pool("avg_pool2d", x, **window, divisor_override=2 ** (i % 3))
        for i, (x, window) in enumerate(product(POOLED, WINDOWS))
    ),
    *(pool("avg_pool2d", x, kernel_size=(2, 4)) for x in POOLED),
    # Windows that are read line by line.
    *(pool("avg_pool2d", (2, c, 20, 41), kernel_size=(8, 16), stride=3) for c in (3, 16, 33)),
    *(pool("avg_pool2d", x, kernel_size=2, ceil_mode=True) for x in POOLED),
    *(
        pool("avg_pool2d", x, kernel_size=2, padding=1, stride=1, count_include_pad=False)
        for x in POOLED
    ),
    *(
        pool("adaptive_avg_pool2d", (1 + i % 2, (1, 3, 16, 17)[i % 4], h, w), output_size=(oh, ow))
        for i, ((h, oh), (w, ow)) in enumerate(zip(BINS, BINS[5:] + BINS[:5], strict=True))
    ),
    *(pool("adaptive_avg_pool2d", (n, 5, 8, 4), output_size=(4, 2)) for n in (0, 1, 7)),
    *(
        norm((n, c, *rest), running=False, affine=c % 2 > 0, training=True, eps=0.0)
        for c in (1, 2, 3, 5, 8, 15, 16, 17, 33, 64, 131)
        for n, *rest in BATCHES
    ),
    *(norm((16, c, 32, 32), running=False, training=True, eps=0.0) for c in (8, 17, 33)),
    *(norm((7, c, 29, 23), eps=0.0) for c in (24, 33)),
    norm((25, 128, 10, 9), eps=0.0),  # chunks of 256 rows, and a smaller one
    *(norm((4, c, 4, 2), training=True, momentum=0.0, eps=0.0) for c in (1, 3, 16, 33)),
    *(norm((2, c), training=True, momentum=0.5, eps=0.0) for c in (1, 3, 16, 33)),
    *(
        norm((n, c, *rest), eps=0.0)
        for c in (1, 3, 16, 17, 33)
        for n, *rest in ((0, 5), (1,), (7,), (61, 3), (3, 5, 7), (1, 1, 1), (5, 13, 11))
    ),
    *elementwise("dropout", p=0.5),
    *(
        Case("feature_dropout", {"input": shape}, {"p": 0.5, "channel_axis": axis})
        for shape in ELEMENTS
        for axis in (0, 1)
        if axis < len(shape) < 5
    ),
    *(
        Case("linear", {"input": (n, k), "weight": (n, k), "bias": (n,)})
        for n, k in product(EDGES, EDGES)
    ),
    *(Case("linear", {"input": (3, k), "weight": (n, k)}) for n, k in product(EDGES, EDGES)),
    *(
        Case("linear", {"input": (*batch, k), "weight": (n, k), "bias": (n,)})
        for batch in ((), (0,), (1,), (2, 3), (129,))
        for k, n in ((0, 3), (1, 4), (7, 5), (65, 17), (257, 33))
    ),
    *elementwise("relu"),
    *elementwise("leaky_relu", negative_slope=0.3),
    *elementwise("leaky_relu", negative_slope=-2.0),
    *(
        labelled("nll_loss", shape, weight, reduction=reduction)
        for shape in (
            *((1,), (3,), (17,), (1, 1), (1, 5), (5, 4), (7, 16), (13, 17), (64, 10), (257, 3)),
            *((2, 3, 4), (1, 7, 5), (3, 2, 1), (2, 4, 3, 2), (1, 3, 5, 7), (3, 16, 2, 2)),
        )
        for weight in (False, True)
        for reduction in ("mean", "sum", "none")
    ),
    *(labelled("nll_loss", (n, 4), w, ignore_index=1) for n in (2, 7, 64) for w in (False, True)),
    *(
        paired("mse_loss", shape, reduction=("mean", "sum", "none")[(i + more) % 3])
        for i, shape in enumerate(ELEMENTS)
        for more in (0, 1)
        if 0 not in shape
    ),
    *(
        Case("flatten", {"input": shape}, {"start_dim": first, "end_dim": last})
        for shape in ((7,), (0, 3), (2, 3, 5), (1, 16, 7, 3), (3, 2, 4, 5, 2), (2, 1, 4, 1, 3))
        for first in range(len(shape))
        for last in (*range(first, len(shape)), *range(first - len(shape), 0))
    ),
]

# Two shapes that broadcast against each other.
PAIRS = (
    *((shape, shape) for shape in ELEMENTS if len(shape) < 4),
    *(((90, 101), (90, 101)), ((3, 17, 19, 23), (3, 17, 19, 23)), ((9001,), (9001,))),
    *((shape, ()) for shape in ELEMENTS[:12]),
    *((shape, (1, *shape[1:])) for shape in ELEMENTS if len(shape) > 2),
    *((shape[-1:], shape) for shape in ELEMENTS if len(shape) > 1),
)


def axes(shape: tuple[int, ...]) -> Iterable[int | tuple[int, ...] | None]:
    """All axes, each of them, and pairs of them."""
    rank = len(shape)
    return chain((None,), range(-rank, rank), ((i, i + 1) for i in range(rank - 1)))


ARITHMETIC = [
    *(
        Case(op, {"a": a, "b": b})
        for op in ("add", "sub", "mul", "div")
        for a, b in dict.fromkeys(PAIRS)
    ),
    *(
        Case("matmul", {"a": (*stack, *a), "b": b})
        for n, k, m in product((1, 2, 5, 17), (1, 3, 16), (1, 4, 33))
        for stack, a, b in (
            ((), (n, k), (k, m)),
            ((3,), (n, k), (k, m)),
            ((2, 1), (n, k), (3, k, m)),
        )
    ),
    *(Case("matmul", {"a": (k,), "b": (k,)}) for k in (1, 7)),
    *(Case("matmul", {"a": (5,), "b": (*stack, 5, 3)}) for stack in ((), (2,))),
    *(Case("matmul", {"a": (*stack, 4, 5), "b": (5,)}) for stack in ((), (2,))),
    *(
        Case(op, {"x": shape}, {"dim": dim, "keepdim": keepdim})
        for op in ("sum", "mean")
        for shape in (
            (1,),
            (17,),
            (3, 5),
            (1, 16),
            (2, 3, 4),
            (7, 1, 33),
            (2, 3, 5, 4),
            (1, 17, 2, 3),
        )
        for dim in axes(shape)
        for keepdim in (False, True)
    ),
    *(
        Case("getitem", {"x": shape}, {"index": index})
        for shape in ((7,), (17,), (3, 5), (16, 2), (2, 3, 4), (5, 1, 33), (2, 3, 5, 4))
        for index in (
            *(0, -1, slice(None), slice(1, None), slice(None, None, -1), slice(0, 0), ..., None),
            *((..., 0), (..., None), (slice(None, 2), ...), [0, 1, 0], [[1, -1], [0, 0]], (0, ...)),
            *((..., -1, None), ([1, 0, 1], ...)),
        )
    ),
]

# What rounds by its nature is held to a number of ulps.
ROUNDED = [
    *elementwise("sigmoid"),
    *elementwise("tanh"),
    *elementwise("gelu"),
    *(Case("gelu", {"input": shape}, {"approximate": "tanh"}) for shape in ELEMENTS),
    *(
        Case(op, {"input": shape}, {"dim": dim})
        for op in ("softmax", "log_softmax")
        for shape in ELEMENTS
        for dim in range(-1, len(shape) - 1)
        if shape[dim]
    ),
    *(
        labelled("cross_entropy", shape, weight, reduction=reduction, label_smoothing=smoothing)
        for shape in ((3,), (17,), (1, 5), (5, 4), (13, 17), (64, 10), (2, 3, 4), (3, 16, 2, 2))
        for weight in (False, True)
        for reduction in ("mean", "sum", "none")
        for smoothing in (0.0, 0.1, 1.0)
    ),
    *(
        paired("binary_cross_entropy_with_logits", shape, reduction=reduction)
        for shape in ELEMENTS[1::2]
        for reduction in ("mean", "sum", "none")
        if 0 not in shape
    ),
]
