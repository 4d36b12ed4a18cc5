"""Random float32 results are within derived bounds of those of float64; see `rounding`."""

from typing import Any

import pytest
from cases import Case
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from rounding import UNIT, errors
from specs import SPECS
from specs.batchnorm import norm

# What is drawn of each op.
KINDS = {
    f"{spec.op} {random.note}".strip(): random for spec in SPECS.values() for random in spec.random
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
    make, _, data, algorithm, _ = KINDS[name]
    count, long = effort((50, False), (3000, True))
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
        found = within_bounds(case, seed, data, algorithm)
        shares.append(max(share for share, _ in found.values()))
        figures.most("error bounds", f"largest share of the bound, {name}", shares[-1])
        if case.op == "batch_norm":
            for result in ("y", "invstd"):
                error = found[result][1] * 2 * UNIT
                figures.most("error bounds", f"largest relative error of {result}, {name}", error)

    holds()
    figures.count("error bounds", "random cases", len(shares))
    assert len(shares) >= count
