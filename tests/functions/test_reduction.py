"""Sums, extremes, norms and orders: gradients by differences, ties, dims, errors."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from functions.numeric import check_gradients

from fastlayers import functions as F
from fastlayers.autograd import Tensor
from fastlayers.functions import tensor

X = np.random.default_rng(0).permutation(24).reshape(2, 3, 4) / 10 + 0.05
NAMES = "sum mean prod amax amin max min median nansum nanmean var std norm"


@pytest.mark.parametrize("name", NAMES.split())
@pytest.mark.parametrize("dims", [(), (0,), (-1,)])
def test_gradients_of_reductions(name: str, dims: tuple[int, ...]) -> None:
    options = {"dim": dims[0]} if dims else {}
    check_gradients(lambda x: getattr(F, name)(x, **options), X)
    if dims:
        check_gradients(lambda x: getattr(F, name)(x, **options, keepdim=True), X)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: F.sum(x, (0, -1)),
        lambda x: F.mean(x, [1, 2], keepdim=True),
        lambda x: F.var(x, (0, 1), correction=0),
        lambda x: F.logsumexp(x, (0, 2)),
        lambda x: F.cumsum(x, 1),
        lambda x: F.cumprod(x, -1),
        lambda x: F.var_mean(x, 1),
        lambda x: F.topk(x, 2, 1),
        lambda x: F.topk(x, 2, largest=False),
        lambda x: F.sort(x, 0, descending=True),
        lambda x: F.kthvalue(x, 2, 1),
        *(lambda x, p=p: F.norm(x, p, (0, 2)) for p in (0, 1, 2, 3, 1.5, np.inf, -np.inf)),
    ],
)
def test_gradients_of_other_reductions(function: Callable[..., Any]) -> None:
    check_gradients(function, X)


def test_products_have_right_gradients_where_elements_are_0() -> None:
    for values in ([2.0, 0.0, 3.0], [0.0, 0.0, 3.0]):
        check_gradients(F.prod, np.array(values))
        check_gradients(lambda x: F.cumprod(x, 0), np.array(values))


def gradient(function: Callable[[Tensor], Tensor], *values: float) -> list[float]:
    x = tensor(values, dtype=np.float32, requires_grad=True)
    function(x).backward()
    return x.grad.tolist()  # type: ignore[union-attr]


def test_gradients_at_ties_and_edges_are_pytorchs() -> None:
    third = np.float32(1 / 3).item()
    assert gradient(F.max, 1, 2, 2) == [0, 0.5, 0.5]
    assert gradient(F.amax, 2, 2, 2) == [third] * 3
    assert gradient(lambda x: F.max(x, 0).values, 1, 2, 2) == [0, 1, 0]
    assert gradient(F.norm, 0, 0) == [0, 0]
    assert gradient(F.std, 1, 1) == [0, 0]
    assert gradient(lambda x: F.norm(x, np.inf), -2, 2, 1) == [-0.5, 0.5, 0]
    assert gradient(F.nansum, np.nan, 1) == [0, 1]


def test_dims_in_all_forms() -> None:
    x = tensor(np.arange(24.0, dtype=np.float32).reshape(2, 3, 4))
    given = ([0, 1], (0, 1)), ((-3, -2), (0, 1)), (None, None), (-1, 2), (tensor(1), 1)
    for dim, axes in given:
        expected = x.array().sum(axes)
        assert F.sum(x, dim).tolist() == expected.tolist()
        assert x.sum(axis=dim).tolist() == expected.tolist()
    assert x.sum(0, True).shape == (1, 3, 4) and x.mean(1, keepdims=True).shape == (2, 1, 4)
    assert x.std(0, False).tolist() == x.array().std(0).tolist()
    assert x.var(unbiased=False).item() == x.var(False).item() == x.var(correction=0).item()
    assert tensor([True, True]).sum().dtype == np.int64
    assert x.sum(dtype=np.float64).dtype == np.float64


def test_empty_tensors() -> None:
    empty = tensor(np.zeros((0, 3), np.float32))
    assert empty.sum().item() == 0 and empty.prod().item() == 1 and np.isnan(empty.mean().item())
    assert empty.sum(0).tolist() == [0, 0, 0] and empty.sum(1).shape == (0,)
    assert empty.max(1).values.shape == (0,) and empty.sort(0).indices.shape == (0, 3)
    assert not empty.any().item() and empty.all().item()


def test_results_with_names() -> None:
    found = tensor([[1.0, 3.0], [4.0, 2.0]]).max(dim=1)
    values, indices = found
    assert values.tolist() == found.values.tolist() == [3, 4]
    assert indices.tolist() == found[1].tolist() == [1, 0]
    assert repr(found) == (
        "torch.return_types.max(\nvalues=tensor([3., 4.]),\nindices=tensor([1, 0]))"
    )
    assert F.max(tensor([1.0, 5.0]), tensor([2.0, 3.0])).tolist() == [2, 5]


def test_orders_with_nan_and_equal_elements() -> None:
    x = tensor([2.0, float("nan"), 1.0, 2.0])
    assert x.sort(stable=True).indices.tolist() == [2, 0, 3, 1]
    assert x.sort(descending=True).indices.tolist() == [1, 0, 3, 2]
    assert x.argmax().item() == 1 and x.median(0).indices.item() == 1
    assert np.isnan(x.max().item()) and np.isnan(x.median().item())
    values, inverse, counts = tensor([3, 1, 3]).unique(return_inverse=True, return_counts=True)
    assert (values.tolist(), inverse.tolist(), counts.tolist()) == ([1, 3], [1, 0, 1], [1, 2])


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda x: x.sum(2), IndexError, r"dim must be in \[-2, 1\], got 2"),
        (lambda x: x.sum((0, -2)), RuntimeError, "must not repeat an axis"),
        (lambda x: x.sum(0.5), TypeError, "dim must be an integer"),
        (lambda x: x.argmax(-3), IndexError, "dim must be in"),
        (lambda x: x[:0].max(), RuntimeError, "must have elements"),
        (lambda x: x[:0].max(0), IndexError, "must have elements along dim"),
        (lambda x: x[:0].amax(0), IndexError, "must have elements along dim"),
        (lambda x: x[:0].argmin(), IndexError, "must have elements along dim"),
        (lambda x: x[:0].median(0), IndexError, "must have elements along dim"),
        (lambda x: x[:0].norm(np.inf), RuntimeError, "must have elements"),
        (lambda x: (x > 0).mean(), RuntimeError, "must be floating point"),
        (lambda x: (x > 0).var(), RuntimeError, "must be floating point"),
        (lambda x: (x > 0).norm(), RuntimeError, "must be floating point"),
        (lambda x: x.norm("nuc"), NotImplementedError, "nuc"),
        (lambda x: x.topk(3), RuntimeError, r"k must be in \[0, 2\], got 3"),
        (lambda x: x.kthvalue(0), RuntimeError, r"k must be in \[1, 2\], got 0"),
        (lambda x: x.unique().sum().backward(), NotImplementedError, "must not be differentiated"),
    ],
)
def test_errors(call: Callable[[Tensor], Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        call(tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True))
