"""Convolutions of small integers: in whatever order they are summed, there is nothing to round.

The sizes are those at which kernels cut their work (vectors, tiles, blocks, chunks), one more and
one less, primes, one and none.
"""

import itertools
from collections.abc import Callable
from random import Random as Chance
from typing import Any

from specs.spec import Case


def conv(x: tuple[int, ...], weight: tuple[int, ...], bias: bool = True, **options: Any) -> Case:
    shapes = {"input": x, "weight": weight} | ({"bias": weight[:1]} if bias else {})
    return Case("conv2d", shapes, options)


# Panels of half a vector to two of them, of 2 to 16 lanes, one more and one less; then primes.
WIDTHS = (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65)
PRIMES = (11, 13, 19, 23, 29, 37, 41, 43)
# Tiles of 1, 4, 6 and 12 rows, several of them, slabs of 96 pixels, and one more and one less.
HEIGHTS = (1, 2, 3, 4, 5, 6, 7, 8, 11, 12, 13, 17, 23, 24, 25, 47, 48, 49, 95, 96, 97, 191, 193)
# As `kernels.gemm` has it, which a process without Numba can't import.
BLOCK_K = 1024
DEPTHS = tuple(BLOCK_K * blocks + more for blocks in (1, 2) for more in (-1, 0, 1))


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


EXACT = (
    # Channels of the output, of the input and of both.
    *(conv((2, 3, 5, 6), (m, 3, 3, 3), padding=1) for m in WIDTHS + PRIMES),
    *(conv((2, c, 5, 4), (6, c, 2, 3)) for c in WIDTHS + PRIMES),
    *(
        conv((3, c, 3, 4), (m, c, 1, 1))
        for c, m in itertools.product((15, 17, 31, 33), (1, 7, 16, 33))
    ),
    # Pixels, as a row of the image and as a column of it.
    *(conv((1, 5, 1, pixels), (7, 5, 1, 1)) for pixels in HEIGHTS),
    *(conv((1, 2, pixels, 1), (17, 2, 3, 3), padding=1) for pixels in HEIGHTS),
    # Images of one pixel, the kernel of one pixel or all but its middle in the padding.
    *(conv((n, 17, 1, 1), (9, 17, k, k), padding=k // 2) for n in (1, 2, 13, 97) for k in (1, 3)),
    *(conv((2, 3, 1, 1), (4, 3, k, k), padding=k + 1, stride=2) for k in (1, 2, 3)),
    # Kernels of every shape, the larger ones larger than the image.
    *(
        conv((2, 2, 6, 5), (5, 2, kh, kw), padding=(kh // 2, kw // 2))
        for kh, kw in itertools.product((1, 2, 3, 5, 7), repeat=2)
    ),
    # Strides up to beyond the kernel, where some pixels of the input have no gradient.
    *(
        conv((2, 3, 9, 11), (5, 3, 3, 2), stride=s)
        for s in itertools.product((1, 2, 3, 4, 7), repeat=2)
    ),
    *(conv((2, 33, 7, 8), (17, 33, 1, 1), stride=s) for s in (2, 3, (1, 2), (4, 1))),
    # Dilations, with strides that share a factor with them and that do not.
    *(
        conv((1, 3, 12, 13), (4, 3, 3, 3), dilation=d, padding=2, stride=s)
        for d in itertools.product((1, 2, 3, 5), repeat=2)
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
    *(conv((2, 31, 41, 29), (67, 31, 3, 3), padding=1, stride=s) for s in (1, 2)),
    *(conv((n, c, 20, 19), (m, c, 3, 3), padding=1) for n in (1, 2) for c, m in ((5, 67), (67, 5))),
    *(conv((1, 2 * c, 14, 13), (2 * c, c, 3, 3), groups=2) for c in (31, 67)),
    # Rows of so many channels that a slab holds one image, and one chunk of the weight's gradient
    # one slab, several or all.
    *(conv((n, 1024, 8, 8), (m, 1024, 1, 1)) for n, m in ((5, 31), (8, 97), (3, 800))),
    conv((26, 600, 8, 8), (1, 600, 3, 3), padding=1),
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
        for h, w in itertools.product((7, 11, 13), (17, 19, 23))
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
    *(mixed(random.choice) for random in map(Chance, range(80))),
)
