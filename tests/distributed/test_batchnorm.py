"""`SyncBatchNorm` on real MPI processes; `tests/nn/test_sync_batchnorm.py` has all of its cases."""

import json

import pytest

PROGRAM = """
import json
import sys

import numpy as np

import fastlayers as fl
from fastlayers import distributed, nn
from fastlayers.nn import functional as F

distributed.init()
parts, dtype, bound = json.loads(sys.argv[1]), np.dtype(sys.argv[2]), float(sys.argv[3])
rank, samples, channel = distributed.rank(), sum(parts), distributed.Channel()
first = sum(parts[:rank])
mine, share = slice(first, first + parts[rank]), parts[rank] / samples


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(6, dtype=dtype), nn.BatchNorm2d(6, dtype=dtype)
        self.norm3 = nn.BatchNorm1d(6, momentum=None, dtype=dtype)
        for number, p in enumerate(self.parameters()):
            p.data[...] = np.linspace(0.5, 1 + 0.1 * number, 6)

    def forward(self, x):
        y = F.relu(self.norm1(x))
        y = F.max_pool2d(F.relu(self.norm2(y) + x), 2)
        return self.norm3(y.flatten(2))


def close(value, expected):
    value, expected = np.asarray(value), np.asarray(expected)
    scale = max(np.abs(expected).max(initial=0), 0.1)
    np.testing.assert_allclose(value / scale, expected / scale, rtol=0, atol=bound)


rng = np.random.default_rng(0)
alone, model = Net(), distributed.convert_sync_batchnorm(Net())
for step in range(3):
    x = (rng.standard_normal((samples, 6, 8, 8)) * 3 + 1).astype(dtype)
    dy = rng.standard_normal((samples, 6, 16))
    whole, part = fl.Tensor(x, True), fl.Tensor(x[mine].copy(), True)
    expected, y = alone(whole), model(part)
    expected.backward((dy / samples).astype(dtype))
    y.backward((dy[mine] / max(parts[rank], 1)).astype(dtype))
    close(y.array(), expected.array()[mine])
    close(part.grad * share, whole.grad[mine])
for p, wanted in zip(model.parameters(), alone.parameters(), strict=True):
    grad = p.grad.numpy() * share
    channel.sum(grad)
    close(grad, wanted.grad)
for value, wanted in zip(model.buffers(), alone.buffers(), strict=True):
    close(value, wanted)
    own = np.array(value)
    channel.broadcast(value.numpy())
    assert value.numpy().tobytes() == own.tobytes(), "other bits than rank 0's"
norm = distributed.SyncBatchNorm(3)
try:  # one value a channel in all
    norm(np.ones((int(rank == 0), 3), np.float32))
except ValueError as error:
    assert "got 1 in all parts" in str(error) and not norm.num_batches_tracked
    print("passed")
"""


@pytest.mark.parametrize(
    ("parts", "dtype", "bound"),
    [
        ([4, 4], "float32", 1e-5),
        ([7, 0, 1], "float64", 1e-10),
        ([1, 3, 0, 5], "float32", 1e-5),
        ([6, 1, 1, 1], "float64", 1e-10),
    ],
    ids=str,
)
def test_ranks_normalise_as_one_process_does_all(ranks, parts, dtype, bound):
    out = ranks(len(parts), PROGRAM, json.dumps(parts), dtype, bound)
    assert out.split() == ["passed"] * len(parts)
