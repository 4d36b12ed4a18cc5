"""How far results in float32 may be from those of float64: a bound for each op and result.

All bounds have the form ``2 K 2^-24 S``: K roundings, each of at most 2^-24 of what is rounded,
which is at most S, the sum of the absolute values of what is added. S is found for each element, by
the reference on absolute values where the op is a sum of products. K and S are the `bound` of the
op's spec.
"""

import numpy as np
from specs.spec import Arrays, Bounds, Case, like

from fastlayers import ops, reference

UNIT = 2.0**-24


def errors(
    case: Case, seed: int = 0, kind: str = "normal", algorithm: str = "auto"
) -> dict[str, tuple[float, float]]:
    """Give the largest error of each result, as a share of its bound and in ulps of its magnitude.

    `algorithm` is "auto", or one of the spec's.
    """
    arrays = case.arrays(np.float32, kind, seed)
    wide = {
        name: a.astype(np.float64) if a.dtype == np.float32 else a for name, a in arrays.items()
    }
    module, factor = ops, 1.0
    if algorithm != "auto":
        make, factor = case.spec.algorithms[algorithm]
        module = make()
    got = case.run(module, arrays)
    want = case.run(reference, wide)
    found = {}
    for name, (terms, magnitude) in bounds(case, wide, want).items():
        ulp = np.maximum(2 * UNIT * magnitude, np.finfo(np.float32).tiny)
        with np.errstate(invalid="ignore"):  # infinite maxima of empty windows
            difference = np.abs(got[name].astype(np.float64) - want[name])
        same = (got[name] == want[name]) | (np.isnan(got[name]) & np.isnan(want[name]))
        ulps = np.where(same, 0, difference / ulp)
        found[name] = (
            float(np.max(ulps / np.maximum(factor * np.asarray(terms), UNIT), initial=0)),
            float(np.max(ulps, initial=0)),
        )
    assert found.keys() == got.keys() == want.keys()
    return found


def bounds(case: Case, a: Arrays, want: Arrays) -> Bounds:
    """Terms and magnitude of each result, of arguments and results in float64."""
    return case.spec.bound(case, a, want["y"], np.abs(like(want["y"])), want)
