import numpy as np
import pytest

from fastlayers import Tensor, nn

SHAPES = [(nn.BatchNorm1d, (5, 3)), (nn.BatchNorm1d, (3, 3, 4)), (nn.BatchNorm2d, (3, 3, 2, 4))]
NORMS = pytest.mark.parametrize(("layer", "shape"), SHAPES)


def batch(shape, seed=0, requires_grad=False):
    values = np.random.default_rng(seed).standard_normal(shape) * 3 + 2
    return Tensor(values, requires_grad)


def axes(shape):
    return (0, *range(2, len(shape)))


@NORMS
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("tracks", [True, False])
def test_gradients(check_layer, layer, shape, affine, training, tracks):
    options = {"affine": affine, "track_running_stats": tracks, "eps": 1e-2}
    norm = layer(3, **options, dtype=np.float64).train(training)
    if tracks:
        norm.running_var[...] = [1, 2, 3]
    check_layer(norm, batch(shape, requires_grad=True))


@NORMS
@pytest.mark.parametrize("eps", [1e-5, 0.5])
def test_training_normalises_by_the_batch(layer, shape, eps):
    norm, x = layer(3, eps=eps, dtype=np.float64), batch(shape)
    norm.weight.data[...], norm.bias.data[...] = [1, -2, 3], [0, 1, 2]
    mean, var = (f(axis=axes(shape), keepdims=True) for f in (x.array().mean, x.array().var))
    like = (3,) + (1,) * (len(shape) - 2)
    scale, shift = norm.weight.array().reshape(like), norm.bias.array().reshape(like)
    np.testing.assert_allclose(
        norm(x).array(), (x.array() - mean) / np.sqrt(var + eps) * scale + shift
    )


@NORMS
@pytest.mark.parametrize("momentum", [0.1, 0.7, 1.0, 0.0, -0.5, 1.5, None])
def test_running_statistics(layer, shape, momentum):
    norm = layer(3, momentum=momentum, dtype=np.float64)
    mean, var = np.zeros(3), np.ones(3)
    for number in range(1, 4):
        x = batch(shape, seed=number)
        norm(x)
        share = 1 / number if momentum is None else momentum
        mean += share * (x.array().mean(axes(shape)) - mean)
        var += share * (x.array().var(axes(shape), ddof=1) - var)
        assert norm.num_batches_tracked == number
    np.testing.assert_allclose(norm.running_mean, mean)
    np.testing.assert_allclose(norm.running_var, var)


@NORMS
def test_evaluation_uses_and_keeps_running_statistics(layer, shape):
    norm = layer(3, dtype=np.float64)
    norm(batch(shape))
    norm.eval()
    before = {key: value.clone() for key, value in norm.state_dict().items()}
    x = batch(shape, seed=1)
    like = (3,) + (1,) * (len(shape) - 2)
    mean, var = norm.running_mean.reshape(like), norm.running_var.reshape(like)
    np.testing.assert_allclose(norm(x).array(), (x.array() - mean) / np.sqrt(var + 1e-5))
    # a sample's result does not depend on its batch
    np.testing.assert_allclose(norm(Tensor(x.array()[:1])).array(), norm(x).array()[:1])
    for key, value in norm.state_dict().items():
        np.testing.assert_array_equal(value, before[key])


@NORMS
def test_without_running_statistics(layer, shape):
    norm, x = layer(3, track_running_stats=False, dtype=np.float64), batch(shape)
    assert norm.running_mean is norm.running_var is norm.num_batches_tracked is None
    assert list(norm.state_dict()) == ["weight", "bias"]
    np.testing.assert_array_equal(norm(x).array(), norm.eval()(x).array())


def test_parameters():
    norm = nn.BatchNorm2d(10)
    assert norm.weight.shape == norm.bias.shape == (10,)
    np.testing.assert_array_equal([norm.weight.array(), norm.bias.array()], [[1] * 10, [0] * 10])
    bare = nn.BatchNorm2d(10, affine=False)
    assert bare.weight is bare.bias is None and not list(bare.parameters())
    assert list(bare.state_dict()) == ["running_mean", "running_var", "num_batches_tracked"]


def test_reset():
    norm = nn.BatchNorm1d(3, dtype=np.float64)
    norm.weight.data[...] = 3
    norm(batch((5, 3)))
    norm.reset_parameters()
    for key, value in nn.BatchNorm1d(3).state_dict().items():
        np.testing.assert_array_equal(norm.state_dict()[key], value)


def test_statistics_are_kept_when_a_batch_is_repeated_in_one_pass():
    norm, x = nn.BatchNorm1d(3, dtype=np.float64), batch((5, 3))
    norm(norm(x))
    assert norm.num_batches_tracked == 2


ONES = np.ones((4, 3, 2, 2), np.float32)


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize(
    ("layer", "error", "x"),
    [
        (nn.BatchNorm1d, ValueError, ONES[:1, :, 0, 0]),
        (nn.BatchNorm1d, ValueError, ONES[:1, :, 0, :1]),
        (nn.BatchNorm2d, ValueError, ONES[:1, :, :1, :1]),
        (nn.BatchNorm2d, ValueError, ONES[0]),
        (nn.BatchNorm2d, ValueError, ONES[:, :2]),
        (nn.BatchNorm1d, ValueError, ONES),
        (nn.BatchNorm1d, ValueError, ONES[0, 0, 0]),
        (nn.BatchNorm2d, TypeError, ONES.astype(int)),
        (nn.BatchNorm2d, TypeError, ONES.astype(float)),
    ],
)
def test_errors_leave_statistics_alone(layer, error, x, momentum):
    norm = layer(3, momentum=momentum)
    norm.running_mean[...], norm.num_batches_tracked[...] = 0.5, 3
    before = {key: value.clone() for key, value in norm.state_dict().items()}
    with pytest.raises(error, match=r"(?i)^batch_?norm.*: .*\b(input|running_mean)\b.*\bgot\b"):
        norm(x)
    for key, value in norm.state_dict().items():
        np.testing.assert_array_equal(value, before[key])


@pytest.mark.parametrize("layer", [nn.BatchNorm1d, nn.BatchNorm2d])
@pytest.mark.parametrize(
    ("error", "argument", "args"),
    [
        (ValueError, "num_features", (0,)),
        (TypeError, "num_features", (3.0,)),
        (ValueError, "eps", (3, -1e-5)),
        (ValueError, "eps", (3, np.inf)),
        (ValueError, "momentum", (3, 1e-5, np.inf)),
        (ValueError, "momentum", (3, 1e-5, np.nan)),
        (TypeError, "eps", (3, "small")),
        (TypeError, "momentum", (3, 1e-5, "0.1")),
    ],
)
def test_errors_of_options(layer, error, argument, args):
    with pytest.raises(error, match=rf"^{layer.__name__}: {argument}\b.*\bgot\b"):
        layer(*args)


def after(norm, *batches):
    for x in batches:
        norm(x)
    return [np.array(value) for value in norm.state_dict().values()][2:]


@NORMS
def test_tracking_that_is_switched_off(layer, shape):
    """Training leaves the statistics alone then; evaluation uses them if they are there."""
    norm, x = layer(3, dtype=np.float64), batch(shape)
    norm(x)
    before = after(norm)
    norm.track_running_stats = False
    trained = norm(batch(shape, seed=1))
    for got, want in zip(after(norm), before, strict=True):
        np.testing.assert_array_equal(got, want)
    fresh = layer(3, dtype=np.float64)(batch(shape, seed=1))
    np.testing.assert_array_equal(np.asarray(trained.detach()), np.asarray(fresh.detach()))
    evaluated = norm.eval()(x)
    norm.track_running_stats = True
    np.testing.assert_array_equal(np.asarray(evaluated.detach()), np.asarray(norm(x).detach()))
    without = layer(3, track_running_stats=False)
    without.track_running_stats = True  # there is nothing to track by
    without(batch(shape).array().astype(np.float32))
    assert without.running_mean is None


@NORMS
def test_statistics_that_are_taken_away(layer, shape):
    norm, x = layer(3, dtype=np.float64), batch(shape)
    expected = np.asarray(norm(x).detach())
    norm.running_mean = norm.running_var = None
    for mode in (True, False):
        np.testing.assert_array_equal(np.asarray(norm.train(mode)(x).detach()), expected)
    assert int(np.asarray(norm.num_batches_tracked)) == 2
    norm = layer(3, momentum=None, dtype=np.float64)
    norm.num_batches_tracked = None
    norm(x)  # no count, no share
    assert not np.asarray(norm.running_mean).any()


@pytest.mark.parametrize("count", [np.array([5]), np.array(5, np.float16), np.array([5.0])])
def test_counts_of_old_shapes_and_types(count):
    norm, x = nn.BatchNorm1d(3, momentum=None), batch((5, 3)).array().astype(np.float32)
    norm.num_batches_tracked = count
    norm(x)
    np.testing.assert_allclose(np.asarray(norm.running_mean), x.mean(0) / 6, rtol=1e-5)
    assert np.asarray(norm.num_batches_tracked).item() == 6
    state = nn.BatchNorm1d(3).state_dict() | {"num_batches_tracked": count - count + 5}
    norm = nn.BatchNorm1d(3)
    norm.load_state_dict(state)
    value = np.asarray(norm.num_batches_tracked)
    assert value == 5
    assert value.dtype == np.int64 and value.shape == ()


def test_states_without_a_count():
    """PyTorch before 0.4.1 had none; the layer's own is kept, as PyTorch does."""
    norm = nn.BatchNorm2d(3)
    norm(ONES)
    state = {k: v for k, v in nn.BatchNorm2d(3).state_dict().items() if "num" not in k}
    keys = nn.Sequential(norm).load_state_dict({f"0.{k}": v for k, v in state.items()})
    assert not keys.missing_keys and not np.asarray(norm.running_mean).any()
    assert int(np.asarray(norm.num_batches_tracked)) == 1
    del state["running_var"]
    with pytest.raises(ValueError, match=r"missing keys \['running_var'\]"):
        norm.load_state_dict(state)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", [(0, 3, 2, 2), (2, 3, 0, 2), (0, 3, 1, 1)])
def test_batches_without_values(shape, training):
    norm, x = nn.BatchNorm2d(3).train(training), Tensor(np.zeros(shape, np.float32), True)
    y = norm(x)
    y.sum().backward()
    assert y.shape == shape == x.grad.shape
    for p in norm.parameters():
        np.testing.assert_array_equal(np.asarray(p.grad), np.zeros(3))
    mean, var, count = after(norm)
    np.testing.assert_array_equal([mean, var], [[0] * 3, [1] * 3])
    assert count == training


def test_scale_without_shift():
    norm = nn.BatchNorm2d(3, bias=False)
    assert norm.bias is None and list(norm.state_dict())[:2] == ["weight", "running_mean"]
    norm.reset_parameters()
    assert norm(ONES).shape == ONES.shape and "bias=False" in repr(norm)
    assert nn.BatchNorm2d(3, affine=False).bias is None
