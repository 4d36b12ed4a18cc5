"""The comparisons of `benchmarks/compare`: same work everywhere, and no row lost."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest

import fastlayers as fl

sys.path.append(str(Path(__file__).parents[1]))

from benchmarks.compare import curve, models
from benchmarks.compare.cases import CASES, initial_value
from benchmarks.compare.contestants import Start
from benchmarks.compare.harness import Contestant

# Those of 224x224 pixels take gigabytes.
SMALL = list({c.factory + str(c.options): c for c in CASES if c.shape[-1] < 224}.values())


def shapes(model):
    return {name: tuple(np.shape(value)) for name, value in model.state_dict().items()}


def ours(case):
    model = getattr(fl.models, case.factory)(**case.options)
    model.load_state_dict({name: initial_value(name, s) for name, s in shapes(model).items()})
    return model


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)
def test_torch_models_are_those_of_the_library(case):
    pytest.importorskip("torch")
    from benchmarks.compare.torch_models import torch_models

    theirs = torch_models()[case.factory](**case.options)
    assert shapes(theirs) == shapes(ours(case))


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)
def test_jax_models_have_the_library_s_losses(case):
    jax = pytest.importorskip("jax")
    from benchmarks.compare import jax_models

    def apply(net, x):
        return jax_models.MODELS[case.factory](net, x, case.classes, **case.options)

    [(x, y)] = case.at(4).batches(1)
    images = np.moveaxis(x, 1, -1)
    values, buffers = jax_models.initial_values(apply, images)
    loss, _ = jax.jit(jax_models.loss_function, static_argnums=0)(
        apply, values, buffers, None, images, y
    )
    model = ours(case)
    parameters = {name for name, _ in model.named_parameters()}
    assert set(values) == parameters
    for module in model.modules():
        if hasattr(module, "p"):
            module.p = 0.0
    expected = fl.nn.CrossEntropyLoss()(model(fl.tensor(x)), fl.tensor(y)).item()
    assert float(loss) == pytest.approx(expected, abs=1e-5)


def test_failures_name_the_contestant():
    contestants = [Contestant("divider", divmod, 7), Contestant("ender", os._exit, 3)]
    contestants[0].prepare(2)
    assert contestants[0].value == 1
    with pytest.raises(RuntimeError, match="divider failed: ZeroDivisionError"):
        contestants[0].prepare(0)
    with pytest.raises(RuntimeError, match="ender failed: its process ended, code 3"):
        contestants[1].prepare()
    for contestant in contestants:
        contestant.close()


class Told:
    def __init__(self, name, losses, parameters=7):
        self.name, self.value = name, Start(losses, parameters, 0)


def test_other_work_is_taken_out():
    right = [Told("fastlayers", [2.0, 1.5]), Told("torch", [2.00001, 1.5005])]
    wrong = [Told("compile", [2.0, 1.6]), Told("jax", [2.0, np.nan]), Told("x", [2.0, 1.5], 8)]
    contestants, errors = [*right, *wrong, Told("bfloat16", [2.02, 1.48])], {}
    models._check(contestants, errors)
    assert [c.name for c in contestants] == ["fastlayers", "torch", "bfloat16"]
    assert set(errors) == {"compile", "jax", "x"}


def test_tables_keep_a_row_of_failures():
    record = {"seconds": 0.002, "spread": 0.1, "images_per_second": 2000.0}
    record |= {"peak_bytes": 3e8, "bytes_before": 1e8}
    row = {"model": "M", "batch": 4, "threads": 1, "errors": {"jax": "no jax"}}
    row["contestants"] = {"fastlayers": record, "torch": record | {"seconds": 0.006}}
    text = models.report([row], ["fastlayers", "torch", "jax"])
    assert "| M | 4 | 1 | 2 (10%) | 6 (10%) | failed | 2000 | 3.00 |" in text
    assert "| M | 4 | 1 | 300 (200) | 300 (200) | failed |" in text
    assert "jax: no jax" in text


def test_curves_are_judged_by_torch_s_own_spread():
    base = np.linspace(2, 1, 50)
    runs = {"fastlayers": base, "torch a": base + 0.02, "torch b": base - 0.01}
    lines, follows = curve.judge(runs)
    assert follows
    assert len(lines) == 3
    assert not curve.judge(runs | {"fastlayers": base + 0.1})[1]
    assert curve.gap(base, base + 0.5) == pytest.approx((0.5, 0.5))
    assert curve.agreement(base, base) == 50
    assert curve.agreement(base, base + np.arange(50) * 1e-4) == 11


def test_batches_of_digits():
    batches = curve.make_batches("digits", 50, 0)
    assert len(batches) == 50
    assert {x.shape for x, _ in batches} == {(32, 3, 32, 32)}
