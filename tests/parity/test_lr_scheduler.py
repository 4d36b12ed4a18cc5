"""Schedules against PyTorch's: several on one optimiser, rates set by hand, states, later ones."""

import copy
import random

import numpy as np
import pytest

from fastlayers import optim

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
STEPS = 200


class Halving:
    """A rule with a state."""

    def __init__(self, length):
        self.length = length

    def __call__(self, epoch):
        return 0.5 ** (epoch // self.length)


RULES = {
    "StepLR": lambda r: {"step_size": r.randint(1, 40), "gamma": r.choice([0.1, 0.7, 0.97])},
    "MultiStepLR": lambda r: {"milestones": r.choices(range(STEPS), k=5), "gamma": 0.3},
    "ExponentialLR": lambda r: {"gamma": r.choice([0.9, 0.99, 1.0])},
    "CosineAnnealingLR": lambda r: {"T_max": r.randint(1, 90), "eta_min": r.choice([0, 1e-3])},
    "ConstantLR": lambda r: {"factor": r.choice([1 / 3, 0.5]), "total_iters": r.randint(1, 60)},
    "LinearLR": lambda r: {
        "start_factor": r.choice([1e-3, 1 / 3, 1.0]),
        "end_factor": r.choice([0.1, 1.0]),
        "total_iters": r.randint(1, 60),
    },
    "LambdaLR": lambda r: {"lr_lambda": Halving(r.randint(1, 30))},
    "OneCycleLR": lambda r: {
        "max_lr": r.choice([0.5, [0.5, 0.2]]),
        "total_steps": 2 * STEPS,
        "pct_start": r.choice([0.3, 0.45]),
        "anneal_strategy": r.choice(["cos", "linear"]),
        "cycle_momentum": r.random() < 0.5,
        "three_phase": r.random() < 0.5,
    },
}
CHAINABLE = [name for name in RULES if name not in ("LambdaLR", "OneCycleLR")]


class Side:
    """One of the two libraries: an optimiser of two groups, and its schedulers."""

    def __init__(self, module, parameter):
        self.module, self.parameter = module, parameter
        self.optimizer = self.new_optimizer()
        self.schedulers = []

    def new_optimizer(self):
        groups = [{"params": [self.parameter()]}, {"params": [self.parameter()], "lr": 0.07}]
        return self.module.SGD(groups, lr=0.3, momentum=0.9)

    def add(self, name, options, **more):
        make = getattr(self.module.lr_scheduler, name)
        self.schedulers.append(make(self.optimizer, **copy.deepcopy(options), **more))

    def reload(self, made):
        """Go on with new objects, made in the same way, from the states of the old."""
        states = [s.state_dict() for s in self.schedulers]
        state, self.optimizer = self.optimizer.state_dict(), self.new_optimizer()
        self.schedulers = []
        for name, options in made:
            self.add(name, options)
        self.optimizer.load_state_dict(state)
        for scheduler, own in zip(self.schedulers, states, strict=True):
            scheduler.load_state_dict(own)

    def values(self):
        groups = [[float(g["lr"]), g["momentum"]] for g in self.optimizer.param_groups]
        return groups, [s.get_last_lr() for s in self.schedulers]


def sides():
    own = optim, lambda: __import__("fastlayers").nn.Parameter(np.ones(2, np.float32))
    return Side(*own), Side(torch.optim, lambda: torch.nn.Parameter(torch.ones(2)))


def draw_made(draw):
    count = draw.choice([1, 2, 3])
    names = draw.choices(CHAINABLE, k=count) if count > 1 else [draw.choice(list(RULES))]
    return [(name, RULES[name](draw)) for name in names]


def same(first, second):
    assert first.values() == second.values()  # to the bit


@pytest.mark.parametrize("seed", range(60))
def test_long_runs_equal_torch_to_the_bit(seed):
    draw = random.Random(seed)
    pair = sides()
    made = draw_made(draw)
    for side in pair:
        for name, options in made:
            side.add(name, options)
    for _ in range(STEPS):
        same(*pair)
        happens, lr, index = draw.random(), draw.uniform(0.001, 1), draw.randrange(2)
        new = draw.choice(CHAINABLE)
        new = new, RULES[new](draw)
        made += [new] if 0.05 < happens < 0.06 else []
        for side in pair:
            if happens < 0.03:
                side.optimizer.param_groups[index]["lr"] = lr
            elif happens < 0.05:
                # A cosine below its eta_min can cross 0: no optimiser here takes such a rate.
                if min(group["lr"] for group in side.optimizer.param_groups) >= 0:
                    side.reload(made)
            elif happens < 0.06:
                side.add(*new)
            for scheduler in side.schedulers:
                scheduler.step()
    same(*pair)


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("seed", range(4))
def test_resumed_by_last_epoch(name, seed):
    draw, pair = random.Random(seed), sides()
    options, last = RULES[name](draw), draw.randint(0, 90)
    for side in pair:
        side.add(name, options)
        for _ in range(last):
            side.schedulers[0].step()
        state, side.optimizer = side.optimizer.state_dict(), side.new_optimizer()
        side.optimizer.load_state_dict(state)
        side.schedulers = []
        side.add(name, options, last_epoch=last)
    for _ in range(60):
        same(*pair)
        for side in pair:
            side.schedulers[0].step()


@pytest.mark.parametrize("name", RULES)
def test_states_of_torch_are_taken(name):
    draw, (ours, theirs) = random.Random(5), sides()
    options = RULES[name](draw)
    for side in (ours, theirs):
        side.add(name, options)
    for _ in range(37):
        theirs.schedulers[0].step()
    ours.optimizer.load_state_dict(theirs.optimizer.state_dict())
    ours.schedulers[0].load_state_dict(theirs.schedulers[0].state_dict())
    for _ in range(60):
        same(ours, theirs)
        for side in (ours, theirs):
            side.schedulers[0].step()


@pytest.mark.parametrize("name", [n for n in CHAINABLE if n != "MultiStepLR"] + ["MultiStepLR"])
def test_step_to_an_epoch_equals_torch(name):
    draw, pair = random.Random(3), sides()
    options = RULES[name](draw)
    for side in pair:
        side.add(name, options)
    for epoch in (7, 3, 100, 0, 64):
        for side in pair:
            side.schedulers[0].step(epoch)
        same(*pair)
        for side in pair:
            side.schedulers[0].step()
        same(*pair)


@pytest.mark.parametrize("seed", range(12))
def test_sequential_equals_torch(seed):
    draw, pair = random.Random(seed), sides()
    names = draw.choices([n for n in RULES if n != "OneCycleLR"], k=3)
    options = [RULES[name](draw) for name in names]
    milestones = sorted(draw.sample(range(1, 90), 2))
    for side in pair:
        for name, own in zip(names, options, strict=True):
            side.add(name, own)
        parts = side.schedulers
        side.schedulers = []
        side.add("SequentialLR", {}, schedulers=parts, milestones=milestones)
    for step in range(120):
        same(*pair)
        for side in pair:
            if step == 40:
                sequence = side.schedulers[0]
                sequence.load_state_dict(copy.deepcopy(sequence.state_dict()))
            side.schedulers[0].step()


@pytest.mark.parametrize("seed", range(16))
def test_plateau_equals_torch(seed):
    draw, pair = random.Random(seed), sides()
    options = {
        "mode": draw.choice(["min", "max"]),
        "factor": draw.choice([0.1, 0.5]),
        "patience": draw.randint(0, 3),
        "threshold": draw.choice([1e-4, 0.1]),
        "threshold_mode": draw.choice(["rel", "abs"]),
        "cooldown": draw.randint(0, 2),
        "min_lr": draw.choice([0, 1e-3, [1e-2, 1e-3]]),
        "eps": draw.choice([1e-8, 1e-2]),
    }
    for side in pair:
        side.add("ReduceLROnPlateau", options)
    for step in range(80):
        loss = draw.choice([draw.uniform(-1, 1), np.float32(0.5), float("nan")])
        for side in pair:
            if step == 30:
                state = side.schedulers[0].state_dict()
                side.schedulers = []
                side.add("ReduceLROnPlateau", options)
                side.schedulers[0].load_state_dict(state)
            side.schedulers[0].step(loss)
        same(*pair)
        assert pair[0].schedulers[0].num_bad_epochs == pair[1].schedulers[0].num_bad_epochs


def test_group_added_later():
    pair = sides()
    for side in pair:
        side.add("StepLR", {"step_size": 2, "gamma": 0.5})
        side.optimizer.add_param_group({"params": [side.parameter()], "lr": 0.8})
        for _ in range(3):
            side.schedulers[0].step()
    same(*pair)
