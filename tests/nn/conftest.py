from collections.abc import Callable, Iterator

import numpy as np
import pytest

import fastlayers as fl
from fastlayers import Tensor
from fastlayers.testing import gradcheck


@pytest.fixture(autouse=True)
def seeded() -> None:
    fl.manual_seed(0)


@pytest.fixture
def restored_threads() -> Iterator[None]:
    before = fl.get_num_threads()
    yield
    fl.set_num_threads(before)


@pytest.fixture
def check_layer() -> Callable[..., bool]:
    """Give a function that checks the gradients of a layer by its inputs and parameters."""

    def check(layer: fl.nn.Module, *inputs: Tensor) -> bool:
        named = list(layer.named_parameters())

        def function(*tensors: Tensor) -> Tensor:
            values = dict(zip(dict(named), tensors[len(inputs) :], strict=True))
            return fl.func.functional_call(layer, values, tensors[: len(inputs)])

        rng = np.random.default_rng(1)
        values = [Tensor(p.array() + rng.uniform(0, 0.5, p.shape), True) for _, p in named]
        return gradcheck(function, [*inputs, *values])

    return check
