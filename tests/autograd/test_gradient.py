import numpy as np
import pytest

import fastlayers as fl
from fastlayers import autograd


def leaf(*values):
    return fl.tensor(np.array(values, np.float64), requires_grad=True)


def test_grad_changes_no_grad():
    x, y = leaf(1, 2), leaf(3, 4)
    x.grad = np.array([7.0, 7])
    dx, dy = autograd.grad((x * y * y).sum(), (x, y))
    assert type(dx) is fl.Tensor and not dx.requires_grad and dx.is_leaf
    np.testing.assert_array_equal(dx, [9, 16])
    np.testing.assert_array_equal(dy, [6, 16])
    assert x.grad.tolist() == [7, 7] and y.grad is None
    (alone,) = autograd.grad((x * 2).sum(), x)
    assert alone.tolist() == [2, 2]


def test_grad_by_results_of_ops():
    x = leaf(1, 2)
    middle = x * 3
    last = middle * middle
    by_middle, by_last, by_x = autograd.grad(last.sum(), [middle, last, x])
    np.testing.assert_array_equal(by_middle, [6, 12])
    np.testing.assert_array_equal(by_last, [1, 1])
    np.testing.assert_array_equal(by_x, [18, 36])
    assert x.grad is None and middle.grad is None


def test_grad_of_several_outputs():
    x, y = leaf(1, 2), leaf(3, 4)
    shared = x * y
    outputs = shared.sum(), shared * x, x
    seeds = None, np.array([1.0, 10]), fl.tensor([100.0, 1000.0])
    dx, dy = autograd.grad(outputs, (x, y), seeds)
    np.testing.assert_array_equal(dx, [3 + 2 * 3 + 100, 4 + 10 * 2 * 2 * 4 + 1000])
    np.testing.assert_array_equal(dy, [1 + 1, 2 + 10 * 4])


def test_gradients_that_are_returned_share_no_memory():
    x, y = leaf(1, 2), leaf(3, 4)
    seed = np.ones(2)
    dx, dy = autograd.grad(x + y, (x, y), seed)
    for one, other in ((dx, dy), (dx, seed), (dy, seed)):
        assert not np.may_share_memory(np.asarray(one), np.asarray(other))


def test_inputs_that_were_not_used():
    x, other = leaf(1, 2), leaf(3)
    with pytest.raises(RuntimeError, match="allow_unused=True gives None"):
        autograd.grad((x * 2).sum(), (x, other))
    dx, nothing = autograd.grad((x * 2).sum(), (x, other), allow_unused=True)
    assert nothing is None and dx.tolist() == [2, 2]
    dx, zeros = autograd.grad((x * 2).sum(), (x, other), materialize_grads=True)
    assert zeros.tolist() == [0] and zeros.dtype == np.float64 and dx.tolist() == [2, 2]
    with pytest.raises(RuntimeError, match="inputs must require gradients"):
        autograd.grad((x * 2).sum(), (x, fl.tensor([1.0])), allow_unused=True)


def test_retain_graph():
    x = leaf(1, 2)
    y = (x * x).sum()
    for _ in range(2):
        assert autograd.grad(y, x, retain_graph=True)[0].tolist() == [2, 4]
    autograd.grad(y, x)
    with pytest.raises(RuntimeError, match="retain_graph"):
        autograd.grad(y, x)


def test_backward_of_several_tensors_goes_through_what_they_share_once():
    x = leaf(1, 2)
    calls = []

    def way_back(dy):
        calls.append(dy.copy())
        return (3 * dy,)

    shared = autograd.record(3 * x.array(), (x,), way_back)
    autograd.backward([shared.sum(), shared * 2], [None, np.array([1.0, 5])])
    np.testing.assert_array_equal(calls, [[3, 11]])
    np.testing.assert_array_equal(x.grad, [9, 33])
    with pytest.raises(RuntimeError, match="retain_graph"):
        autograd.backward(shared.sum())
    autograd.backward((x * 2).sum())
    np.testing.assert_array_equal(x.grad, [11, 35])


@pytest.mark.parametrize("function", [autograd.grad, autograd.backward])
def test_errors(function):
    x = leaf(1, 2)

    def call(outputs, *args, **options):
        inputs = (x,) if function is autograd.grad else ()
        return function(outputs, *inputs, *args, **options)

    y = x * 2
    with pytest.raises(RuntimeError, match="there must be a gradient for each of 2 outputs, got 1"):
        call([y, y], [np.ones(2)])
    with pytest.raises(RuntimeError, match="only for scalar outputs"):
        call(y)
    with pytest.raises(ValueError, match=r"gradient must have shape \(2,\), got \(3,\)"):
        call(y, np.ones(3))
    with pytest.raises(TypeError, match="outputs must hold Tensors, got float"):
        call([y, 1.0])
    with pytest.raises(RuntimeError, match="must require a gradient"):
        call(fl.tensor(1.0))
    with pytest.raises(NotImplementedError, match="create_graph must be False"):
        call(y.sum(), create_graph=True)
    assert x.grad is None


def test_retained_gradients_of_results():
    x = leaf(1, 2)
    middle = x * 3
    middle.retain_grad()
    x.retain_grad()  # a leaf has its gradient anyway
    (middle * middle).sum().backward(retain_graph=True)
    np.testing.assert_array_equal(middle.grad, [6, 12])
    (middle * 1).sum().backward()
    np.testing.assert_array_equal(middle.grad, [7, 13])
    np.testing.assert_array_equal(x.grad, [21, 39])
    with pytest.raises(RuntimeError, match="retain_grad: the tensor must require a gradient"):
        fl.tensor([1.0]).retain_grad()


def test_a_retained_gradient_is_an_array_of_its_own():
    x = leaf(1, 2)
    middle = x * 1
    middle.retain_grad()
    middle.sum().backward()
    middle.grad[...] = 5
    assert x.grad.tolist() == [1, 1]


def test_retain_grad_keeps_no_tensor_alive():
    x = leaf(1, 2)
    middle = x * 3
    middle.retain_grad()
    y = (middle * middle).sum()
    del middle
    y.backward()
    np.testing.assert_array_equal(x.grad, [18, 36])


def test_gradients_of_numbers_are_tensors():
    """NumPy's products and sums of arrays without axes are no arrays."""
    x, y = leaf(2).sum().detach().requires_grad_(), leaf(3).sum().detach().requires_grad_()
    for times in (1, 2):
        middle = x * y
        middle.retain_grad()
        (middle * y).backward()
        assert all(type(t.grad) is fl.Tensor and t.grad.shape == () for t in (x, y, middle))
        assert (x.grad.item(), y.grad.item(), middle.grad.item()) == (9 * times, 12 * times, 3)
    assert type(x.grad_array()) is np.ndarray
    x.grad.zero_()
    assert x.grad.item() == 0
    assert type(autograd.grad(x * y, x)[0]) is fl.Tensor
