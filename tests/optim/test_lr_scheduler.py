import json
import math

import numpy as np
import pytest

from fastlayers import nn
from fastlayers.optim import SGD, Adam, Optimizer, lr_scheduler
from fastlayers.optim.lr_scheduler import (
    ConstantLR,
    CosineAnnealingLR,
    ExponentialLR,
    LambdaLR,
    LinearLR,
    LRScheduler,
    MultiStepLR,
    OneCycleLR,
    ReduceLROnPlateau,
    SequentialLR,
    StepLR,
)


def Parameter():
    return nn.Parameter(np.ones(3))


def sgd(*lrs, **options):
    return SGD([{"params": [Parameter()], "lr": lr} for lr in lrs or (0.5,)], **options)


def rates(scheduler, steps):
    """First group's rates at step 0, 1, ..., and a check that all places agree."""
    found = [scheduler.get_last_lr()]
    for _ in range(steps):
        scheduler.step()
        found.append(scheduler.get_last_lr())
        assert found[-1] == [group["lr"] for group in scheduler.optimizer.param_groups]
    return np.array(found).T


def close(got, want):
    np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-15)


def test_step_lr():
    close(rates(StepLR(sgd(8.0, 1.0), 3, gamma=0.5), 7)[0], [8, 8, 8, 4, 4, 4, 2, 2])
    close(rates(StepLR(sgd(8.0, 1.0), 1), 3)[1], [1, 0.1, 0.01, 0.001])


def test_multi_step_lr():
    close(rates(MultiStepLR(sgd(8.0), [4, 2, 4], gamma=0.5), 5)[0], [8, 8, 4, 4, 1, 1])
    close(rates(MultiStepLR(sgd(8.0), iter([0]), gamma=0.5), 1)[0], [4, 4])


@pytest.mark.parametrize("t_max, eta_min", [(1, 0.0), (4, 0.1), (7, 0.7)])
def test_cosine_recurrence(t_max, eta_min):
    """The recurrence of PyTorch's documentation, which passes its own zero by the closed form."""
    want = [0.5]
    for t in range(1, 3 * t_max):
        before, now = (1 + math.cos(math.pi * s / t_max) for s in (t - 1, t))
        step = (want[-1] - eta_min) * now / before if before > 1e-9 else (0.5 - eta_min) * now / 2
        want.append(eta_min + step)
    close(rates(CosineAnnealingLR(sgd(0.5), t_max, eta_min), 3 * t_max - 1)[0], want)


def test_one_cycle_linear():
    optimizer = sgd(1.0, momentum=0.3)
    scheduler = OneCycleLR(
        optimizer, 10.0, total_steps=11, pct_start=4 / 11, anneal_strategy="linear", div_factor=10,
        final_div_factor=10, base_momentum=0.6, max_momentum=0.9,
    )  # fmt: skip
    assert optimizer.param_groups[0]["momentum"] == pytest.approx(0.9)
    down = np.linspace(10, 0.1, 8)
    close(rates(scheduler, 10)[0], [1, 4, 7, *down])
    scheduler.step()  # a loop that steps after each of its batches comes here
    close(scheduler.get_last_lr(), [0.1 - 9.9 / 7])
    with pytest.raises(ValueError, match=r"OneCycleLR: step must be called at most total_steps ="):
        scheduler.step()
    assert scheduler.last_epoch == 11


@pytest.mark.parametrize("make", [sgd, lambda: Adam([Parameter()])])
def test_one_cycle_cos_three_phases(make):
    optimizer = make()
    scheduler = OneCycleLR(
        optimizer, 2.0, epochs=4, steps_per_epoch=5, pct_start=0.25, three_phase=True
    )
    start, end = 2.0 / 25, 2.0 / 25 / 1e4

    def cos(a, b, part):
        return b + (a - b) * (1 + math.cos(math.pi * part)) / 2

    for t in range(20):
        if t <= 4:
            lr, momentum = cos(start, 2.0, t / 4), cos(0.95, 0.85, t / 4)
        elif t <= 8:
            lr, momentum = cos(2.0, start, (t - 4) / 4), cos(0.85, 0.95, (t - 4) / 4)
        else:
            lr, momentum = cos(start, end, (t - 8) / 11), 0.95
        group = optimizer.param_groups[0]
        found = group["betas"][0] if "betas" in group else group["momentum"]
        close([group["lr"], found], [lr, momentum])
        assert group.get("betas", (0, 0.999))[1] == 0.999
        scheduler.step()


def test_one_cycle_per_group_without_momentum():
    optimizer = sgd(1.0, 1.0, momentum=0.3)
    scheduler = OneCycleLR(optimizer, [1.0, 2.0], total_steps=10, cycle_momentum=False)
    first, second = rates(scheduler, 9)
    close(second, 2 * first)
    assert first.max() == 1 and [g["momentum"] for g in optimizer.param_groups] == [0.3, 0.3]


@pytest.mark.parametrize("options", [{"total_steps": 1}, {"total_steps": 10, "pct_start": 0.1},
                                     {"total_steps": 5, "pct_start": 1.0},
                                     {"total_steps": 5, "pct_start": 0.0}])  # fmt: skip
def test_one_cycle_with_empty_phases(options):
    found = rates(OneCycleLR(sgd(), 1.0, **options), options["total_steps"])
    assert np.isfinite(found).all() and found.max() <= 1


MAKERS = [
    lambda optimizer, **more: StepLR(optimizer, 2, 0.5, **more),
    lambda optimizer, **more: MultiStepLR(optimizer, [1, 4, 6], 0.5, **more),
    lambda optimizer, **more: CosineAnnealingLR(optimizer, 9, 0.1, **more),
    lambda optimizer, **more: OneCycleLR(optimizer, 1.0, total_steps=10, **more),
]
ALL = pytest.mark.parametrize("make", MAKERS)


@ALL
def test_state_dict_resumes(make):
    first = make(sgd(0.5, 0.3))
    want = rates(first, 9)
    again = make(sgd(0.5, 0.3))
    rates(again, 4)
    state, optimizer_state = again.state_dict(), again.optimizer.state_dict()
    json.dumps(state)
    again.step()  # must not reach the copies
    other = make(sgd(3.0, 4.0))
    other.load_state_dict(state)
    other.optimizer.load_state_dict(optimizer_state)
    assert other.last_epoch == 4
    np.testing.assert_array_equal(rates(other, 5), want[:, 4:])


@pytest.mark.parametrize("make", [MAKERS[i] for i in (0, 1, 3)])
def test_last_epoch_resumes(make):
    want = rates(make(sgd(0.5, 0.3)), 9)
    part = make(sgd(0.5, 0.3))
    rates(part, 4)
    resumed = make(part.optimizer, last_epoch=4)
    assert resumed.last_epoch == 5
    np.testing.assert_array_equal(rates(resumed, 4), want[:, 5:])


@ALL
def test_last_epoch_needs_initial_lr(make):
    with pytest.raises(KeyError, match="with last_epoch 4, every param group must have"):
        make(sgd(), last_epoch=4)


@ALL
def test_bad_arguments_of_all(make):
    with pytest.raises(ValueError, match="last_epoch must be an integer >= -1, got -2"):
        make(sgd(), last_epoch=-2)
    with pytest.raises(TypeError, match="optimizer must be an Optimizer, got NoneType"):
        make(None)


ALSO = [
    *MAKERS,
    lambda optimizer: LambdaLR(optimizer, lambda epoch: 1 / (1 + epoch)),
    lambda optimizer: LinearLR(optimizer, 0.5, total_iters=3),
    lambda optimizer: SequentialLR(
        optimizer, [ConstantLR(optimizer), ExponentialLR(optimizer, 0.9)], [4]
    ),
]


@pytest.mark.parametrize("make", ALSO)
def test_load_refuses_other_state(make):
    scheduler = make(sgd())
    before = scheduler.state_dict()
    own = {name: [] for name in scheduler._of_groups()}
    for wrong in ({}, before | {"more": 1}, before | own):
        with pytest.raises(ValueError, match=r"state_dict must have"):
            scheduler.load_state_dict(wrong)
        assert scheduler.state_dict() == before


def test_new_group():
    """Schedules that need no base rate change it too; the others say what is wrong."""
    scheduler = StepLR(sgd(), 1)
    scheduler.optimizer.add_param_group({"params": [Parameter()], "lr": 2.0})
    scheduler.step()
    close(scheduler.get_last_lr(), [0.05, 0.2])
    for make in (MAKERS[2], MAKERS[3]):
        scheduler = make(sgd())
        scheduler.optimizer.add_param_group({"params": [Parameter()], "lr": 2.0})
        with pytest.raises(ValueError, match="optimizer must have the 1 param groups .* got 2"):
            for _ in range(10):
                scheduler.step()
        assert scheduler.last_epoch in (0, 9)


def test_rate_set_by_hand_is_kept():
    optimizer = sgd(1.0)
    scheduler, found = StepLR(optimizer, 5, 0.1), []
    for step in range(6):
        if step == 1:
            optimizer.param_groups[0]["lr"] = 0.3
        scheduler.step()
        found += scheduler.get_last_lr()
    close(found, [1.0, 0.3, 0.3, 0.3, 0.03, 0.03])


def test_two_schedulers_and_a_later_one():
    optimizer = sgd(1.0)
    pair, found = [StepLR(optimizer, 2, 0.5), MultiStepLR(optimizer, [3], 0.1)], []
    for _ in range(6):
        for scheduler in pair:
            scheduler.step()
        found.append(optimizer.param_groups[0]["lr"])
    close(found, [1.0, 0.5, 0.05, 0.025, 0.025, 0.0125])
    optimizer.param_groups[0]["lr"] = 0.01
    later = StepLR(optimizer, 2, 0.5)
    close(later.get_last_lr(), [0.01])
    assert later.base_lrs == [1.0] == [optimizer.param_groups[0]["initial_lr"]]


def test_scheduler_of_ones_own():
    class Fading(LRScheduler):
        def get_lr(self):
            return [lr / (1 + self.last_epoch) for lr in self.base_lrs]

    close(rates(Fading(sgd(6.0)), 2)[0], [6, 3, 2])


def test_repr_shows_the_options():
    assert repr(StepLR(sgd(), 3, 0.5)) == (
        "StepLR(step_size=3, gamma=0.5, base_lrs=[0.5], last_epoch=0)"
    )


BAD = [
    (StepLR, {"step_size": 0}, "step_size must be an integer >= 1, got 0"),
    (StepLR, {"step_size": 1.5}, "step_size must be an integer >= 1, got 1.5"),
    (StepLR, {"step_size": 1, "gamma": -1}, "gamma must be a finite number >= 0, got -1"),
    (MultiStepLR, {"milestones": [1, -1]}, "milestones must be an integer >= 0, got -1"),
    (MultiStepLR, {"milestones": [1], "gamma": math.nan}, "gamma must be a finite number >= 0"),
    (CosineAnnealingLR, {"T_max": True}, "T_max must be an integer >= 1, got True"),
    (CosineAnnealingLR, {"T_max": 3, "eta_min": math.inf}, "eta_min must be a finite number >= 0"),
    (OneCycleLR, {"total_steps": 0}, "total_steps must be an integer >= 1, got 0"),
    (OneCycleLR, {}, "total_steps, or epochs and steps_per_epoch, must be given"),
    (OneCycleLR, {"epochs": 3}, "total_steps, or epochs and steps_per_epoch, must be given"),
    (OneCycleLR, {"epochs": 0, "steps_per_epoch": 1}, "epochs must be an integer >= 1, got 0"),
    (OneCycleLR, {"epochs": 1, "steps_per_epoch": 0.5}, "steps_per_epoch must be an integer >= 1"),
    (OneCycleLR, {"total_steps": 9, "max_lr": math.nan}, "max_lr must be a finite number >= 0"),
    (OneCycleLR, {"total_steps": 9, "max_lr": [1, 2]}, "max_lr must have a value for each of 1"),
    (OneCycleLR, {"total_steps": 9, "pct_start": 1.1}, r"pct_start must be a number in \[0, 1\]"),
    (
        OneCycleLR,
        {"total_steps": 9, "anneal_strategy": "sin"},
        "anneal_strategy must be one of cos, linear",
    ),
    (OneCycleLR, {"total_steps": 9, "div_factor": 0}, "div_factor must be a finite number > 0"),
    (OneCycleLR, {"total_steps": 9, "final_div_factor": -1}, "final_div_factor must be a finite"),
    (OneCycleLR, {"total_steps": 9, "base_momentum": -1}, "base_momentum must be a finite number"),
    (OneCycleLR, {"total_steps": 9, "max_momentum": "1"}, "max_momentum must be a finite number"),
    (OneCycleLR, {"total_steps": 9, "three_phase": 1}, "three_phase must be a bool, got 1"),
    (ExponentialLR, {"gamma": -1}, "gamma must be a finite number >= 0, got -1"),
    (ConstantLR, {"factor": 1.5}, r"factor must be a number in \[0, 1\], got 1.5"),
    (ConstantLR, {"total_iters": -1}, "total_iters must be an integer >= 0, got -1"),
    (LinearLR, {"start_factor": 0}, "start_factor must be > 0, got 0"),
    (LinearLR, {"end_factor": 2}, r"end_factor must be a number in \[0, 1\], got 2"),
    (LinearLR, {"total_iters": 0}, "total_iters must be an integer >= 1, got 0"),
    (LambdaLR, {"lr_lambda": [abs, abs]}, "lr_lambda must have a value for each of 1"),
    (ReduceLROnPlateau, {"factor": 1.0}, "factor must be < 1, got 1.0"),
    (ReduceLROnPlateau, {"mode": "up"}, "mode must be"),
    (ReduceLROnPlateau, {"threshold_mode": "up"}, "threshold_mode must be"),
    (ReduceLROnPlateau, {"patience": 0.5}, "patience must be an integer >= 0, got 0.5"),
    (ReduceLROnPlateau, {"min_lr": [0, 0]}, "min_lr must have a value for each of 1"),
    (SequentialLR, {"schedulers": [], "milestones": []}, "milestones must be one less than 0"),
]


@pytest.mark.parametrize("make, options, message", BAD)
def test_bad_arguments(make, options, message):
    optimizer = sgd()
    options = {"max_lr": 1.0} | options if make is OneCycleLR else options
    before = optimizer.state_dict()
    with pytest.raises(ValueError, match=f"{make.__name__}: {message}"):
        make(optimizer, **options)
    assert optimizer.state_dict() == before


def test_sequence_takes_schedules_of_its_optimizer():
    optimizer = sgd()
    parts = [ConstantLR(optimizer), ReduceLROnPlateau(optimizer)]
    with pytest.raises(TypeError, match="SequentialLR: schedulers must compute rates from the"):
        SequentialLR(optimizer, parts, [3])
    with pytest.raises(ValueError, match="SequentialLR: schedulers must be of the optimizer"):
        SequentialLR(sgd(), parts[:1], [])


def test_one_cycle_needs_momentum():
    with pytest.raises(ValueError, match="cycle_momentum must have an optimizer with momentum or"):
        OneCycleLR(Optimizer([Parameter()], {"lr": 1.0}), 1.0, total_steps=9)


def test_base_needs_a_formula():
    optimizer = sgd()
    with pytest.raises(NotImplementedError, match="LRScheduler: a scheduler must define get_lr"):
        LRScheduler(optimizer)
    assert "initial_lr" not in optimizer.param_groups[0]
    assert lr_scheduler.StepLR is StepLR
