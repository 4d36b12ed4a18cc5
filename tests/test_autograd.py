import gc
import threading
import weakref

import numpy as np
import pytest

import fastlayers as fl
from fastlayers import Tensor, autograd, nn
from fastlayers.autograd import is_grad_enabled, record, tape
from fastlayers.func import functional_call
from fastlayers.nn import functional as F
from fastlayers.testing import gradcheck


def leaf(*shape, seed=0, dtype=np.float64):
    """Draw values in [0.5, 2), away from the kinks and poles of the ops."""
    return Tensor(np.random.default_rng(seed).uniform(0.5, 2, shape).astype(dtype), True)


def channels_last(*shape):
    n, c, h, w = shape
    return Tensor(leaf(n, h, w, c).array().transpose(0, 3, 1, 2), True)


def test_ndarray_is_wrapped_without_copy():
    data = np.zeros(3)
    t = Tensor(data)
    assert t.array() is data and t.numpy() is data and t.detach().array() is data
    assert Tensor(t).array() is data
    assert not np.shares_memory(fl.tensor(data).array(), data)


@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        (1.5, np.float32),
        ([1.0, 2], np.float32),
        (np.array([1, 2]), np.int64),
        (np.float64(1), np.float64),
        (np.zeros(2, np.float16), np.float16),
    ],
)
@pytest.mark.parametrize("make", [Tensor, fl.tensor])
def test_dtype(make, value, dtype):
    assert make(value).dtype == dtype


def test_a_list_of_integers():
    """As PyTorch has it: its class makes floats of lists, its function does not."""
    assert Tensor([1, 2]).dtype == Tensor([[1], [2]], True).dtype == np.float32
    assert fl.tensor([1, 2]).dtype == np.int64


@pytest.mark.parametrize("value", [1, [1, 2], True, np.zeros(2, np.uint8)])
def test_integers_have_no_gradient(value):
    with pytest.raises(RuntimeError, match="tensor: only .* floating point .* can require grad"):
        fl.tensor(value, requires_grad=True)
    with pytest.raises(TypeError, match="floating point for requires_grad"):
        Tensor(np.array(value), requires_grad=True)


BINARY = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
}


@pytest.mark.parametrize("op", BINARY.values(), ids=BINARY)
@pytest.mark.parametrize(
    ("left", "right"),
    [((), ()), ((3,), (3,)), ((2, 3), (3,)), ((2, 1), (1, 3)), ((), (2, 2)), ((2, 1, 2), (3, 1))],
)
def test_broadcasting(op, left, right):
    gradcheck(op, [leaf(*left), leaf(*right, seed=1)])


@pytest.mark.parametrize("op", BINARY.values(), ids=BINARY)
@pytest.mark.parametrize(
    "other", [2, 2.5, np.float64(3), leaf(2, 3, seed=1).array(), leaf(3).array()]
)
def test_constants_on_either_side(op, other):
    x = leaf(2, 3)
    for function in (lambda t: op(t, other), lambda t: op(other, t)):
        assert isinstance(function(x), Tensor)
        gradcheck(function, [x])
    np.testing.assert_array_equal(op(other, x).array(), op(other, x.array()))


@pytest.mark.parametrize("op", BINARY.values(), ids=BINARY)
def test_python_numbers_keep_float32(op):
    x = leaf(2, dtype=np.float32)
    for result in (op(x, 2.0), op(2, x), -x):
        assert result.dtype == np.float32


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ((2, 3), (3, 4)),
        ((3,), (3,)),
        ((3,), (3, 2)),
        ((2, 3), (3,)),
        ((4, 2, 3), (3, 2)),
        ((2, 3), (4, 3, 1)),
        ((4, 1, 2, 3), (2, 3, 2)),
        ((3,), (2, 3, 4)),
        ((2, 4, 3), (3,)),
    ],
)
def test_matmul(left, right):
    a, b = leaf(*left), leaf(*right, seed=1)
    gradcheck(lambda a, b: a @ b, [a, b])
    gradcheck(lambda b: a.array() @ b, [b])
    gradcheck(lambda a: a @ b.array(), [a])


@pytest.mark.parametrize("dim", [None, 0, -1, (0, 2), (1,), (0, 1, 2)])
@pytest.mark.parametrize("keepdim", [False, True])
@pytest.mark.parametrize("name", ["sum", "mean"])
def test_reductions(name, dim, keepdim):
    x = leaf(2, 3, 4)
    y = getattr(x, name)(dim, keepdim=keepdim)
    np.testing.assert_allclose(y.array(), getattr(np, name)(x.array(), axis=dim, keepdims=keepdim))
    assert y.shape == np.sum(x.array(), axis=dim, keepdims=keepdim).shape
    gradcheck(lambda x: getattr(x, name)(dim, keepdim), [x])


RESHAPES = {
    "reshape": lambda x: x.reshape(4, -1),
    "reshape to a tuple": lambda x: x.reshape((3, 2, 20)),
    "view": lambda x: x.view(-1, 15),
    "flatten": lambda x: x.flatten(),
    "flatten from 1": lambda x: x.flatten(1),
    "flatten between": lambda x: x.flatten(1, -2),
}


@pytest.mark.parametrize("reshape", RESHAPES.values(), ids=RESHAPES)
@pytest.mark.parametrize("make", [leaf, channels_last])
def test_reshapes_keep_the_order_of_nchw(reshape, make):
    x = make(2, 3, 4, 5)
    y = reshape(x)
    np.testing.assert_array_equal(y.array().ravel(), np.array(x.array(), order="C").ravel())
    gradcheck(reshape, [x])


def test_flatten_shapes_and_errors():
    x = leaf(2, 3, 4)
    assert [x.flatten(*d).shape for d in [(), (1,), (0, 1)]] == [(24,), (2, 12), (6, 4)]
    assert leaf().flatten().shape == (1,)
    for dims in [(3,), (0, -4), (2, 1)]:
        with pytest.raises((IndexError, RuntimeError), match="flatten: "):
            x.flatten(*dims)


@pytest.mark.parametrize(
    "index",
    [
        1,
        (0, -1),
        slice(None, None, 2),
        (..., 0),
        None,
        [0, 2, 0, 0],
        ([0, 0], [1, 1]),
        np.array([True, False, True]),
        np.array([[0, 1], [1, 1]]),
        Tensor(np.array([2, 2])),
    ],
    ids=repr,
)
def test_getitem(index):
    gradcheck(lambda x: x[index], [leaf(3, 4)])


def test_branches_join():
    weight = leaf(3, 3, seed=1)

    def residual(x, w):
        return F.relu(x @ w - 3 + x)

    def diamond(x, w):
        y = x * w
        return (y + 1) * F.tanh(y) / y

    for function in (residual, diamond, lambda x, w: x * x + x, lambda x, w: x - x * w):
        gradcheck(function, [leaf(3, 3), weight])


def test_module_called_several_times():
    class Repeated(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x):
            return self.layer(self.layer(x) * self.layer(x + 1))

    module = Repeated()

    def function(x, weight, bias):
        return functional_call(module, {"layer.weight": weight, "layer.bias": bias}, x)

    gradcheck(function, [leaf(2, 3), leaf(3, 3, seed=1), leaf(3, seed=2)])


def test_second_backward_accumulates():
    x = leaf(3)
    (x * 2).sum().backward()
    first = x.grad
    (x * 3).sum().backward()
    np.testing.assert_array_equal(x.grad, [5, 5, 5])
    assert x.grad is first


def test_freed_graph():
    y = (leaf(3) * 2).sum()
    y.backward()
    with pytest.raises(RuntimeError, match="retain_graph"):
        y.backward()


def test_retained_graph():
    x = leaf(3)
    y = (x * x).sum()
    for times in (1, 2):
        y.backward(retain_graph=True)
        np.testing.assert_allclose(x.grad, times * 2 * x.array())
    y.backward()
    with pytest.raises(RuntimeError, match="retain_graph"):
        y.backward()


def test_backward_arguments():
    x = leaf(2, 3)
    with pytest.raises(RuntimeError, match="gradient"):
        (x * 2).backward()
    for gradient in (1.0, np.ones(3), np.ones((3, 2))):
        with pytest.raises(ValueError, match=r"gradient must have shape \(2, 3\)"):
            (x * 2).backward(gradient)
    with pytest.raises(RuntimeError, match="must require a gradient"):
        Tensor(1.0).backward()
    assert x.grad is None
    (x * 2).backward(np.arange(6).reshape(2, 3))
    np.testing.assert_array_equal(x.grad, 2 * np.arange(6).reshape(2, 3))


def test_backward_of_a_leaf():
    x, gradient = leaf(2), np.array([3.0, 4])
    x.backward(gradient)
    gradient[0] = 0
    np.testing.assert_array_equal(x.grad, [3, 4])


@pytest.mark.parametrize(
    "function",
    [
        lambda x, y: x + y,
        lambda x, y: (x + y) + (x + y),
        lambda x, y: x.reshape(3, 2).reshape(2, 3) + y,
        lambda x, y: (x + y).flatten(),
        lambda x, y: (x + 1.0) + (y + 1.0),
    ],
)
def test_gradients_share_no_memory(function):
    x, y = leaf(2, 3), leaf(2, 3)
    out = function(x, y)
    seed = np.ones(out.shape)
    out.backward(seed)
    assert not np.may_share_memory(x.grad, y.grad)
    assert not np.may_share_memory(x.grad, seed)


def test_gradients_of_a_recorded_op_share_no_memory():
    x, y = leaf(3), leaf(3)
    record(2 * (x.array() + y.array()), (x, y), lambda dy: (2 * dy,) * 2).sum().backward()
    np.testing.assert_array_equal([x.grad, y.grad], np.full((2, 3), 2))
    assert not np.may_share_memory(x.grad, y.grad)


def test_gradients_have_the_dtype_of_their_leaf():
    x = leaf(3, dtype=np.float32)
    (x * np.ones(3) + leaf(3)).sum().backward()
    assert x.grad.dtype == np.float32


def test_no_grad():
    x = leaf(2)
    with fl.no_grad():
        assert not is_grad_enabled()
        with fl.no_grad():
            pass
        assert not is_grad_enabled()
        y = x * 2
    assert is_grad_enabled()
    assert not y.requires_grad and y.is_leaf
    with pytest.raises(ZeroDivisionError), fl.no_grad():
        _ = 1 / 0
    assert is_grad_enabled() and (x * 2).requires_grad


def test_no_grad_decorates_and_recurses():
    @fl.no_grad()
    def count(n):
        assert not is_grad_enabled()
        return 1 + count(n - 1) if n else 0

    assert count(3) == 3
    assert is_grad_enabled()


def test_no_grad_is_per_thread():
    seen = []
    with fl.no_grad():
        thread = threading.Thread(target=lambda: seen.append(is_grad_enabled()))
        thread.start()
        thread.join()
    assert seen == [True]


def test_threads_share_a_no_grad_decorator():
    entered, left, after = threading.Event(), threading.Event(), []

    @fl.no_grad()
    def call(function):
        function()

    def inner():
        with fl.no_grad():
            call(lambda: (entered.set(), left.wait(5)))

    def outer():
        call(lambda: (threads[1].start(), entered.wait(5)))
        after.append(is_grad_enabled())  # while the other thread is still inside
        left.set()

    threads = [threading.Thread(target=outer), threading.Thread(target=inner)]
    threads[0].start()
    for thread in threads:
        thread.join()
    assert after == [True]


def test_leaves_and_detach():
    x = leaf(2)
    y = x * 2
    assert x.is_leaf and not y.is_leaf and Tensor(1.0).is_leaf
    d = y.detach()
    assert d.is_leaf and not d.requires_grad and d.array() is y.array()
    (d * x).sum().backward()
    np.testing.assert_allclose(x.grad, 2 * x.array())
    assert y.grad is None


def test_constants_get_no_gradient():
    x, c = leaf(2), Tensor(np.ones(2))
    (x * c).sum().backward()
    assert c.grad is None and not (c * 2).requires_grad


def test_deep_chains():
    x = y = leaf()
    for _ in range(5000):
        y = y + 1.0
    y.backward()
    assert isinstance(x.grad, Tensor) and x.grad == 1
    for _ in range(5000):  # dropped without backward
        y = y + x
    del y


@pytest.mark.parametrize("backward", [False, True])
def test_memory_is_freed_with_the_loss(backward):
    x = leaf(3)
    middle = x * 2
    alive, array = weakref.ref(middle), weakref.ref(middle.array())
    gc.disable()
    try:
        loss = (middle * middle).sum()
        del middle
        assert alive() is None  # the tape holds no tensor that an op made,
        assert array() is not None  # but the values that it needs
        if backward:
            loss.backward()
        else:
            del loss
        assert array() is None
    finally:
        gc.enable()


def test_argmax():
    x = Tensor(np.array([[1, 5, 5], [9, 0, 2.0]]))
    assert x.argmax().item() == 3
    np.testing.assert_array_equal(x.argmax(1).array(), [1, 0])
    assert x.argmax(dim=0, keepdim=True).shape == (1, 3)


def test_comparisons():
    labels = Tensor(np.array([1, 2, 3]))
    np.testing.assert_array_equal((labels == np.array([1, 0, 3])).array(), [True, False, True])
    np.testing.assert_array_equal((labels != Tensor([1, 0, 3])).array(), [False, True, False])
    assert (labels == 2).sum().item() == 1
    assert len({labels, labels}) == 1


def test_python_protocols():
    x = Tensor([[1.0, 2], [3, 4]])
    assert len(x) == 2 and x.size() == (2, 2) and x.size(1) == 2
    assert (x.dim(), x.numel(), x.ndim) == (2, 4, 2)
    assert x.tolist() == [[1, 2], [3, 4]]
    one = Tensor([2.5])
    assert one.item() == 2.5 and bool(one) and not Tensor(0.0)
    assert float(Tensor(2.5)) == 2.5 and int(Tensor(2.5)) == 2
    for ambiguous in (bool, lambda t: t.item()):
        with pytest.raises(RuntimeError, match="must have one element"):
            ambiguous(x)
    with pytest.raises(TypeError):
        len(Tensor(1.0))


def test_repr():
    assert repr(Tensor([1.0, 2])) == "tensor([1., 2.])"
    assert repr(Tensor([1.5], requires_grad=True)) == "tensor([1.5000], requires_grad=True)"
    assert repr(nn.Parameter([1.0])).startswith("Parameter containing:\ntensor([1.]")


def test_conversion_to_arrays():
    x = leaf(2, 3)
    for convert in (np.asarray, np.array, lambda t: t.numpy(), lambda t: t.__array__()):
        with pytest.raises(RuntimeError, match=r"use tensor\.detach\(\)\.numpy\(\)"):
            convert(x)
    assert x.numpy(force=True) is x.array()
    x = x.detach()
    assert np.asarray(x) is x.array() or np.shares_memory(np.asarray(x), x.array())
    assert not np.shares_memory(np.array(x), x.array())
    assert np.asarray(x, np.float32).dtype == np.float32
    np.testing.assert_allclose(np.exp(np.asarray(x)), np.exp(x.array()))


def test_to():
    x = leaf(2)
    assert x.to("cpu") is x
    assert x.to(np.float32).dtype == np.float32
    with pytest.raises(RuntimeError, match="to: device must be 'cpu', .* got 'cuda:0'"):
        x.to("cuda:0")


def test_freed_graph_changes_no_gradient():
    x, w = leaf(), leaf()
    shared = x * 2
    first, second = (shared * w).sum(), (shared * w).sum()
    first.backward()
    before = w.grad.clone()
    with pytest.raises(RuntimeError, match="retain_graph"):
        second.backward()
    assert np.array_equal(w.grad, before)


def test_quotients_of_integers_are_float32():
    for value in (Tensor([1, 2]) / 2, Tensor([1, 2]) + 2.5, 1 / Tensor([1, 2])):
        assert value.dtype == np.float32


@pytest.mark.parametrize("x", [leaf(2, 3), F.linear(leaf(2, 3), leaf(3, 3))])
def test_a_gradient_of_another_shape_is_refused(x):
    y = record(x.array().copy(), (x,), lambda dy: (dy[:, :1],))
    with pytest.raises(ValueError, match="an op's gradient must have its input's shape"):
        y.sum().backward()


class Heard:
    """A listener that notes what it is told."""

    def __init__(self, wanted=True):
        self.wanted, self.leaves, self.told, self.ends = wanted, None, [], 0

    def begin(self, leaves):
        self.leaves = set(leaves)
        return self.wanted

    def ready(self, leaf, gradient):
        self.told.append((leaf, gradient.copy()))
        assert leaf.grad is None

    def finish(self):
        self.ends += 1


def test_listeners_are_told_of_complete_gradients():
    a, b, c = (fl.Tensor(np.full(2, v, np.float32), requires_grad=True) for v in (2, 3, 5))
    heard, deaf = Heard(), Heard(wanted=False)
    autograd.listen(heard)
    autograd.listen(deaf)
    y = (a * b) * c + a
    y.sum().backward()
    assert heard.leaves == deaf.leaves == {id(a), id(b), id(c)}
    assert not deaf.told
    assert (heard.ends, deaf.ends) == (1, 0)
    assert heard.told[0][0] is c  # the last layer's first
    assert {id(leaf) for leaf, _ in heard.told} == heard.leaves
    assert len(heard.told) == 3
    for leaf, gradient in heard.told:
        np.testing.assert_array_equal(gradient, leaf.grad)
    np.testing.assert_array_equal(a.grad, 16)  # of two uses
    known = len(tape._listeners)
    del heard, deaf
    assert len(tape._listeners) == known - 2


def test_leaves_without_a_gradient_are_not_told_of():
    a = fl.Tensor(np.ones(2, np.float32), requires_grad=True)
    b = fl.Tensor(np.ones(2, np.float32), requires_grad=True)
    heard = Heard()
    autograd.listen(heard)
    y = autograd.record(a.array() + 1, (a, b), lambda dy: (dy, None))
    y.sum().backward()
    assert [leaf for leaf, _ in heard.told] == [a]
    assert b.grad is None
