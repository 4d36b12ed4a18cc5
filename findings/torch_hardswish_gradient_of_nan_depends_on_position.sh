#!/usr/bin/env bash
# PyTorch 2.13.0, nn.functional.hardswish on the CPU: the gradient of NaN.
#
# The good guess: the gradient of a NaN is NaN, as that of silu or gelu, or at least the same for
# equal elements. Seen: it depends on where the element stands. What whole vectors compute is NaN;
# what is left behind them, computed element by element, is 1, since a comparison with NaN is false
# and the last branch, that of inputs above 3, is taken. So a test with a handful of NaN passes or
# fails by the length of its array, and a NaN in the tail is lost on the way back.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy
"$work/venv/bin/python" - <<'PYTHON'
import torch
from torch.nn import functional as F

assert torch.__version__.startswith("2.13.0"), torch.__version__


def gradients(function, length):
    x = torch.full((length,), float("nan"), requires_grad=True)
    function(x).sum().backward()
    return x.grad


for length in (1, 3, 67):
    found = gradients(F.hardswish, length)
    nan = torch.isnan(found)
    print(f"hardswish, {length} NaN: {int(nan.sum())} gradients are NaN, the others", set(found[~nan].tolist()))
    assert set(found[~nan].tolist()) == {1.0}
    assert bool(nan.any()) == (length == 67)
assert torch.isnan(gradients(F.hardswish, 67))[:4].all()
for function in (F.silu, F.gelu):
    assert torch.isnan(gradients(function, 67)).all()
print("as described")
PYTHON
