#!/usr/bin/env bash
# PyTorch 2.13.0, nn.BatchNorm1d(momentum=None): the cumulative average of the running statistics.
#
# A batch of one value per channel is refused in training, with a ValueError. The good guess: a
# refused batch leaves the layer as it was. Seen: the batch has been counted. A program that catches
# the error and goes on (a last batch of one sample) has running statistics that are off for good:
# after one batch of mean 3 the running mean is 1.5. An empty batch is accepted, normalised to
# nothing, leaves mean and variance alone, and is counted too.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy
"$work/venv/bin/python" - <<'PYTHON'
import torch
from torch import nn

assert torch.__version__.startswith("2.13.0"), torch.__version__
layer = nn.BatchNorm1d(1, momentum=None)
try:
    layer(torch.tensor([[7.0]]))
except ValueError as error:
    print("one value per channel:", error)
else:
    raise SystemExit("a batch of one value per channel is no longer refused")
print("counted:", int(layer.num_batches_tracked), "mean:", layer.running_mean.item())
assert int(layer.num_batches_tracked) == 1 and layer.running_mean.item() == 0

layer(torch.tensor([[2.0], [4.0]]))
print("after one accepted batch of mean 3:", layer.running_mean.item())
assert layer.running_mean.item() == 1.5

layer = nn.BatchNorm1d(1, momentum=None)
layer(torch.empty(0, 1))
print("empty batch: counted", int(layer.num_batches_tracked), "mean", layer.running_mean.item())
assert int(layer.num_batches_tracked) == 1 and layer.running_mean.item() == 0
layer(torch.tensor([[2.0], [4.0]]))
assert layer.running_mean.item() == 1.5
print("as described")
PYTHON
