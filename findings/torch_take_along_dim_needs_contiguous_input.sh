#!/usr/bin/env bash
# PyTorch 2.13.0, torch.take_along_dim(input, indices) without dim, on a transposed tensor.
#
# Without dim the documentation takes the input as if it were flattened, as numpy.take_along_axis
# does with axis None. The good guess: any tensor can be flattened. Seen: a RuntimeError about view,
# of a tensor that no view was asked of, unless the input is contiguous.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
"$work/venv/bin/python" - <<'PYTHON'
import numpy as np
import torch

assert torch.__version__.startswith("2.13.0"), torch.__version__
x, index = torch.arange(6.0).reshape(2, 3).T, torch.tensor([1, 4])
expected = np.take_along_axis(x.numpy(), index.numpy(), None)
print("numpy, transposed:", expected)
assert np.array_equal(torch.take_along_dim(x.contiguous(), index).numpy(), expected)
try:
    torch.take_along_dim(x, index)
except RuntimeError as error:
    print("torch, transposed:", error)
    assert "view size is not compatible" in str(error)
else:
    raise SystemExit("a transposed tensor is taken now")
print("as described")
PYTHON
