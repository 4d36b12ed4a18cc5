"""Changes in place of what waits for its calls, of leaves, and of their views."""

import copy
import gc
import operator
import pickle
import weakref

import numpy as np
import pytest

import fastlayers as fl
from fastlayers import nn
from fastlayers.nn import functional as F

RNG = np.random.default_rng(0)
IMAGES = RNG.standard_normal((2, 3, 6, 5)).astype(np.float32)


@pytest.fixture(autouse=True)
def fused():
    yield
    fl.set_fusion_enabled(True)


class Block(nn.Module):
    """A convolution and a norm, and what a user does with the output that waits."""

    def __init__(self, steps, norm=True):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3) if norm else nn.Identity()
        self.steps = steps

    def forward(self, x):
        return self.steps(self, self.norm(self.conv(x)), x)


def relu_(block, out, x):
    return F.relu(out, inplace=True)


def add_identity(block, out, x):
    out += x
    return nn.functional.relu(out, inplace=True)


def add_constant(block, out, x):
    out += 1.0
    return F.relu(out)


def held_before(block, out, x):
    """Another name of the same tensor sees what it has become."""
    same = out
    F.relu(out, inplace=True)
    assert same is out
    return same + out


def other_waits(block, out, x):
    """What was made of the output before is of its former values."""
    before = F.relu(out)
    out += x
    return before + F.max_pool2d(out, 3, 1, 1)


def pooled_before(block, out, x):
    pooled = F.max_pool2d(out, 2)
    F.relu(out, inplace=True)
    return pooled.sum() + (out * out).sum()


def copied_before(block, out, x):
    old = out.clone()
    out += x
    return old * 2 + F.relu(out, inplace=True)


def detached_after(block, out, x):
    seen = out.detach()
    F.relu(out, inplace=True)
    assert float(seen.min()) >= 0  # of the same memory
    return out * 1.0


def rows(block, out, x):
    out[0] = x[1]
    out[:, 1] += 2.0
    return F.relu(out, inplace=True)


STEPS = [
    relu_,
    add_identity,
    add_constant,
    held_before,
    other_waits,
    pooled_before,
    copied_before,
    detached_after,
    rows,
]


def outcome(block, training):
    state = {key: value.clone() for key, value in block.state_dict().items()}
    x = fl.tensor(IMAGES, requires_grad=True)
    y = block.train(training)(x)
    (y * y).sum().backward()
    found = [y, x.grad, *(p.grad for p in block.parameters()), *block.buffers()]
    found = [np.array(t.detach()) for t in found]
    block.load_state_dict(state)
    block.zero_grad()
    return found


@pytest.mark.parametrize("norm", [True, False], ids=["norm", "conv"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("steps", STEPS)
def test_of_outputs_that_wait(steps, training, norm):
    fl.manual_seed(0)
    block = Block(steps, norm)
    found = outcome(block, training)
    fl.set_fusion_enabled(False)
    single = outcome(block, training)
    np.testing.assert_array_equal(found[0], single[0])
    for one, other in zip(found, single, strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-5, atol=2e-5)


OUT_OF_PLACE = {
    relu_: lambda block, out, x: F.relu(out),
    add_identity: lambda block, out, x: F.relu(out + x),
    add_constant: lambda block, out, x: F.relu(out + 1.0),
}


@pytest.mark.parametrize("fusion", [True, False])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("steps", OUT_OF_PLACE)
def test_in_place_has_the_bits_of_out_of_place(steps, training, fusion):
    fl.set_fusion_enabled(fusion)
    fl.manual_seed(0)
    block = Block(steps)
    found = outcome(block, training)
    block.steps = OUT_OF_PLACE[steps]
    for one, other in zip(found, outcome(block, training), strict=True):
        np.testing.assert_array_equal(one, other)


def leaf(*values):
    return fl.tensor(np.array(values, np.float64), requires_grad=True)


LEAF_CHANGES = {
    "[...] =": lambda t: operator.setitem(t, ..., 1.0),
    "[0] =": lambda t: operator.setitem(t, 0, 1.0),
    "+=": lambda t: operator.iadd(t, 1.0),
    "*=": lambda t: operator.imul(t, 2.0),
    "zero_": lambda t: t.zero_(),
    "relu_": lambda t: F.relu(t, inplace=True),
    "a view +=": lambda t: operator.iadd(t[:1], 1.0),
    "a view of a view": lambda t: t[:].view(-1)[0:1].fill_(1.0),
}


@pytest.mark.parametrize("change", LEAF_CHANGES.values(), ids=LEAF_CHANGES)
def test_a_leaf_that_requires_a_gradient(change):
    x = leaf(-1, 2)
    with pytest.raises(RuntimeError, match="a (view of a )?leaf (Variable )?that requires grad"):
        change(x)
    assert x.tolist() == [-1, 2] and x.is_leaf
    for target in (x.data, x.detach()):
        change(target)
    assert x.tolist() != [-1, 2] and x.is_leaf and x.requires_grad
    x = leaf(-1, 2)
    with fl.no_grad():
        change(x)
    assert x.tolist() != [-1, 2] and x.is_leaf and x.requires_grad
    (x * 3).sum().backward()
    assert x.grad.tolist() == [3, 3]


def test_a_changed_result_has_the_gradient_of_its_last_values():
    x = leaf(1, 2, 3)
    y = x * 2
    first = y + 0.0
    y[1] = 7.0
    y *= x
    (first + 10 * y).sum().backward()
    np.testing.assert_array_equal(y.detach(), [2, 14, 18])
    np.testing.assert_array_equal(x.grad, [2 + 10 * 4, 2 + 10 * 7, 2 + 10 * 12])


def test_changes_through_a_view_reach_the_whole_and_its_other_views():
    x, z = leaf(1, 2, 3, 4), leaf(5, 6)
    y = x * 1.0
    left, right, middle = y[:2], y[2:], y[1:3]
    left *= z
    np.testing.assert_array_equal(y.detach(), [5, 12, 3, 4])
    np.testing.assert_array_equal(middle.detach(), [12, 3])
    (y.sum() + 10 * middle.sum() + 100 * right.sum()).backward()
    np.testing.assert_array_equal(x.grad, [5, 66, 111, 101])
    np.testing.assert_array_equal(z.grad, [1, 22])


def test_a_change_of_a_constant_makes_it_part_of_the_graph():
    x, total = leaf(1, 2), fl.zeros(2, dtype=fl.float64)
    for _ in range(3):
        total += x * x
    assert total.requires_grad and not total.is_leaf
    total.sum().backward()
    assert x.grad.tolist() == [6, 12]


def test_a_change_of_another_shape_or_kind_is_refused():
    y = leaf(1, 2) * 1.0
    with pytest.raises(RuntimeError, match="doesn't match the broadcast shape"):
        y += np.ones((3, 2))
    counts = fl.tensor([1, 2])
    with pytest.raises(RuntimeError, match="can't be cast"):
        counts += 0.5
    wide = fl.zeros(1).expand(3)
    with pytest.raises(RuntimeError, match="more than one element"):
        wide += 1
    assert y.tolist() == [1, 2] and counts.tolist() == [1, 2] and wide.tolist() == [0, 0, 0]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda t: pickle.loads(pickle.dumps(t))])
def test_copies_count_changes_by_themselves(copied):
    p = nn.Parameter(np.ones(3))
    y = (p * p).sum()
    other = copied(p)
    assert type(other) is nn.Parameter and other.requires_grad and other.is_leaf
    other.data += 1
    y.backward()
    assert p.grad.tolist() == [2, 2, 2] and other.tolist() == [2, 2, 2]


def test_axes_changed_in_place_again_and_again_keep_nothing():
    x = fl.zeros(3)
    for _ in range(2000):  # a chain of as many views could not be followed
        x.unsqueeze_(0).squeeze_(0)
    assert x.base is None
    x[1] += 1
    assert x.tolist() == [0, 1, 0]


def test_tensors_die_with_their_last_name():
    """There are no cycles, which would keep memory until the garbage collector finds them."""
    layer = nn.Conv2d(1, 2, 3)
    gc.collect()
    gc.disable()
    try:
        x = layer(fl.randn(2, 1, 5, 5))
        x.retain_grad()
        row, flat = x[:, 0], x.view(2, -1)
        row.mul_(2)
        flat += 1
        x[0] = row[1].detach().clone().sum()
        x += x.detach().clone()
        (x.sum() + row.sum() + flat.sum()).backward()
        dead = [weakref.ref(t) for t in (x, row, flat)]
        nodes = [weakref.ref(t.grad_fn) for t in (x, row, flat)]
        del x, row, flat
        assert [found() for found in dead + nodes] == [None] * 6
    finally:
        gc.enable()
