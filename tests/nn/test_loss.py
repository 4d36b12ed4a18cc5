import numpy as np
import pytest

from fastlayers import Tensor, nn, ops
from fastlayers.nn import functional as F
from fastlayers.testing import gradcheck

RNG = np.random.default_rng(0)
REDUCTIONS = pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
WEIGHT = np.array([0.5, 1.0, 2.0, 1.5])


@REDUCTIONS
@pytest.mark.parametrize("shape", [(5, 4), (3, 4, 2), (4,)])
@pytest.mark.parametrize(
    ("loss", "options"),
    [
        (nn.CrossEntropyLoss, {}),
        (nn.CrossEntropyLoss, {"weight": WEIGHT}),
        (nn.CrossEntropyLoss, {"label_smoothing": 0.2}),
        (nn.CrossEntropyLoss, {"weight": WEIGHT, "label_smoothing": 0.1, "ignore_index": 1}),
        (nn.NLLLoss, {}),
        (nn.NLLLoss, {"weight": WEIGHT, "ignore_index": 1}),
    ],
)
def test_gradients_of_labels(check_layer, loss, options, shape, reduction):
    x = Tensor(RNG.standard_normal(shape), True)
    labels = np.arange(np.prod(shape) // 4).reshape(shape[:1] + shape[2:] if shape[1:] else ())
    target = Tensor(labels % 4 if labels.ndim else np.asarray(2))
    options = options | {"reduction": reduction}
    op = ops.cross_entropy if loss is nn.CrossEntropyLoss else ops.nll_loss
    np.testing.assert_array_equal(
        loss(**options)(x, target).array(), op(x.array(), target.array(), **options)
    )
    check_layer(loss(**options), x, target)


@REDUCTIONS
@pytest.mark.parametrize("shape", [(5, 4), (4,), (2, 3, 4)])
@pytest.mark.parametrize("options", [{}, {"weight": WEIGHT}, {"pos_weight": WEIGHT}])
def test_gradients_of_yes_no_targets(check_layer, options, shape, reduction):
    x, target = Tensor(RNG.standard_normal(shape), True), Tensor(RNG.uniform(0, 1, shape))
    loss, op = nn.BCEWithLogitsLoss, ops.binary_cross_entropy_with_logits
    options = options | {"reduction": reduction}
    np.testing.assert_array_equal(
        loss(**options)(x, target).array(), op(x.array(), target.array(), **options)
    )
    check_layer(loss(**options), x, target)


@REDUCTIONS
@pytest.mark.parametrize("shape", [(5, 4), ()])
def test_gradients_of_squares_reach_both_sides(check_layer, shape, reduction):
    x, target = (Tensor(RNG.standard_normal(shape), True) for _ in range(2))
    check_layer(nn.MSELoss(reduction), x, target)


def test_values():
    logits = np.log(np.array([[1.0, 3, 4], [2, 2, 4]]))
    labels = np.array([1, 2])
    entropies = -np.log([3 / 8, 1 / 2])
    np.testing.assert_allclose(nn.CrossEntropyLoss()(logits, labels).item(), entropies.mean())
    weight = np.array([1.0, 2, 6])
    weighted = nn.CrossEntropyLoss(weight)(logits, labels).item()
    np.testing.assert_allclose(weighted, (entropies * [2, 6]).sum() / 8)
    np.testing.assert_allclose(nn.NLLLoss(reduction="sum")(logits, labels).item(), -np.log(12))
    np.testing.assert_allclose(nn.MSELoss()(np.array([1.0, 2]), np.array([3.0, 5])).item(), 6.5)
    chances = nn.BCEWithLogitsLoss(reduction="none")(np.log([3.0, 1 / 3]), np.array([1.0, 0]))
    np.testing.assert_allclose(chances.array(), -np.log([0.75, 0.75]))


def test_ignored_labels():
    x = Tensor(RNG.standard_normal((3, 4)), True)
    loss = nn.CrossEntropyLoss(ignore_index=9)(x, np.array([1, 9, 2]))
    np.testing.assert_allclose(
        loss.item(), nn.CrossEntropyLoss()(x.array()[::2], np.array([1, 2])).item()
    )
    loss.backward()
    np.testing.assert_array_equal(x.grad[1], [0, 0, 0, 0])


def test_a_second_backward_gives_the_same_gradient():
    x = Tensor(RNG.standard_normal((3, 4)), True)
    loss = nn.CrossEntropyLoss(label_smoothing=0.1)(x, np.array([0, 3, 1]))
    loss.backward(retain_graph=True)
    first = x.grad.clone()
    loss.backward()
    np.testing.assert_allclose(x.grad, 2 * first, rtol=1e-14)


def test_targets_may_be_tensors():
    x, labels = RNG.standard_normal((3, 4)), np.array([1, 0, 2])
    first, second = (nn.CrossEntropyLoss()(x, target) for target in (labels, Tensor(labels)))
    assert first.item() == second.item()


def test_weights_are_buffers():
    loss = nn.BCEWithLogitsLoss(weight=WEIGHT, pos_weight=Tensor(WEIGHT))
    assert list(loss.state_dict()) == ["weight", "pos_weight"]
    assert not list(loss.parameters()) and not nn.NLLLoss().state_dict()


@pytest.mark.parametrize(
    "loss", [nn.CrossEntropyLoss, nn.NLLLoss, nn.MSELoss, nn.BCEWithLogitsLoss]
)
@pytest.mark.parametrize("reduction", ["average", None, True])
def test_reductions(loss, reduction):
    with pytest.raises(ValueError, match=rf"^{loss.__name__}: reduction must be .*got"):
        loss(reduction=reduction)


X, LABELS = np.ones((3, 4), np.float32), np.zeros(3, int)


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        (
            ValueError,
            "CrossEntropyLoss: label_smoothing",
            lambda: nn.CrossEntropyLoss(label_smoothing=1.5),
        ),
        (ValueError, "cross_entropy: target", lambda: nn.CrossEntropyLoss()(X, LABELS + 4)),
        (ValueError, "cross_entropy: target", lambda: nn.CrossEntropyLoss()(X, LABELS[:2])),
        (ValueError, "cross_entropy: target", lambda: nn.CrossEntropyLoss()(X, LABELS * 1.0)),
        (ValueError, "nll_loss: weight", lambda: nn.NLLLoss(WEIGHT[:3].astype("f"))(X, LABELS)),
        (TypeError, "nll_loss: weight", lambda: nn.NLLLoss(WEIGHT)(X, LABELS)),
        (ValueError, "mse_loss: target", lambda: nn.MSELoss()(X, X[:2])),
        (TypeError, "mse_loss: target", lambda: nn.MSELoss()(X, X.astype(float))),
        (
            ValueError,
            "binary_cross_entropy_with_logits: target",
            lambda: nn.BCEWithLogitsLoss()(X, X[:, :2]),
        ),
    ],
)
def test_errors(error, message, call):
    with pytest.raises(error, match=rf"^{message}\b.*\bgot\b"):
        call()


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("factors", [{}, {"weight": 0.5}, {"weight": 2.0, "pos_weight": 3.0}])
def test_gradient_by_the_target_of_binary_cross_entropy(reduction, factors):
    rng = np.random.default_rng(0)
    x, t = Tensor(rng.standard_normal((3, 4)), True), Tensor(rng.random((3, 4)), True)
    given = {name: np.full(4, value) for name, value in factors.items()}

    def loss(x, t):
        return F.binary_cross_entropy_with_logits(x, t, reduction=reduction, **given)

    gradcheck(loss, [x, t])
    gradcheck(lambda t: loss(x.detach(), t), [t])
