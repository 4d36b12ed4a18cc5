"""Random float32 results are within derived bounds of those of float64; see `rounding`."""

from typing import Any

import pytest
import random_cases
from cases import Case, norm
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from rounding import UNIT, errors

# For each kind of case the function that makes them, the kind of data, and the algorithm.
KINDS = {
    "conv2d": (random_cases.conv_cases, "normal", "auto"),
    "conv2d of wide ranges": (random_cases.conv_cases, "wide", "auto"),
    "Winograd F(2x2)": (random_cases.winograd_cases, "normal", "F(2x2)"),
    "Winograd F(4x4)": (random_cases.winograd_cases, "normal", "F(4x4)"),
    "Winograd F(4,5)": (random_cases.winograd_rows_cases, "normal", "F(4,5)"),
    "long sums": (random_cases.long_sum_cases, "normal", "auto"),
    "linear": (random_cases.linear_cases, "wide", "auto"),
    "max_pool2d": (random_cases.max_pool_cases, "wide", "auto"),
    "avg_pool2d": (random_cases.avg_pool_cases, "wide", "auto"),
    "adaptive_avg_pool2d": (random_cases.adaptive_cases, "wide", "auto"),
    "batch_norm": (random_cases.norm_cases, "normal", "auto"),
    "batch_norm far from 0": (random_cases.norm_cases, "far", "auto"),
    "dropout": (random_cases.dropout_cases, "wide", "auto"),
    "activations": (random_cases.activation_cases, "normal", "auto"),
    "softmax": (random_cases.softmax_cases, "normal", "auto"),
    "losses of classes": (random_cases.label_cases, "normal", "auto"),
    "losses of elements": (random_cases.elementwise_loss_cases, "normal", "auto"),
}


REPLAY = """{} takes {:.4g} of its bound; to see it again:
PYTHONPATH=tests python -c "from rounding import *; print(errors({!r}, {}, {!r}, {!r}))"
"""


def within_bounds(*arguments: Any) -> dict[str, tuple[float, float]]:
    """Give what `errors` gives if no bound is passed; otherwise say how to see the case again."""
    found = errors(*arguments)
    for name, (share, _) in found.items():
        assert share <= 1, REPLAY.format(name, share, *arguments)
    return found


@pytest.mark.parametrize("shape", [(2048, 256), (128, 16, 32, 32), (32, 64, 28, 28)], ids=str)
def test_batch_norm_of_layers(shape, figures):
    """As many values as layers have, and channels of which some begin far from their mean."""
    for seed in range(5):
        found = within_bounds(norm(shape, training=True), seed, "normal", "auto")
        error = found["y"][1] * 2 * UNIT
        figures.most("error bounds", "largest relative error of y, batch_norm of layers", error)


@pytest.mark.parametrize("name", KINDS)
def test_random_cases(name, effort, figures):
    make, kind, algorithm = KINDS[name]
    count, long = effort((50, False), (3000, True))  # 51,000 in all, 3 minutes
    shares = []

    @st.composite
    def cases(draw: st.DrawFn) -> Case:
        return make(lambda *choices: draw(st.sampled_from(choices)))

    # The short form tries the same cases in each run, the long one others.
    @settings(
        max_examples=count,
        derandomize=not long,
        database=None,
        deadline=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(cases(), st.integers(0, 2**32 - 1))
    def holds(case: Case, seed: int) -> None:
        found = within_bounds(case, seed, kind, algorithm)
        shares.append(max(share for share, _ in found.values()))
        figures.most("error bounds", f"largest share of the bound, {name}", shares[-1])
        if case.op == "batch_norm":
            for result in ("y", "invstd"):
                error = found[result][1] * 2 * UNIT
                figures.most("error bounds", f"largest relative error of {result}, {name}", error)

    holds()
    figures.count("error bounds", "random cases", len(shares))
    assert len(shares) >= count
