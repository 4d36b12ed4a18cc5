#!/usr/bin/env bash
# Numba 0.68.1 with NumPy 2.4.6: what a NamedTuple costs as the argument of a compiled function.
#
# The good guess: a NamedTuple is a tuple, so a call with one costs what a call with a plain tuple
# of the same values does. Seen: the type of nested plain tuples is found by a fingerprint in C, that
# of NamedTuples in Python, on each call, which then takes four to seven times as long. Inside
# compiled code the names cost nothing. A caller who keeps the plain form, and makes the names in
# compiled code from it, has both.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet numba==0.68.1 numpy==2.4.6
"$work/venv/bin/python" - <<'PYTHON'
import timeit
from typing import NamedTuple

import numba


class Size(NamedTuple):
    images: int
    height: int
    width: int
    channels: int


class Shapes(NamedTuple):
    source: Size
    target: Size
    stride: int


@numba.njit
def by_name(shapes):
    return shapes.source.height + shapes.target.width + shapes.stride


@numba.njit
def by_number(shapes):
    source, target, stride = shapes
    return source[1] + target[2] + stride


@numba.njit
def named_inside(shapes):
    source, target, stride = shapes
    shapes = Shapes(Size(*source), Size(*target), stride)
    return shapes.source.height + shapes.target.width + shapes.stride


named = Shapes(Size(8, 32, 32, 16), Size(8, 30, 30, 16), 1)
plain = (tuple(named.source), tuple(named.target), named.stride)
calls = {"NamedTuple": (by_name, named), "tuple": (by_number, plain), "named inside": (named_inside, plain)}
took = {}
for name, (function, value) in calls.items():
    assert function(value) == 63
    took[name] = min(timeit.repeat(lambda: function(value), number=20_000, repeat=9)) / 20_000
    print(f"{name:>12}: {1e6 * took[name]:.2f} us a call")
assert took["NamedTuple"] > 2.5 * took["tuple"], took
assert took["named inside"] < 1.5 * took["tuple"], took
print("as described")
PYTHON
