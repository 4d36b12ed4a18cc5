import fastlayers as fl
from fastlayers.vision.transforms import (
    Compose,
    Normalize,
    RandomApply,
    RandomChoice,
    RandomOrder,
    ToTensor,
)

STEPS = [lambda x: x + "a", lambda x: x + "b"]


def outcomes(transform):
    fl.manual_seed(0)
    found = [transform("") for _ in range(400)]
    return {text: found.count(text) for text in sorted(set(found))}


def test_what_each_does():
    assert outcomes(Compose(STEPS)) == {"ab": 400}
    applied = outcomes(RandomApply(STEPS, 0.25))
    assert set(applied) == {"", "ab"} and 65 < applied["ab"] < 135  # 100, deviation 9
    assert set(outcomes(RandomApply(STEPS, 1))) == {"ab"}
    chosen = outcomes(RandomChoice(STEPS))
    assert set(chosen) == {"a", "b"} and 160 < chosen["a"] < 240
    assert outcomes(RandomChoice(STEPS, p=[0, 3])) == {"b": 400}
    ordered = outcomes(RandomOrder(STEPS))
    assert set(ordered) == {"ab", "ba"} and 160 < ordered["ab"] < 240


def test_reprs():
    steps = [ToTensor(), Normalize(0.5, 1)]
    lines = "    ToTensor()\n    Normalize(mean=0.5, std=1)\n)"
    assert repr(Compose(steps)) == f"Compose(\n{lines}"
    assert repr(RandomApply(steps)) == f"RandomApply(\n    p=0.5\n{lines}"
    assert repr(RandomChoice(steps)) == f"RandomChoice(\n{lines}(p=None)"
    assert repr(RandomOrder(steps)) == f"RandomOrder(\n{lines}"
