import math

import numpy as np
import pytest

import fastlayers as fl
from fastlayers import Tensor, nn, optim
from fastlayers.data import DataLoader, TensorDataset
from fastlayers.training import History, _keep_best, evaluate, fit

LOSS = nn.CrossEntropyLoss()
FIGURES = {"epoch", "lr", "train_loss", "train_accuracy", "images_per_second", "seconds"}


def batches(count=4, size=16, seed=0):
    """Give batches of points in the plane, labelled by the sign of their first coordinate."""
    rng = np.random.default_rng(seed)
    xs = rng.standard_normal((count, size, 2)).astype(np.float32)
    return [(Tensor(x), Tensor((x[:, 0] > 0).astype(np.int64))) for x in xs]


@pytest.fixture
def model():
    fl.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))


def train(model, *args, lr=0.1, **options):
    options = {"progress": False} | options
    return fit(model, LOSS, optim.SGD(model.parameters(), lr), *args, **options)


def copied(model):
    return {key: value.clone() for key, value in model.state_dict().items()}


def check_state(found, expected):
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        np.testing.assert_array_equal(found[key], value)


def test_learns(model):
    history = train(model, batches(), batches(seed=1), epochs=10)
    assert isinstance(history, History)
    assert [set(e) for e in history.epochs] == [FIGURES | {"valid_loss", "valid_accuracy"}] * 10
    assert [e["epoch"] for e in history.epochs] == list(range(1, 11))
    first, last = history.epochs[0], history.epochs[-1]
    for name in ("train", "valid"):
        assert last[f"{name}_loss"] < first[f"{name}_loss"] / 1.5
        assert 0.9 < last[f"{name}_accuracy"] <= 1
    assert all(e["seconds"] > 0 and e["images_per_second"] > 0 for e in history.epochs)


def test_is_the_plain_loop(model):
    state, optimizer = copied(model), optim.SGD(model.parameters(), 0.1)
    for inputs, targets in batches():
        optimizer.zero_grad()
        LOSS(model(inputs), targets).backward()
        optimizer.step()
    expected = copied(model)
    model.load_state_dict(state)
    train(model, batches(), batches(seed=1), epochs=1)
    check_state(model.state_dict(), expected)


def test_without_validation(model):
    history = train(model, batches(), epochs=2)
    assert [set(e) for e in history.epochs] == [FIGURES] * 2
    best = max(history.epochs, key=lambda e: (e["train_accuracy"], -e["train_loss"]))
    assert history.best is best


def test_figures_of_an_epoch_weigh_samples(model):
    uneven = batches(1, 16) + batches(1, 5, seed=1)
    losses = []

    def loss(output, target):
        losses.append((LOSS(output, target), len(target)))
        return losses[-1][0]

    optimizer = optim.SGD(model.parameters(), 0.1)
    history = fit(model, loss, optimizer, uneven, epochs=1, progress=False)
    mean = sum(value.item() * size for value, size in losses) / 21
    assert history.epochs[0]["train_loss"] == pytest.approx(mean)
    assert [size for _, size in losses] == [16, 5]


def test_loader_and_progress_bar(model, capsys):
    inputs, targets = (
        np.concatenate([t.array() for t in ts]) for ts in zip(*batches(), strict=True)
    )
    loader = DataLoader(TensorDataset(inputs, targets), batch_size=10, shuffle=True)
    history = train(model, loader, loader, epochs=2, progress=True)
    assert len(history.epochs) == 2 and capsys.readouterr().out == ""


class Scripted(nn.Module):
    """Gives right answers to a scripted share of 4 samples, with a scripted certainty."""

    def __init__(self, script):
        super().__init__()
        self.weight = nn.Parameter(np.zeros(1, np.float32))
        self.script = list(script)
        self.epoch = 0

    def forward(self, x):
        if self.training:
            self.epoch += 1
            self.weight.data[...] = self.epoch
            return Tensor(np.zeros((4, 2), np.float32)) + self.weight * 0
        right, certainty = self.script[self.epoch - 1]
        sign = np.where(np.arange(4) < right, 1, -1)
        return Tensor((certainty * sign[:, None] * np.array([1, -1])).astype(np.float32))


@pytest.mark.parametrize(
    ("script", "best"),
    [
        ([(1, 1), (3, 1), (2, 1)], 2),
        ([(3, 1), (3, 1), (3, 1)], 1),
        ([(3, 1), (3, 0.5), (2, 1)], 2),
        ([(3, 0.5), (3, 1), (4, 9)], 3),
        ([(4, 1), (4, 2), (4, 3)], 3),
    ],
)
def test_best_epoch(tmp_path, script, best):
    model, path = Scripted(script), tmp_path / "best.npz"
    four = [(np.zeros((4, 1), np.float32), Tensor(np.zeros(4, np.int64)))]
    kept = []
    history = train(
        model, four, four, 3, lr=0, checkpoint=path,
        on_epoch=lambda figures: kept.append(fl.load(path)["weight"].item()),
    )  # fmt: skip
    assert history.best_epoch == best and history.best is history.epochs[best - 1]
    assert history.best_state["weight"] == best and kept[-1] == best
    assert kept[0] == 1
    assert model.weight.array() == 3  # the last epoch's


def test_best_state_is_a_copy(model):
    history = train(model, batches(), epochs=1)
    check_state(history.best_state, model.state_dict())
    before = {key: value.clone() for key, value in history.best_state.items()}
    model[0].weight.data[...] = 7
    model[1].running_mean[...] = 7
    check_state(history.best_state, before)


class Counter:
    def __init__(self, optimizer):
        self.optimizer, self.steps = optimizer, 0

    def step(self):
        self.steps += 1
        self.optimizer.param_groups[0]["lr"] /= 2


@pytest.mark.parametrize(("every", "steps"), [("epoch", 1), ("batch", 4)])
def test_scheduler(model, every, steps):
    optimizer = optim.SGD(model.parameters(), 0.5)
    scheduler = Counter(optimizer)
    options = {"scheduler": scheduler, "schedule_every": every, "progress": False}
    history = fit(model, LOSS, optimizer, batches(4), epochs=3, **options)
    assert scheduler.steps == 3 * steps
    assert [e["lr"] for e in history.epochs] == [0.5 / 2 ** (steps * n) for n in range(3)]


def test_on_epoch_gets_the_figures(model):
    seen = []
    history = train(model, batches(), batches(), epochs=3, on_epoch=seen.append)
    assert seen == history.epochs


@pytest.mark.parametrize("training", [True, False])
def test_evaluate_leaves_the_model_alone(model, training):
    model.train(training)
    before = copied(model)
    loss, accuracy = evaluate(model, LOSS, batches())
    assert model.training is training and model[1].training is training
    check_state(model.state_dict(), before)
    assert all(p.grad is None for p in model.parameters())
    model.eval()
    inputs, targets = (
        np.concatenate([t.array() for t in ts]) for ts in zip(*batches(), strict=True)
    )
    output = model(inputs)
    assert loss == pytest.approx(LOSS(output, targets).item(), rel=1e-5)
    assert accuracy == (output.array().argmax(1) == targets).mean()


def test_evaluate_records_nothing(model):
    recorded = []

    def loss(output, target):
        recorded.append(output.requires_grad)
        return LOSS(output, target)

    evaluate(model, loss, batches(2))
    assert recorded == [False, False]


def test_evaluate_restores_the_mode_after_an_error(model):
    with pytest.raises(ValueError):
        evaluate(model, LOSS, [(np.ones((2, 3), np.float32), np.zeros(2, int))])
    assert model.training


def test_evaluate_keeps_the_modes_of_frozen_layers(model):
    model[1].eval()
    evaluate(model, LOSS, batches(1))
    assert model.training and model[0].training and not model[1].training


def test_fit_trains_in_training_mode(model):
    train(model.eval(), batches(4), epochs=2)
    assert model.training and model[1].num_batches_tracked == 8


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_loss_that_is_not_finite(model, value):
    state = []

    def loss(output, target):
        state.append({name: p.array().copy() for name, p in model.named_parameters()})
        return LOSS(output, target) * (1.0 if len(state) < 3 else value)

    with pytest.raises(ValueError, match=r"fit: the training loss must be finite, got (nan|inf)"):
        fit(model, loss, optim.SGD(model.parameters(), 0.1), batches(), progress=False)
    assert len(state) == 3
    check_state({name: p.array() for name, p in model.named_parameters()}, state[-1])


def all_ignored(index=-100):
    inputs, targets = batches(1, seed=5)[0]
    return inputs, Tensor(np.full(len(targets), index))


def own_loss(output, target):
    return nn.functional.cross_entropy(output, target, ignore_index=7)


@pytest.mark.parametrize(
    ("loss", "index"),
    [(LOSS, -100), (nn.CrossEntropyLoss(ignore_index=7), 7), (own_loss, 7)],
)
def test_a_batch_of_ignored_targets_has_its_step_and_does_not_count(model, loss, index):
    first, second = batches(2)
    state = copied(model)
    optimizer = optim.SGD(model.parameters(), 0.1, momentum=0.9)
    for inputs, targets in (first, all_ignored(index), second):  # the plain loop
        optimizer.zero_grad()
        loss(model(inputs), targets).backward()
        optimizer.step()
    expected = copied(model)
    assert all(np.isfinite(value).all() for value in expected.values())
    model.load_state_dict(state)
    optimizer = optim.SGD(model.parameters(), 0.1, momentum=0.9)
    history = fit(model, loss, optimizer, [first, all_ignored(index), second], progress=False)
    check_state(model.state_dict(), expected)
    assert math.isfinite(history.epochs[0]["train_loss"])
    assert 0 < history.epochs[0]["train_accuracy"] <= 1
    some = evaluate(model, loss, [first, all_ignored(index), second])
    assert some == evaluate(model, loss, [first, second])


def test_nothing_but_ignored_targets(model):
    with pytest.raises(ValueError, match="fit: train must give at least one batch with targets"):
        train(model, [all_ignored()])
    with pytest.raises(ValueError, match="evaluate: batches must give at least one batch with"):
        evaluate(model, LOSS, [all_ignored()])


def test_a_diverged_model_counts(model):
    state = copied(model)
    state["0.bias"][:] = math.nan
    model.load_state_dict(state)
    assert math.isnan(evaluate(model, LOSS, batches(1))[0])
    targets = Tensor(np.full((16, 2), math.nan, np.float32))  # which nothing ignores
    linear = nn.Linear(2, 2)
    state, pairs = copied(linear), [(batches(1)[0][0], targets)]
    with pytest.raises(ValueError, match="fit: the training loss must be finite, got nan"):
        fit(linear, nn.MSELoss(), optim.SGD(linear.parameters(), 0.1), pairs, progress=False)
    check_state(linear.state_dict(), state)
    assert math.isnan(evaluate(linear, nn.MSELoss(), pairs)[0])


@pytest.mark.parametrize(
    ("argument", "options"),
    [
        ("epochs", {"epochs": 0}),
        ("epochs", {"epochs": -1}),
        ("epochs", {"epochs": 1.5}),
        ("epochs", {"epochs": True}),
        ("schedule_every", {"schedule_every": "step"}),
        ("train", {"train": []}),
    ],
)
def test_errors(model, argument, options):
    before = copied(model)
    given = {"train": batches(), "epochs": 1} | options
    with pytest.raises(ValueError, match=rf"^fit: {argument}\b.*\bgot\b"):
        train(model, **given)
    check_state(model.state_dict(), before)


def test_generators_are_exhausted_after_an_epoch(model):
    with pytest.raises(ValueError, match="fit: train must give at least one batch"):
        train(model, iter(batches()), epochs=2)


def test_history_without_epochs():
    with pytest.raises(ValueError, match="epochs must hold a completed one"):
        _ = History().best


def test_interrupt_keeps_the_checkpoint(model, tmp_path):
    path, states = tmp_path / "best.npz", []

    def interrupt(figures):
        states.append(copied(model))
        if len(states) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(model, batches(), epochs=9, lr=1e-3, checkpoint=path, on_epoch=interrupt)
    assert [p.name for p in tmp_path.iterdir()] == ["best.npz"]
    saved = fl.load(path)
    assert any(all((saved[k] == v).all() for k, v in state.items()) for state in states)


def test_targets_that_are_no_labels():
    fl.manual_seed(0)
    model = nn.Linear(2, 1)
    pairs = [(x, Tensor(x.array().sum(1, keepdims=True))) for x, _ in batches()]
    optimizer = optim.SGD(model.parameters(), 0.1)
    history = fit(model, nn.MSELoss(), optimizer, pairs, epochs=5, progress=False)
    assert history.epochs[-1]["train_loss"] < history.epochs[0]["train_loss"] / 2
    assert history.epochs[-1]["train_accuracy"] == 0 and history.best_epoch == 5


def test_loss_that_is_not_a_number_is_never_the_best():
    history = History()
    model = nn.Linear(1, 1)
    for epoch, loss in enumerate([0.5, float("nan"), 0.4], start=1):
        figures = {"epoch": epoch, "valid_loss": loss, "valid_accuracy": 0.0}
        history.epochs.append(figures)
        _keep_best(history, figures, model, None)
    assert history.best_epoch == 3


def test_no_batch_to_evaluate():
    with pytest.raises(ValueError, match="evaluate: batches must give at least one batch"):
        evaluate(nn.Linear(1, 1), nn.MSELoss(), [])
