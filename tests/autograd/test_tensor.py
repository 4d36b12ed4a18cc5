"""Python's protocols, and the values and gradients of tensors."""

import numpy as np
import pytest

import fastlayers as fl
from fastlayers import Tensor, nn


def test_data_is_a_tensor_of_the_same_memory():
    p = nn.Parameter(np.ones(3))
    data = p.data
    assert type(data) is Tensor and not data.requires_grad and data.is_leaf
    data[1] = 5.0
    p.data -= 1
    assert p.tolist() == [0, 4, 0] and p.requires_grad
    p.data = fl.tensor([1.0, 2.0])
    assert p.tolist() == [1, 2] and p.dtype == np.float32 and isinstance(p, nn.Parameter)
    with pytest.raises(TypeError, match="floating point for requires_grad"):
        p.data = fl.tensor([1, 2])


def test_data_of_a_tensor_shares_its_memory():
    x, y = fl.zeros(2), fl.ones(2)
    x.data = y
    y[0] = 7.0
    assert x.tolist() == [7, 1]


def test_grad_is_a_tensor():
    x = fl.tensor([1.0, 2.0], requires_grad=True)
    (x * x).sum().backward()
    assert type(x.grad) is Tensor and x.grad is x.grad and not x.grad.requires_grad
    x.grad *= 2
    x.grad[0] = 1.0
    assert x.grad.tolist() == x.grad_array().tolist() == [1, 8]
    x.grad = None
    assert x.grad is None and x.grad_array() is None


def test_grad_that_is_assigned():
    x = fl.tensor([1.0, 2.0], requires_grad=True)
    for value in (np.ones(2, np.float32), fl.ones(2)):
        x.grad = value
        assert type(x.grad) is Tensor and x.grad.tolist() == [1, 1]
    with pytest.raises(
        RuntimeError, match=r"grad: must have the tensor's shape \(2,\), got \(3,\)"
    ):
        x.grad = fl.ones(3)
    for wrong in ([1.0, 2.0], 3.0):
        with pytest.raises(TypeError, match="grad: must be a Tensor or None"):
            x.grad = wrong
    assert x.grad.tolist() == [1, 1]


def test_iteration():
    x = fl.tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True)
    first, second = x
    assert [row.tolist() for row in x] == [[1, 2], [3, 4]]
    assert first.requires_grad and isinstance(second, Tensor)
    sum(row.sum() for row in x).backward()
    assert x.grad.tolist() == [[1, 1], [1, 1]]
    assert list(fl.zeros(0, 3)) == []
    assert dict(zip("ab", fl.tensor([1, 2]), strict=True))["b"].item() == 2
    with pytest.raises(TypeError, match="0-d"):
        iter(fl.tensor(1.0))
    with pytest.raises(TypeError, match="0-d"):
        len(fl.tensor(1.0))


def test_membership():
    x = fl.tensor([1, 2, 3])
    assert 2 in x and fl.tensor(3) in x and 4 not in x
    assert 0.5 not in fl.zeros(0)
    assert fl.tensor([float("nan")]).tolist()[0] not in fl.tensor([float("nan")])


def test_indices():
    words, i = ["a", "b", "c"], fl.tensor(2)
    assert words[i] == "c" and words[fl.tensor([1])] == "b" and words[: fl.tensor(1)] == ["a"]
    assert list(range(fl.tensor(3))) == [0, 1, 2] and fl.zeros(fl.tensor(2)).shape == (2,)
    assert words[fl.tensor(True)] == "b"
    for wrong in (fl.tensor(1.0), fl.tensor([1, 2])):
        with pytest.raises(TypeError, match="only an integer tensor of one element"):
            words[wrong]


def test_formats():
    assert f"{fl.tensor(2.5):.3f} {fl.tensor(3):04d} {fl.tensor(True)}" == "2.500 0003 True"
    x = fl.tensor([1.0, 2.0])
    assert f"{x}" == str(x) == repr(x) == "tensor([1., 2.])"
    with pytest.raises(TypeError, match="format"):
        f"{x:.2f}"
    grown = fl.tensor(2.0, requires_grad=True) * 2
    assert f"{grown:.1f}" == "4.0"


def test_numbers():
    x = fl.tensor([2.5])
    assert (float(x), int(x), complex(x), bool(x), round(x.item())) == (2.5, 2, 2.5 + 0j, True, 2)
    assert not fl.tensor(0) and fl.tensor([[True]])
    for several in (fl.zeros(2), fl.zeros(0)):
        for convert in (bool, float, int, lambda t: t.item()):
            with pytest.raises(RuntimeError, match="must have one element"):
                convert(several)
    with pytest.raises(RuntimeError, match=r"use any\(\) or all\(\)"):
        assert fl.tensor([1, 2]) == fl.tensor([1, 2])


def test_hashes_are_those_of_objects():
    x, y = fl.tensor([1.0]), fl.tensor([1.0])
    assert len({x, y, x}) == 2 and {x: "x"}[x] == "x" and hash(x) == hash(x)


def test_sizes():
    x = fl.zeros(2, 3, 4)
    assert x.shape == x.size() == (2, 3, 4) and isinstance(x.shape, tuple)
    assert repr(x.shape) == "torch.Size([2, 3, 4])" and x.shape.numel() == 24
    assert repr(x.shape[1:]) == "torch.Size([3, 4])" and x.shape[0] == x.size(0) == 2
    assert repr(x.shape[:1] + x.shape[2:]) == "torch.Size([2, 4])"
    assert (x.stride(), x.stride(0), x.element_size(), x.nbytes) == ((12, 4, 1), 12, 4, 96)


def test_requires_grad_can_be_asked_for_later():
    x = fl.zeros(2)
    assert x.requires_grad_() is x and x.requires_grad
    y = x * 2
    with pytest.raises(RuntimeError, match="must be a leaf"):
        y.requires_grad_(False)
    with pytest.raises(RuntimeError, match="only floating point"):
        fl.tensor([1]).requires_grad_()
    assert not y.detach_().requires_grad and y.is_leaf and y.grad_fn is None


def test_the_constructor_shares_and_the_function_copies():
    array = np.zeros(2)
    shared, copied = Tensor(array), fl.tensor(array)
    array[0] = 1
    assert shared.tolist() == [1, 0] and copied.tolist() == [0, 0]
    with pytest.raises(TypeError):
        fl.tensor(array, True)


@pytest.mark.parametrize(
    ("given", "shape"),
    [((), (0,)), ((3,), (3,)), ((2, 3), (2, 3)), ((2, 0), (2, 0)), ((fl.Size([2, 3]),), (2, 3))],
)
def test_integers_are_sizes(given, shape):
    x = fl.Tensor(*given)
    assert x.shape == shape and x.dtype == np.float32 and not x.requires_grad
    assert fl.Tensor(*given, requires_grad=True).requires_grad


@pytest.mark.parametrize("given", [(2, 3.0), (-1,), ([1.0], 2), (2, "a")])
def test_sizes_are_checked(given):
    with pytest.raises(TypeError, match="^Tensor: sizes must be whole numbers >= 0, got "):
        fl.Tensor(*given)


def test_an_integer_among_the_inputs_of_a_function_is_a_value():
    assert fl.maximum(3, fl.tensor([1, 5])).tolist() == [3, 5]
    assert fl.add(2, 3).item() == 5


def test_a_gradient_that_somebody_holds_is_added_to_in_place():
    x = Tensor([1.0, 2.0], requires_grad=True)
    (3 * x).sum().backward()
    held = x.grad
    (2 * x).sum().backward()
    assert x.grad is held
    assert held.tolist() == [5, 5]
    x.grad = fl.ones(1).expand(2)  # of one element
    x.sum().backward()
    assert x.grad.tolist() == [2, 2]
    fixed = np.ones(2, np.float32)
    fixed.flags.writeable = False
    x.grad = Tensor(fixed)
    x.sum().backward()
    assert x.grad.tolist() == [2, 2]
    assert fixed.tolist() == [1, 1]
