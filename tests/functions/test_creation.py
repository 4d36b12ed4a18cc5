"""New tensors, of given and of random values."""

from typing import Any

import numpy as np
import pytest

from fastlayers import functions as fl
from fastlayers.autograd import Tensor
from fastlayers.random import Generator, manual_seed


def test_dtypes_of_values() -> None:
    kinds = [(1, "int64"), (1.0, "float32"), (True, "bool"), ([], "float32"), ([1, 2.0], "float32")]
    for data, dtype in kinds:
        assert fl.tensor(data).dtype == dtype
    assert fl.tensor([2, fl.tensor(1.0).double()]).dtype == np.float64
    assert fl.tensor(np.zeros(2)).dtype == fl.tensor([np.zeros(2)]).dtype == np.float64
    assert fl.tensor(np.array([1], ">i4")).dtype == np.int32


def test_lists_of_tensors() -> None:
    parts = [fl.ones(2, requires_grad=True), fl.zeros(2)]
    assert fl.tensor(parts).tolist() == [[1, 1], [0, 0]]
    assert fl.tensor([1.0, parts[0].sum()]).tolist() == [1, 2]


def test_what_shares_memory() -> None:
    array = np.zeros(2, np.float32)
    copy, shared = fl.tensor(array), [fl.from_numpy(array), fl.as_tensor(array), fl.asarray(array)]
    array[0] = 1
    assert not copy[0].item() and all(x[0].item() for x in shared)
    x = fl.ones(2)
    assert fl.as_tensor(x) is x and fl.as_tensor(x, dtype=np.float64).dtype == np.float64
    assert fl.asarray(x, copy=True) is not x


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: fl.tensor("a"), TypeError, "numbers"),
        (lambda: fl.tensor(None), TypeError, "numbers"),
        (lambda: fl.tensor([[1, 2], [3]]), ValueError, "one length"),
        (lambda: fl.tensor(2**63), ValueError, "overflow"),
        (lambda: fl.tensor([1, 2**70]), ValueError, "overflow"),
        (lambda: fl.tensor(300, dtype=np.uint8), RuntimeError, "overflow"),
        (lambda: fl.tensor(1, requires_grad=True), RuntimeError, "floating point"),
        (lambda: fl.tensor(1.0, device="cuda"), RuntimeError, "device"),
        (lambda: fl.zeros(), TypeError, "size"),
        (lambda: fl.zeros(-1), RuntimeError, "non-negative"),
        (lambda: fl.zeros(2.5), TypeError, "integers"),
        (lambda: fl.zeros(2, dtype=str), TypeError, "dtype"),
        (lambda: fl.zeros(2, names=None), TypeError, "names"),
        (lambda: fl.full(2, 1), TypeError, "sequence"),
        (lambda: fl.from_numpy([1]), TypeError, "array"),
        (lambda: fl.arange(0, 3, 0), RuntimeError, "nonzero"),
        (lambda: fl.arange(1, 0), RuntimeError, "step sign"),
        (lambda: fl.linspace(0, 1, -1), RuntimeError, "non-negative"),
        (lambda: fl.rand(2, dtype=np.int64), NotImplementedError, "floating"),
        (lambda: fl.rand(2, generator=3), TypeError, "Generator"),
        (lambda: fl.randint(3, 3, (2,)), RuntimeError, "less than"),
        (lambda: fl.randint(0, 5), TypeError, "size"),
        (lambda: fl.normal(fl.zeros(2), -1.0), RuntimeError, "std"),
        (lambda: fl.normal(0.0, 1.0), TypeError, "size"),
        (lambda: fl.bernoulli(fl.tensor([2.0])), RuntimeError, "0, 1"),
        (lambda: fl.multinomial(fl.zeros(2), 1), RuntimeError, "positive"),
        (lambda: fl.multinomial(fl.ones(2), 3), RuntimeError, "at most"),
        (lambda: fl.zeros(2).uniform_(1, 0), RuntimeError, "more than"),
        (lambda: fl.zeros(2).fill_(fl.zeros(1)), RuntimeError, "0-dimensional"),
        (lambda: fl.zeros(2).copy_(fl.zeros(3)), RuntimeError, "existing size"),
        (lambda: Generator("cuda"), RuntimeError, "cpu"),
    ],
)
def test_what_is_refused(call: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        call()


def test_seeds() -> None:
    def drawn(**options: Any) -> list[Any]:
        made = [fl.rand(3, **options), fl.randn(3, **options), fl.randint(9, (3,), **options)]
        made += [fl.randperm(5, **options), fl.zeros(3).uniform_(**options)]
        return [x.tolist() for x in made]

    manual_seed(3)
    first = drawn()
    manual_seed(3)
    assert drawn() == first
    generator = Generator().manual_seed(3)
    other = drawn(generator=generator)
    assert drawn(generator=Generator().manual_seed(3)) == other
    assert generator.initial_seed() == 3 and drawn() != first
    state = generator.get_state()
    again = drawn(generator=generator)
    generator.set_state(state)
    assert drawn(generator=generator) == again


def test_distributions() -> None:
    manual_seed(0)
    n = 20_000

    def moments(x: Tensor) -> tuple[float, float]:
        values = x.double().numpy()
        return float(values.mean()), float(values.std())

    uniform = np.sqrt(1 / 12)
    cases = [
        (fl.rand(n), 0.5, uniform),
        (fl.randn(n), 0, 1),
        (fl.randint(2, 5, (n,)), 3, np.sqrt(2 / 3)),
        (fl.normal(2.0, 3.0, (n,)), 2, 3),
        (fl.bernoulli(fl.full((n,), 0.25)), 0.25, np.sqrt(3) / 4),
        (fl.zeros(n).uniform_(-1, 3), 1, 4 * uniform),
        (fl.zeros(n).exponential_(2), 0.5, 0.5),
        (fl.zeros(n).bernoulli_(0.25), 0.25, np.sqrt(3) / 4),
        (fl.zeros(n).random_(2, 5), 3, np.sqrt(2 / 3)),
        (fl.multinomial(fl.tensor([1.0, 0.0, 3.0]), n, replacement=True), 1.5, np.sqrt(3) / 2),
    ]
    for x, mean, std in cases:
        found = moments(x)
        assert abs(found[0] - mean) < 6 * std / np.sqrt(n) and abs(found[1] / std - 1) < 0.05


def test_multinomial_without_replacement() -> None:
    p = fl.tensor([[0.0, 1.0, 1.0], [5.0, 1.0, 0.0]]).expand(2, 3)
    found = fl.multinomial(p, 2)
    assert found.shape == (2, 2) and sorted(found[0].tolist()) == [1, 2]
    assert sorted(found[1].tolist()) == [0, 1]
    counts = [fl.multinomial(fl.tensor([3.0, 1.0]), 1).item() for _ in range(400)]
    assert 60 < sum(counts) < 140


def test_what_is_filled_has_no_gradient_of_what_was() -> None:
    x = fl.ones(2, requires_grad=True)
    value = fl.tensor(3.0, requires_grad=True)
    (x * 2).fill_(value).sum().backward()
    assert x.grad is not None and x.grad.tolist() == [0, 0]
    assert value.grad is not None and value.grad.item() == 2
    with pytest.raises(RuntimeError, match="leaf"):
        x.zero_()


def test_new_tensors_have_the_dtype() -> None:
    x = fl.zeros(2, dtype=np.float64)
    made = [
        x.new_zeros(2),
        x.new_ones((2,)),
        x.new_full((2,), 1),
        x.new_tensor([1, 2]),
        x.new_empty(2),
    ]
    assert all(y.dtype == np.float64 and y.shape == (2,) for y in made)
    assert x.new_zeros(2, dtype=np.int64).dtype == np.int64
