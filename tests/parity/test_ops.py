"""Operations against PyTorch, forward and backward, for random shapes and options."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from cases import DTYPES, LOSSES, Arrays, Case, compare, conv, labelled, like, norm, paired, pool

from fastlayers import ops

torch = pytest.importorskip("torch")

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


GENERATORS = (
    (conv_cases, 80),
    (max_pool_cases, 40),
    (avg_pool_cases, 40),
    (adaptive_cases, 20),
    (norm_cases, 40),
    (dropout_cases, 15),
    (linear_cases, 25),
    (activation_cases, 40),
    (softmax_cases, 20),
    (label_cases, 50),
    (elementwise_loss_cases, 30),
)


def random_cases() -> Iterator[Any]:
    for generator, count in GENERATORS:
        for seed in range(count):
            rng = np.random.default_rng(seed)

            def pick(*choices: Any, rng: np.random.Generator = rng) -> Any:
                return choices[rng.integers(len(choices))]

            case = generator(pick)
            yield pytest.param(case, id=f"{seed}-{case.id}")


def by_torch(case: Case, arrays: Arrays, mask: np.ndarray | None) -> Arrays:
    """Give what `Case.run` gives, by PyTorch and its automatic differentiation."""
    tensors = {name: torch.tensor(a) for name, a in arrays.items()}
    options, results = dict(case.options), {}
    learnt = (
        ["input"] if case.op in LOSSES else [n for n in ("input", "weight", "bias") if n in arrays]
    )
    for name in learnt:
        tensors[name].requires_grad_()
    if mask is not None:
        y = torch.where(torch.tensor(mask) > 0, tensors["input"] / (1 - options["p"] or 1), 0)
    else:
        function = getattr(torch.nn.functional, case.op)
        if case.op == "batch_norm":
            tensors = dict.fromkeys(("running_mean", "running_var")) | tensors
            options["training"] |= "running_mean" not in arrays
        if case.op == "max_pool2d":
            results["indices"] = function(tensors["input"], **options, return_indices=True)[1]
        y = function(**tensors, **options)
    y.backward(torch.tensor(like(y.detach().numpy())))
    results |= {
        name: t for name, t in tensors.items() if name.startswith("running") and t is not None
    }
    results |= {f"d{name}": tensors[name].grad for name in learnt}
    return {"y": y.detach().numpy(), **{name: t.numpy() for name, t in results.items()}}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.__name__)
@pytest.mark.parametrize("case", list(random_cases()))
def test_agrees_with_torch(case, dtype):
    arrays = case.arrays(dtype)
    got = case.run(ops, arrays)
    mask = got.get("dropped")
    if mask is not None:
        mask = np.broadcast_to(
            mask.reshape(*mask.shape, *[1] * (got["y"].ndim - mask.ndim)), got["y"].shape
        )
    want = by_torch(case, arrays, mask)
    assert got.keys() >= want.keys()
    compare({name: got[name] for name in want}, want)
