"""`SyncBatchNorm` on threads that are ranks; `tests/distributed` has real ones."""

import copy
import subprocess
import sys
import threading

import numpy as np
import pytest
from cases import DTYPES

import fastlayers as fl
from fastlayers import distributed, nn
from fastlayers.distributed import SyncBatchNorm, convert_sync_batchnorm
from fastlayers.distributed import batchnorm as home
from fastlayers.nn import functional as F
from fastlayers.runtime import backend
from fastlayers.vision import models

# Samples of each rank: all alike, very unlike, one and none.
PARTS = [(4, 4), (9, 2, 1), (5, 0, 1, 7), (1, 1, 1)]
BOUNDS = {np.float32: 1e-5, np.float64: 1e-10}


class Channel:
    """Sums the arrays of threads, in the order of their ranks."""

    def __init__(self, number):
        self.rank, self.arrays, self.sums = threading.local(), [None] * number, 0
        self.barrier = threading.Barrier(number, timeout=60)

    def sum(self, array):
        self.arrays[self.rank.number] = array.copy()
        self.sums += self.rank.number == 0
        self.barrier.wait()
        array[...] = sum(self.arrays[1:], self.arrays[0])
        self.barrier.wait()


@pytest.fixture
def ranks(monkeypatch):
    """``ranks(number, function)``: what ``function(rank)`` gives on each, and how many sums."""

    def run(number, function):
        channel, results = Channel(number), [None] * number

        def work(rank):
            channel.rank.number = rank
            try:
                results[rank] = function(rank)
            except Exception as error:
                results[rank] = error
                channel.barrier.abort()

        threads = [threading.Thread(target=work, args=(rank,)) for rank in range(number)]
        with monkeypatch.context() as patch:
            patch.setattr(home, "world_size", lambda: number)
            patch.setattr(home, "_channel", lambda: channel)
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        for result in results:
            if isinstance(result, Exception):
                raise result
        return results, channel.sums

    return run


class Chain(nn.Module):
    """A normalisation and what may run as one with it."""

    STEPS = ("", "relu", "add", "add relu", "pool", "relu pool", "relu overlapping")

    def __init__(self, norm, steps):
        super().__init__()
        self.norm, self.steps = norm, steps.split()

    def forward(self, x, other):
        x = self.norm(x)
        for step in self.steps:
            if step == "add":
                x = x + other
            elif step == "relu":
                x = F.relu(x)
            else:
                x = F.max_pool2d(x, *((2,) if step == "pool" else (3, 1)))
        return x


def step(kind, steps, arrays, dtype, momentum):
    """One step of training: everything that it gives, by name; gradients are of a mean."""
    x, other = (fl.Tensor(a.astype(dtype), True) for a in arrays[:2])
    channels = x.shape[1]
    norm = kind(channels, momentum=momentum, dtype=dtype)
    norm.weight.data[...] = np.linspace(-1, 2, channels)
    norm.bias.data[...] = np.linspace(1, -1, channels)
    y = Chain(norm, steps)(x, other)
    y.backward((arrays[2][tuple(map(slice, y.shape))] / max(1, len(x.array()))).astype(dtype))
    given = {"y": y.array(), "dx": x.grad} | ({"dother": other.grad} if "add" in steps else {})
    summed = {"dweight": norm.weight.grad, "dbias": norm.bias.grad}
    return given, summed, {"mean": norm.running_mean, "var": norm.running_var}


def compare(ranks, shape, parts, dtype, steps="", momentum=0.1):
    """Assert that ranks with parts of a batch, and one process with all of it, give the same."""
    rng, samples = np.random.default_rng(0), sum(parts)
    arrays = [rng.standard_normal((samples, *shape)) for _ in range(3)]
    alone = nn.BatchNorm1d if len(shape) < 3 else nn.BatchNorm2d
    given, summed, running = step(alone, steps, arrays, dtype, momentum)
    cuts = np.cumsum(parts)[:-1]
    own = list(zip(*(np.split(a, cuts) for a in arrays), strict=True))
    results, sums = ranks(
        len(parts), lambda rank: step(SyncBatchNorm, steps, own[rank], dtype, momentum)
    )
    assert sums == 3  # two of a forward pass, one of a backward pass
    shares = np.array(parts) / samples

    def close(name, value, expected):
        assert value.dtype == dtype
        scale = max(np.abs(expected).max(), 1e-3)
        np.testing.assert_allclose(value / scale, expected / scale, 0, BOUNDS[dtype], err_msg=name)

    for name, expected in given.items():
        weights = np.ones(len(parts)) if name == "y" else shares
        values = [r[0][name] * dtype(w) for r, w in zip(results, weights, strict=True)]
        close(name, np.concatenate(values), expected)
    for name, expected in summed.items():
        values = [r[1][name] * dtype(w) for r, w in zip(results, shares, strict=True)]
        close(name, sum(values), expected)
    for name, expected in running.items():
        close(name, results[0][2][name], expected)
        for result in results:  # to the bit
            assert result[2][name].numpy().tobytes() == results[0][2][name].numpy().tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("parts", PARTS, ids=str)
@pytest.mark.parametrize("shape", [(5,), (3, 4), (6, 4, 6), (16, 8, 8)], ids=str)
def test_parts_give_what_the_whole_batch_gives(ranks, shape, parts, dtype):
    compare(ranks, shape, parts, dtype)


@pytest.mark.parametrize("numpy", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("steps", Chain.STEPS)
def test_with_what_follows(ranks, monkeypatch, steps, dtype, numpy):
    if numpy:
        monkeypatch.setattr(backend, "NUMPY", True)
    for fused in (True, False):
        fl.set_fusion_enabled(fused)
        try:
            compare(ranks, (6, 6, 8), (5, 0, 1, 7), dtype, steps)
        finally:
            fl.set_fusion_enabled(True)


@pytest.mark.parametrize("momentum", [0.7, 1.0, None])
def test_momentum(ranks, momentum):
    compare(ranks, (3, 4), (5, 0, 1, 7), np.float64, momentum=momentum)


@pytest.mark.parametrize("start", [10.0, 1e4])
def test_means_far_larger_than_the_deviation(ranks, start):
    """In float32 ranks are no further from the truth than the layer of one process."""
    arrays = np.random.default_rng(0).standard_normal((3, 12, 16, 8, 8)).astype(np.float32)
    arrays[0] += np.float32(start)
    own = list(zip(*(np.split(a, (9, 11)) for a in arrays), strict=True))
    exact, _, running = step(nn.BatchNorm2d, "", arrays, np.float64, 1.0)
    alone, _, rounded = step(nn.BatchNorm2d, "", arrays, np.float32, 1.0)
    results, _ = ranks(3, lambda rank: step(SyncBatchNorm, "", own[rank], np.float32, 1.0))
    shares = np.array([9, 2, 1], np.float32) / 12

    def error(value, expected):
        return np.abs(value - expected).max() / np.abs(expected).max()

    for name, weights in (("y", [1, 1, 1]), ("dx", shares)):
        value = np.concatenate([r[0][name] * w for r, w in zip(results, weights, strict=True)])
        assert error(value, exact[name]) <= 1.1 * error(alone[name], exact[name]) + 1e-6
    for name, expected in running.items():
        assert error(results[0][2][name], expected) <= error(rounded[name], expected) + 1e-7


def test_variance_of_ranks_that_are_far_apart(ranks):
    """Whose own variances say nothing of that of all."""
    x = np.random.default_rng(0).standard_normal((3, 50, 4)) + 1e6 * np.arange(3)[:, None, None]
    norm, wide = nn.BatchNorm1d(4, momentum=1.0, dtype=np.float64), x.reshape(150, 4)
    norms = [convert_sync_batchnorm(copy.deepcopy(norm)) for _ in x]
    ranks(3, lambda rank: norms[rank](x[rank]))[0]
    for own in norms:
        np.testing.assert_allclose(own.running_mean, wide.mean(0), 1e-14)
        np.testing.assert_allclose(own.running_var, wide.var(0, ddof=1), 1e-13)


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("parts", [(1, 0), (0, 0, 0)])
def test_too_few_values_are_an_error_of_all_ranks(ranks, parts, momentum):
    def run(rank):
        norm = SyncBatchNorm(3, momentum=momentum)
        with pytest.raises(ValueError, match=rf"^batch_norm: input .*got {sum(parts)} in all"):
            norm(np.ones((parts[rank], 3), np.float32))
        assert norm.num_batches_tracked == 0
        np.testing.assert_array_equal([norm.running_mean, norm.running_var], [[0] * 3, [1] * 3])

    ranks(len(parts), run)[0]


def test_nan_stays_in_its_channel_and_reaches_all_ranks(ranks):
    x = np.random.default_rng(0).standard_normal((2, 4, 3)).astype(np.float32)
    x[1, 2, 1], x[0, 0, 2] = np.nan, np.inf
    for y in ranks(2, lambda rank: SyncBatchNorm(3)(x[rank]).array())[0]:
        np.testing.assert_array_equal(np.isnan(y), np.tile([False, True, True], (4, 1)))


@pytest.mark.parametrize("frozen", [True, False])
def test_sums_over_ranks_only_where_they_are_needed(ranks, frozen):
    x = np.random.default_rng(0).standard_normal((2, 4, 3)).astype(np.float32)

    def run(rank):
        norm = SyncBatchNorm(3).requires_grad_(not frozen)
        norm(x[rank])
        if not frozen:  # the input needs no gradient
            norm(x[rank]).sum().backward()
        norm.eval()(x[rank])
        return norm

    _, sums = ranks(2, run)
    assert sums == (2 if frozen else 4)


def test_running_statistics_that_are_views_are_updated(ranks):
    x = np.random.default_rng(0).standard_normal((2, 5, 3)).astype(np.float32)

    def run(rank):
        norm, memory = SyncBatchNorm(3, momentum=1.0), np.zeros((2, 6), np.float32)
        norm.running_mean, norm.running_var = memory[0, ::2], memory[1, ::-2]
        norm(x[rank])
        return memory

    for memory in ranks(2, run)[0]:
        np.testing.assert_allclose(memory[0, ::2], x.mean((0, 1)), 1e-5)
        np.testing.assert_allclose(memory[1, ::-2], x.var((0, 1), ddof=1), 1e-5)


def test_without_running_statistics_evaluation_is_of_the_own_batch(ranks):
    x = np.random.default_rng(0).standard_normal((2, 5, 3)).astype(np.float32)
    options = {"track_running_stats": False, "affine": False}

    def run(rank):
        norm = SyncBatchNorm(3, **options)
        return norm(x[rank]).array(), norm.eval()(x[rank]).array()

    results, sums = ranks(2, run)
    whole = nn.BatchNorm1d(3, **options)(x.reshape(10, 3)).array().reshape(x.shape)
    for rank, (trained, evaluated) in enumerate(results):
        np.testing.assert_allclose(trained, whole[rank], 1e-5, 1e-6)
        np.testing.assert_array_equal(evaluated, nn.BatchNorm1d(3, **options)(x[rank]).array())
    assert sums == 2


@pytest.mark.parametrize(
    ("alone", "shape"),
    [(nn.BatchNorm1d, (5,)), (nn.BatchNorm1d, (3, 4)), (nn.BatchNorm2d, (6, 4, 6))],
)
def test_one_rank_is_plain_batch_norm(alone, shape):
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal((7, *shape)) for _ in range(3)]
    results = [step(kind, "relu", arrays, np.float32, 0.1) for kind in (alone, SyncBatchNorm)]
    for expected, value in zip(*results, strict=True):
        for name in expected:
            np.testing.assert_array_equal(value[name], expected[name])


@pytest.mark.parametrize("shape", [(4, 2), (4,), (4, 3, 2, 2, 2)])
def test_wrong_shapes(shape):
    with pytest.raises(ValueError, match=r"^SyncBatchNorm: input must have shape \(N, C\), .* got"):
        SyncBatchNorm(3)(np.ones(shape, np.float32))


def test_conversion_keeps_what_a_layer_holds():
    norm = nn.BatchNorm2d(3, 1e-3, None, dtype=np.float64).eval()
    norm.weight.requires_grad = False
    new = nn.SyncBatchNorm.convert_sync_batchnorm(norm)
    assert type(new) is nn.SyncBatchNorm is distributed.SyncBatchNorm
    assert (new.num_features, new.eps, new.momentum, new.training) == (3, 1e-3, None, False)
    assert new.weight is norm.weight and new.bias is norm.bias
    assert list(new.state_dict()) == list(norm.state_dict())
    for key, value in new.state_dict().items():
        assert value.array() is norm.state_dict()[key].array()
    new.train()
    new.running_mean = np.ones(3)
    assert not norm.training and not norm.state_dict()["running_mean"].any()
    assert repr(new) == repr(norm).replace("BatchNorm2d", "SyncBatchNorm")
    assert convert_sync_batchnorm(new) is new
    bare = convert_sync_batchnorm(nn.BatchNorm1d(3, affine=False, track_running_stats=False))
    assert bare.weight is bare.running_mean is None


def test_conversion_of_models():
    shared = nn.BatchNorm1d(4)
    model = nn.Sequential(nn.Linear(4, 4), shared, nn.ModuleList([nn.ReLU(), shared]))
    assert convert_sync_batchnorm(model) is model
    assert type(model[1]) is SyncBatchNorm and model[2][1] is model[1]
    layer = nn.ReLU()
    assert convert_sync_batchnorm(layer) is layer
    for make in (models.CifarCNN, models.resnet20):
        net = make()
        keys, parameters = list(net.state_dict()), list(map(id, net.parameters()))
        convert_sync_batchnorm(net)
        assert list(net.state_dict()) == keys and list(map(id, net.parameters())) == parameters
        kinds = {type(m) for m in net.modules()}
        assert not kinds & {nn.BatchNorm1d, nn.BatchNorm2d}
        assert net.__dict__.get("bn1") is net._modules.get("bn1")


@pytest.mark.parametrize("parts", [(4, 4), (6, 0, 1, 3)], ids=str)
def test_steps_of_a_residual_network(ranks, parts):
    """Twice through layers in two branches, with an optimiser of the layers before."""
    rng, samples = np.random.default_rng(0), sum(parts)
    x, labels = rng.standard_normal((2, samples, 3, 8, 8)), rng.integers(0, 10, (2, samples))
    cuts = np.cumsum((0, *parts))
    fl.manual_seed(0)
    start = models.resnet20().double()

    def train(model, first, last, average):
        optimizer = fl.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        convert_sync_batchnorm(model)
        for images, classes in zip(x, labels, strict=True):
            optimizer.zero_grad()
            logits = model(images[first:last])
            loss = F.cross_entropy(logits, classes[first:last], reduction="sum")
            (loss / max(1, last - first)).backward()
            for p in model.parameters():
                average(p.grad.numpy())
            optimizer.step()
        return model.state_dict()

    def run(rank):
        def average(grad):
            grad *= parts[rank] / samples
            home._channel().sum(grad)

        return train(copy.deepcopy(start), cuts[rank], cuts[rank + 1], average)

    expected = train(copy.deepcopy(start), 0, samples, lambda grad: None)
    for state in ranks(len(parts), run)[0]:
        for key, value in expected.items():
            scale = max(np.abs(value).max(), 1e-3)
            np.testing.assert_allclose(state[key] / scale, value / scale, 0, 1e-10, err_msg=key)


def test_nn_has_it_without_importing_mpi():
    code = """if True:
        import sys
        from fastlayers import nn
        assert "fastlayers.distributed" not in sys.modules
        nn.SyncBatchNorm(3)
        assert "mpi4py" not in sys.modules
    """
    subprocess.run([sys.executable, "-c", code], check=True)
