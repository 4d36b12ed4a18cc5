import threading

import numpy as np
import pytest

import fastlayers as fl
from fastlayers import Tensor, lazy, nn, ops
from fastlayers.nn import functional as F
from fastlayers.nn.fuse import chains
from fastlayers.ops import prepared

RNG = np.random.default_rng(0)
IMAGES = RNG.standard_normal((2, 3, 9, 8))
ROWS = RNG.standard_normal((6, 5))


@pytest.fixture(autouse=True)
def restored():
    yield
    fl.set_fusion_enabled(True)


@pytest.fixture
def calls(monkeypatch):
    """Names of the ops that run, with a sign for each thing they do besides."""
    names = []

    def spy(name):
        op = getattr(ops, name)

        def run(*args, **kwargs):
            besides = "+" * sum(kwargs.get(k) is not None for k in ("activation", "residual"))
            names.append(name + besides)
            return op(*args, **kwargs)

        monkeypatch.setattr(ops, name, run)

    for name in ("batch_norm_max_pool2d", "max_pool2d_forward", "relu"):
        spy(name)

    def spied_linear(x, w, b, relu, run=prepared.linear_rows):
        names.append("linear" + "+" * relu)
        return run(x, w, b, relu)

    monkeypatch.setattr(prepared, "linear_rows", spied_linear)

    def spy_on_forward(kind, name, besides):
        forward = kind.forward

        def run(self, *args):
            names.append(name + "+" * besides(self, *args))
            return forward(self, *args)

        monkeypatch.setattr(kind, "forward", run)

    spy_on_forward(ops.conv.Convolution, "conv2d", lambda self, x, w, b, relu: relu)
    spy_on_forward(
        ops.norm.normalisation.Normalisation,
        "batch_norm_apply",
        lambda self, residual, relu: (residual is not None) + relu,
    )
    spy_on_forward(
        ops.conv.pooled.PooledConvolution, "conv2d_max_pool2d", lambda self, *args: self.relu
    )
    return names


class Residual(nn.Module):
    """A block in the style of a user's own `forward`, with names that live on."""

    def __init__(self, after_norm):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 3, padding=1, dtype="f8"), norm2d(3)
        self.relu, self.after_norm = nn.ReLU(), after_norm

    def forward(self, x):
        out = self.conv(x)
        out = self.norm(out)
        out = out + x if self.after_norm else x + out
        out = self.relu(out)
        return out * 2


def norm2d(channels):
    layer = nn.BatchNorm2d(channels, dtype="f8")
    layer.weight.data[...] = RNG.uniform(-1, 2, channels)
    layer.bias.data[...] = RNG.uniform(-1, 1, channels)
    layer.running_mean[...] = RNG.uniform(-1, 1, channels)
    layer.running_var[...] = RNG.uniform(0.5, 2, channels)
    return layer


def conv(channels=4):
    return nn.Conv2d(3, channels, 3, padding=1, dtype="f8")


def sequential(*layers):
    return lambda: nn.Sequential(*(layer() for layer in layers))


def linear():
    return nn.Linear(5, 4, dtype="f8")


def pool():
    return nn.MaxPool2d(2)


def norm():
    return norm2d(4)


PATTERNS = {
    "conv": (sequential(conv), ["conv2d"]),
    "conv-relu": (sequential(conv, nn.ReLU), ["conv2d+"]),
    "conv-relu-pool": (sequential(conv, nn.ReLU, pool), ["conv2d_max_pool2d+"]),
    "conv-pool": (sequential(conv, pool), ["conv2d_max_pool2d"]),
    "conv-bn": (sequential(conv, norm), ["conv2d", "batch_norm_apply"]),
    "conv-bn-relu": (sequential(conv, norm, nn.ReLU), ["conv2d", "batch_norm_apply+"]),
    "conv-bn-relu-pool": (
        sequential(conv, norm, nn.ReLU, pool),
        ["conv2d", "batch_norm_max_pool2d+"],
    ),
    "bn-add-relu": (lambda: Residual(True), ["conv2d", "batch_norm_apply++"]),
    "add-bn-relu": (lambda: Residual(False), ["conv2d", "batch_norm_apply++"]),
    "linear-relu": (sequential(linear, nn.ReLU), ["linear+"]),
    "linear-relu-linear": (
        lambda: nn.Sequential(linear(), nn.ReLU(), nn.Linear(4, 3, dtype="f8")),
        ["linear+", "linear"],
    ),
}
FOLDED = {
    "conv-bn": ["conv2d"],
    "conv-bn-relu": ["conv2d+"],
    "conv-bn-relu-pool": ["conv2d_max_pool2d+"],
}


def outcome(model, data):
    """Output, gradients and buffers of a step."""
    state = {k: v.clone() for k, v in model.state_dict().items()}
    x = Tensor(data, True)
    y = model(x)
    (y * y).sum().backward()
    after = [y.array(), x.grad, *(p.grad for p in model.parameters())]
    after += [b.clone() for b in model.buffers()]
    model.load_state_dict(state)
    model.zero_grad()
    return after


def data_for(name):
    return ROWS if "linear" in name else IMAGES


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", PATTERNS)
def test_values_gradients_and_statistics_are_those_of_single_ops(name, training):
    model = PATTERNS[name][0]().train(training)
    fused = outcome(model, data_for(name))
    fl.set_fusion_enabled(False)
    for ours, single in zip(fused, outcome(model, data_for(name)), strict=True):
        np.testing.assert_allclose(ours, single, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", PATTERNS)
def test_ops_run_as_one(name, calls):
    make, expected = PATTERNS[name]
    make()(Tensor(data_for(name)))
    assert calls == expected


@pytest.mark.parametrize("name", FOLDED)
def test_evaluation_folds_the_norm_into_the_convolution(name, calls):
    model = PATTERNS[name][0]().eval()
    with fl.no_grad():
        folded = model(Tensor(IMAGES)).array()
    assert calls[0] == FOLDED[name][0] and "batch_norm_apply" not in "".join(calls)
    fl.set_fusion_enabled(False)
    np.testing.assert_allclose(folded, model(Tensor(IMAGES)).array(), rtol=1e-9, atol=1e-12)


def test_the_switch_runs_each_op_by_itself(calls):
    fl.set_fusion_enabled(False)
    sequential(conv, norm, nn.ReLU, pool)()(Tensor(IMAGES))
    assert calls == ["conv2d", "batch_norm_apply", "relu", "max_pool2d_forward"]


def test_outputs_between_that_are_held_have_their_values_and_gradients():
    layer, kept = conv(), []

    class Model(nn.Module):
        def forward(self, x):
            before = layer(x)
            after = F.relu(before)
            kept.extend([before, after])
            return F.max_pool2d(after, 2).sum() + before.sum()

    def run():
        kept.clear()
        x = Tensor(IMAGES, True)
        Model()(x).backward()
        return [x.grad, layer.weight.grad, *(t.array() for t in kept)]

    fused = run()
    layer.zero_grad()
    fl.set_fusion_enabled(False)
    for ours, single in zip(fused, run(), strict=True):
        np.testing.assert_allclose(ours, single, rtol=1e-12)


class Block(nn.Module):
    """A layer, and what a user's own `forward` does with it."""

    def __init__(self, layer, steps):
        super().__init__()
        self.layer, self.steps = layer, steps

    def forward(self, x):
        return self.steps(self.layer, x)


def held(output, steps):
    """Run steps while their input lives on."""
    result = steps(output)
    result.array()
    return result


BLOCKS = {
    "held-conv": (conv, lambda layer, x: held(layer(x), lambda y: F.max_pool2d(F.relu(y), 2))),
    "held-bn-add": (lambda: norm2d(3), lambda layer, x: held(layer(x), lambda y: y + x)),
    "held-bn-add-constant": (
        lambda: norm2d(3),
        lambda layer, x: held(layer(x), lambda y: y + fl.tensor(IMAGES)),
    ),
    "bn-add-constant": (lambda: norm2d(3), lambda layer, x: layer(x) + fl.tensor(IMAGES)),
    "bn-add-of-another-shape": (
        lambda: norm2d(3),
        lambda layer, x: layer(x) + fl.tensor(IMAGES[:, :1]),
    ),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_are_as_their_single_ops(name):
    make, steps = BLOCKS[name]
    model = Block(make(), steps)
    fused = outcome(model, IMAGES)
    fl.set_fusion_enabled(False)
    for ours, single in zip(fused, outcome(model, IMAGES), strict=True):
        np.testing.assert_allclose(ours, single, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("keep", [False, True])
def test_folded_norms_of_any_kind(keep, affine):
    norm = norm2d(4) if affine else nn.BatchNorm2d(4, affine=False, dtype="f8")
    steps = (lambda layer, x: held(layer(x), norm)) if keep else lambda layer, x: norm(layer(x))
    model = Block(conv(), steps)
    norm.eval()
    with fl.no_grad():
        folded = model(Tensor(IMAGES)).array()
        fl.set_fusion_enabled(False)
        np.testing.assert_allclose(folded, model(Tensor(IMAGES)).array(), rtol=1e-9, atol=1e-12)


def test_nothing_follows_what_has_run():
    assert chains.follow(Tensor(IMAGES), chains.RELU) is None


def test_functional_waits_only_for_memory_of_its_own(calls):
    weight = RNG.standard_normal((4, 3, 3, 3))
    F.relu(F.conv2d(Tensor(IMAGES), Tensor(weight)))
    assert calls == ["conv2d", "relu"]
    calls.clear()
    y = F.relu(F.conv2d(fl.tensor(IMAGES), fl.tensor(weight)))
    assert calls == [] and y.shape == (2, 4, 7, 6) and y.dtype == np.float64 and y.ndim == 4
    assert y.array().min() == 0 and calls == ["conv2d+"]


@pytest.mark.parametrize("change", ["input", "weight", "step", "load"])
def test_what_changes_after_the_call_does_not_change_the_output(change):
    x, w = fl.tensor(IMAGES), fl.tensor(RNG.standard_normal((4, 3, 3, 3)), requires_grad=True)
    expected = F.conv2d(x.numpy(), w.detach().numpy()).array()
    optimizer = fl.optim.SGD([w], lr=1.0)
    w.grad = np.ones(w.shape)
    y = F.conv2d(x, w)
    if change == "input":
        x.data[...] = 0
    elif change == "weight":
        w.data -= 1
    elif change == "step":
        optimizer.step()
    else:
        w.data = np.zeros(w.shape)
    np.testing.assert_array_equal(y.array(), expected)


def test_the_mode_is_that_of_the_call():
    x, w = fl.tensor(IMAGES), fl.tensor(np.ones((4, 3, 3, 3)), requires_grad=True)
    y = F.relu(F.conv2d(x, w))
    with fl.no_grad():
        assert y.requires_grad and not y.is_leaf
        assert y.array().shape == y.shape
        z = F.relu(F.conv2d(x, w))
    assert not z.requires_grad and z.is_leaf and z.array().shape == y.shape
    y.sum().backward()
    assert w.grad is not None


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda x: F.conv2d(x, fl.tensor(np.ones((4, 2, 3, 3)))), "expects 2 input channels"),
        (lambda x: F.conv2d(x, fl.tensor(np.ones((4, 3, 3, 3))), padding=-1), "padding"),
        (lambda x: F.linear(x, fl.tensor(np.ones((4, 3)))), "last dimension of 3"),
        (lambda x: F.max_pool2d(F.conv2d(x, fl.tensor(np.ones((4, 3, 3, 3)))), 20), "kernel_size"),
        (lambda x: F.batch_norm(x, None, None, fl.tensor(np.ones(4)), training=True), "weight"),
    ],
)
def test_errors_are_raised_by_the_call_itself(call, match):
    with pytest.raises(ValueError, match=match):
        call(fl.tensor(IMAGES))


def test_a_wrong_weight_leaves_the_running_statistics_alone():
    layer = norm2d(3)
    layer.weight = nn.Parameter(np.ones(4))
    before = layer.running_mean.clone()
    with pytest.raises(ValueError, match="weight must have shape"):
        layer(Tensor(IMAGES))
    np.testing.assert_array_equal(layer.running_mean, before)


def test_running_statistics_are_updated_by_the_call():
    x, mean, var = fl.tensor(IMAGES), np.zeros(3), np.ones(3)
    y = F.batch_norm(x, mean, var, training=True, momentum=1.0)
    np.testing.assert_allclose(mean, IMAGES.mean((0, 2, 3)))
    assert y.shape == IMAGES.shape


def test_an_error_in_forward_does_not_stop_later_calls():
    layer = conv()

    class Broken(nn.Module):
        def forward(self, x):
            layer(x)
            raise KeyError("broken")

    with pytest.raises(KeyError):
        Broken()(Tensor(IMAGES))
    np.testing.assert_array_equal(layer(Tensor(IMAGES)).array(), layer(Tensor(IMAGES)).array())


def test_threads_have_waiting_ops_of_their_own():
    model = sequential(conv, nn.ReLU)()
    expected, results = model(Tensor(IMAGES)).array(), []

    def run():
        results.append(model(Tensor(IMAGES)).array())

    threads = [threading.Thread(target=run) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    for y in results:
        np.testing.assert_array_equal(y, expected)


def test_residuals_that_share_a_gradient_get_arrays_of_their_own():
    left, right = (nn.Parameter(np.ones(IMAGES.shape)) for _ in range(2))
    norms = norm2d(3), norm2d(3)

    class Model(nn.Module):
        def forward(self, x):
            return (norms[0](x) + left) + (norms[1](x) + right)

    Model()(Tensor(IMAGES)).sum().backward()
    assert not np.shares_memory(left.grad, right.grad)


def test_the_list_of_waiting_outputs_does_not_grow():
    x, weight = fl.randn(1, 1, 3, 3), fl.randn(1, 1, 2, 2)
    for _ in range(300):
        F.relu(F.conv2d(x, weight)).tolist()
    assert len(lazy.state.waiting) <= 65
    y = F.relu(F.conv2d(x, weight))
    x.zero_()
    assert y.deferred is None


def test_what_an_error_kept_from_running_goes_on_waiting(monkeypatch):
    x, weight = fl.ones(1, 1, 3, 3), fl.ones(1, 1, 2, 2)
    first, second = F.conv2d(x, weight), F.conv2d(x, weight)

    def fail(*_):
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(type(first.deferred), "run", fail)
        with pytest.raises(MemoryError):
            x.zero_()
    x.zero_()
    assert (first == 4).all() and (second == 4).all()
