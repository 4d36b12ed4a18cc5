"""The text of tensors."""

import numpy as np
import pytest

from fastlayers.autograd import Tensor, printing
from fastlayers.functions import tensor


@pytest.mark.parametrize(
    ("values", "text"),
    [
        (1.5, "tensor(1.5000)"),
        ([1.0, 2.0], "tensor([1., 2.])"),
        ([1.0, float("nan"), float("-inf")], "tensor([1., nan, -inf])"),
        ([1e-5, 1.0], "tensor([1.0000e-05, 1.0000e+00])"),
        ([[1, 2], [3, 40]], "tensor([[ 1,  2],\n        [ 3, 40]])"),
        ([True, False], "tensor([ True, False])"),
        ([], "tensor([])"),
        (np.zeros((0, 2), np.int64), "tensor([], size=(0, 2), dtype=torch.int64)"),
        (np.ones(2), "tensor([1., 1.], dtype=torch.float64)"),
        (np.arange(2000), "tensor([   0,    1,    2,  ..., 1997, 1998, 1999])"),
    ],
)
def test_values(values: object, text: str) -> None:
    assert repr(tensor(values)) == text


def test_gradients_are_told_of() -> None:
    x = tensor([1.0], requires_grad=True)
    assert repr(x) == "tensor([1.], requires_grad=True)"
    assert repr(x * 2) == "tensor([2.], grad_fn=<MulBackward0>)"
    assert str(x.shape) == "torch.Size([1])"

    class Other(Tensor):
        pass

    assert repr(Other([1.0])) == "Other([1.])"


def test_options_hold_until_the_context_ends() -> None:
    x = tensor([1.23456, 2.0, 3.0])
    with printing.printoptions(precision=1):
        assert repr(x) == "tensor([1.2, 2.0, 3.0])"
    with printing.printoptions(threshold=2, edgeitems=1):
        assert repr(x) == "tensor([1.2346,  ..., 3.0000])"
    with printing.printoptions(profile="short", sci_mode=True):
        assert repr(x) == "tensor([1.23e+00, 2.00e+00, 3.00e+00])"
    assert repr(x) == "tensor([1.2346, 2.0000, 3.0000])"
    with pytest.raises(ValueError, match="profile must be one of"):
        printing.set_printoptions(profile="long")
