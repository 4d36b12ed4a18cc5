"""Optimisers and schedules against PyTorch's, over random options."""

import random

import numpy as np
import pytest

from fastlayers import nn, optim

torch = pytest.importorskip("torch")

TOLERANCE = {np.float32: 2e-5, np.float64: 1e-11}


def optimizer_options(draw, name):
    options = {"lr": draw.choice([1e-3, 0.1]), "weight_decay": draw.choice([0, 0.1])}
    options["maximize"] = draw.random() < 0.5
    if name == "Adadelta":
        return options | {"rho": draw.choice([0.0, 0.5, 0.9, 1.0]), "eps": 1e-4}
    if name != "SGD":
        betas = draw.choice([(0.9, 0.999), (0.5, 0.9), (0.0, 0.99)])
        return options | {"betas": betas, "eps": 1e-4, "amsgrad": draw.random() < 0.5}
    options["momentum"] = draw.choice([0, 0.5, 0.9])
    if options["momentum"] and draw.random() < 0.5:
        return options | {"nesterov": True}
    return options | {"dampening": draw.choice([0, 0.3])}


def scheduler_options(draw, optimizer):
    name = draw.choice([None, "StepLR", "MultiStepLR", "CosineAnnealingLR", "OneCycleLR"])
    return name, {
        "StepLR": {"step_size": draw.randint(1, 4), "gamma": draw.choice([0.1, 0.9])},
        "MultiStepLR": {"milestones": draw.choices(range(12), k=3), "gamma": 0.5},
        "CosineAnnealingLR": {"T_max": draw.randint(1, 12), "eta_min": draw.choice([0.0, 0.01])},
        "OneCycleLR": {
            "max_lr": draw.choice([0.1, [0.1, 0.2]]),
            "total_steps": draw.randint(12, 20),
            "pct_start": draw.choice([0.3, 0.45]),
            "anneal_strategy": draw.choice(["cos", "linear"]),
            "cycle_momentum": draw.random() < 0.7,
            "three_phase": draw.random() < 0.5,
            "div_factor": draw.choice([25.0, 4.0]),
        }
        | ({"cycle_momentum": False} if optimizer == "Adadelta" else {}),
    }.get(name, {})


def build(module, name, params, options, schedule, schedule_options):
    groups = [{"params": params[:1]}, {"params": params[1:], "lr": 0.05}]
    optimizer = getattr(module, name)(groups, **options)
    if schedule is None:
        return optimizer, None
    return optimizer, getattr(module.lr_scheduler, schedule)(optimizer, **schedule_options)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("seed", range(64))
def test_equals_torch(seed):
    draw, rng = random.Random(seed), np.random.default_rng(seed)
    dtype = draw.choice(list(TOLERANCE))
    name = draw.choice(["SGD", "Adam", "AdamW", "Adadelta"])
    options, schedule = optimizer_options(draw, name), scheduler_options(draw, name)
    starts = [np.asarray(rng.standard_normal(shape), dtype) for shape in [(3, 5), (), (17,)]]
    ours = [nn.Parameter(start.copy()) for start in starts]
    theirs = [torch.nn.Parameter(torch.tensor(start)) for start in starts]
    first = build(optim, name, ours, options, *schedule)
    second = build(torch.optim, name, theirs, options, *schedule)
    for _ in range(12):
        for p, q in zip(ours, theirs, strict=True):
            gradient = np.asarray(rng.standard_normal(p.shape), dtype)
            p.grad, q.grad = gradient, torch.tensor(gradient)
        compare(first, second, ours, theirs, TOLERANCE[dtype])


def compare(first, second, ours, theirs, tolerance):
    for optimizer, scheduler in (first, second):
        optimizer.step()
        if scheduler:
            scheduler.step()
    for p, q in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(p.array(), q.detach().numpy(), rtol=tolerance, atol=tolerance)
    for mine, other in zip(first[0].param_groups, second[0].param_groups, strict=True):
        for option in {"lr", "momentum", "betas"} & mine.keys():
            np.testing.assert_allclose(mine[option], other[option], rtol=1e-12, atol=1e-17)
