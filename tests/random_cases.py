"""Random cases of the operations: a function of `pick`, which chooses one of its arguments."""

from collections.abc import Callable
from typing import Any

from cases import Case, conv, labelled, norm, paired, pool

Pick = Callable[..., Any]


def conv_cases(pick: Pick) -> Case:
    groups = pick(1, 1, 2, 3)
    c, m = groups * pick(1, 2, 5), groups * pick(1, 3, 6)
    kernel, dilation = (pick(1, 2, 3, 4), pick(1, 2, 3)), (pick(1, 2, 3), pick(1, 1, 2))
    padding = pick(0, 1, (2, 1), "same", "valid")
    size = [d * (k - 1) + pick(1, 2, 5, 6) for k, d in zip(kernel, dilation, strict=True)]
    stride = 1 if padding == "same" else pick(1, 2, 3, (2, 1), (1, 3))
    batch = pick((), (1,), (3,))
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    return conv((*batch, c, *size), (m, c // groups, *kernel), pick(True, False), **options)


def pool_size(pick: Pick) -> tuple[int, ...]:
    return (*pick((), (1,), (3,)), pick(1, 4, 7), pick(6, 7, 8), pick(6, 9, 11))


def max_pool_cases(pick: Pick) -> Case:
    kernel = (pick(2, 3), pick(2, 3))
    options = {"stride": pick(None, 1, 2, (3, 1)), "padding": pick(0, 1, (0, 1))}
    rest = {"dilation": pick(1, 2, (1, 2)), "ceil_mode": pick(True, False)}
    return pool("max_pool2d", pool_size(pick), kernel_size=kernel, **options, **rest)


def avg_pool_cases(pick: Pick) -> Case:
    kernel = (pick(2, 3, 4), pick(2, 3, 5))
    options = {"stride": pick(None, 1, 2, (3, 1)), "padding": pick(0, 1, (0, 1))}
    options |= {"ceil_mode": pick(True, False), "count_include_pad": pick(True, False)}
    options |= {"divisor_override": pick(None, None, 3)}
    return pool("avg_pool2d", pool_size(pick), kernel_size=kernel, **options)


def adaptive_cases(pick: Pick) -> Case:
    size = pick(1, 3, 8, (2, 5), (None, 3), (7, None))
    return pool("adaptive_avg_pool2d", pool_size(pick), output_size=size)


def norm_cases(pick: Pick) -> Case:
    shape = (pick(2, 3, 9), pick(1, 3, 17), *pick((), (5,), (4, 3)))
    training = pick(True, False)
    options = {"momentum": pick(0.1, 0.3, 1.0), "eps": pick(1e-5, 1e-3)}
    return norm(shape, pick(True, False), pick(True, False), training=training, **options)


def dropout_cases(pick: Pick) -> Case:
    p = pick(0.0, 0.3, 0.5, 0.9, 1.0)
    if pick(True, False):
        return Case("dropout", {"input": pick((9,), (4, 5), (2, 3, 4, 5))}, {"p": p})
    axis = pick(0, 1)
    shape = (3,) * axis + (7, *pick((5,), (4, 3)))
    return Case("feature_dropout", {"input": shape}, {"p": p, "channel_axis": axis})


def linear_cases(pick: Pick) -> Case:
    n, m = pick(1, 7, 16, 33), pick(1, 5, 12, 31)
    shapes = {"input": (*pick((), (4,), (2, 3), (0,)), n), "weight": (m, n)}
    return Case("linear", shapes | pick({}, {"bias": (m,)}))


def activation_cases(pick: Pick) -> Case:
    op, options = pick(
        ("relu", {}),
        ("leaky_relu", {"negative_slope": pick(0.01, 0.3, -0.5)}),
        ("sigmoid", {}),
        ("tanh", {}),
        ("gelu", {"approximate": pick("none", "tanh")}),
    )
    return Case(op, {"input": pick((), (11,), (3, 5), (2, 3, 4), (2, 3, 4, 5))}, options)


def softmax_cases(pick: Pick) -> Case:
    shape = pick((6,), (3, 5), (2, 7, 4), (2, 3, 4, 5))
    dim = pick(*range(-len(shape), len(shape)))
    return Case(pick("softmax", "log_softmax"), {"input": shape}, {"dim": dim})


def label_cases(pick: Pick) -> Case:
    op = pick("cross_entropy", "nll_loss")
    options = {"reduction": pick("mean", "sum", "none"), "ignore_index": pick(-100, 0, 2)}
    if op == "cross_entropy":
        options["label_smoothing"] = pick(0.0, 0.1, 1.0)
    shape = pick((5,), (6, 4), (8, 3, 5), (4, 3, 2, 5))
    return labelled(op, shape, pick(True, False), **options)


def elementwise_loss_cases(pick: Pick) -> Case:
    shape, reduction = pick((5,), (6, 4), (2, 4, 3)), pick("mean", "sum", "none")
    if pick(True, False):
        return paired("mse_loss", shape, reduction=reduction)
    factors = {"weight": pick(None, shape[-1:], shape), "pos_weight": pick(None, shape[-1:])}
    given = {name: factor for name, factor in factors.items() if factor}
    return paired("binary_cross_entropy_with_logits", shape, reduction=reduction, **given)


def winograd_cases(pick: Pick) -> Case:
    """Convolutions that Winograd's tiles of 2x2 and of 4x4 can serve."""
    c, m, dilation = pick(16, 17, 24, 33), pick(16, 18, 32), (pick(1, 1, 2), pick(1, 1, 3))
    padding = tuple(pick(0, d, 2 * d) for d in dilation)
    size = [
        max(d, 2 * (d - p) + pick(1, 2, 3, 6, 9)) for d, p in zip(dilation, padding, strict=True)
    ]
    shapes = (pick(1, 2, 3), c, *size), (m, c, 3, 3)
    return conv(*shapes, pick(True, False), padding=padding, dilation=dilation)


def winograd_rows_cases(pick: Pick) -> Case:
    """Convolutions that Winograd's transform along rows serves, with vectors of any width."""
    m, kh = pick(6, 7, 13), pick(1, 2, 3, 5)
    c, top, left = pick((2, kh // 2, 0), (3, 0, 1), (4, kh // 2, 2), (6, kh - 1, 4))
    size = kh + pick(0, 1, 4), pick(6, 7, 9, 12)
    shapes = (pick(12, 16, 29), c, *size), (m, c, kh, 5)
    return conv(*shapes, pick(True, False), padding=(top, left))


def long_sum_cases(pick: Pick) -> Case:
    """Sums of hundreds of terms."""
    many, few = pick(64, 97, 130, 300), pick(1, 3, 17)
    return pick(
        conv((1, many, 4, 5), (few, many, 3, 3), padding=1),
        conv((2, few, 3, 4), (many, few, 3, 2)),
        conv((9, 2, 9, 11), (few, 2, 3, 3), stride=pick(1, 2)),
        Case("linear", {"input": (pick(1, 5, 33), 3 * many), "weight": (few, 3 * many)}),
        Case("linear", {"input": (many, few), "weight": (pick(7, 130), few)}),
        pool("avg_pool2d", (2, few, 19, 21), kernel_size=pick(9, 14), stride=5),
        pool("adaptive_avg_pool2d", (2, few, 19, 21), output_size=pick(1, 2)),
        norm((many, few, 3, 5), training=True),
        labelled("cross_entropy", (many, 3 * many), pick(True, False)),
        paired("mse_loss", (many, few)),
    )
