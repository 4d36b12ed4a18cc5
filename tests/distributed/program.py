"""What ranks run: some steps of training on parts of batches that are the same everywhere.

    mpiexec -n 2 python program.py '{"steps": 20, ...}' FILE

Without ``mpiexec`` one process trains on the whole batches. Rank 0 saves the state, and that of
all ranks must be equal to the bit.
"""

import hashlib
import json
import sys

import numpy as np

import fastlayers as fl
from fastlayers import distributed, nn

OPTIONS = {
    "steps": 20,
    "dtype": "float32",
    "batch": 12,
    "parts": None,  # samples of each rank and step; equal ones by default
    "bucket_cap_mb": 0.01,
    "norm": "sync",
    "accumulate": 1,
    "model": "small",
}


class Small(nn.Module):
    """A convolutional network with batch normalisation in two ranks, and a skip."""

    def __init__(self):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv2, self.norm2 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.fc1, self.norm3, self.fc2 = nn.Linear(128, 32), nn.BatchNorm1d(32), nn.Linear(32, 5)
        self.never_used = nn.Linear(2, 2)

    def forward(self, x):
        x = nn.functional.relu(self.norm1(self.conv1(x)))
        x = nn.functional.relu(self.norm2(self.conv2(x)) + x)
        x = nn.functional.max_pool2d(x, 2)
        return self.fc2(nn.functional.relu(self.norm3(self.fc1(x.flatten(1)))))


class Plain(nn.Module):
    """Without normalisation; the second layer is used by some ranks only, and shared."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(256, 5)
        self.extra = nn.Linear(256, 5)

    def forward(self, x):
        x = nn.functional.relu(self.conv(x)).flatten(1)
        y = self.fc(x)
        return y


MODELS = {"small": Small, "plain": Plain}


def batch(step, options):
    """Images and labels of a step, the same on all ranks."""
    generator = np.random.default_rng((7, step))
    x = generator.standard_normal((options["batch"], 3, 8, 8)).astype(options["dtype"])
    return x, generator.integers(0, 5, options["batch"])


def part(step, options):
    """First and last sample of this rank."""
    ranks, size = distributed.world_size(), options["batch"]
    if ranks == 1:
        return 0, size
    parts = options["parts"]
    lengths = parts[step % len(parts)] if parts else [size // ranks] * ranks
    assert sum(lengths) == size
    first = sum(lengths[: distributed.rank()])
    return first, first + lengths[distributed.rank()]


def main(options, path):
    distributed.init()
    fl.manual_seed(3 + distributed.rank())  # the initial state is rank 0's all the same
    model = MODELS[options["model"]]().to(options["dtype"])
    if options["norm"] == "sync":
        model = distributed.convert_sync_batchnorm(model)
    ddp = distributed.DistributedDataParallel(model, bucket_cap_mb=options["bucket_cap_mb"])
    optimizer = fl.optim.SGD(ddp.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)
    loss = nn.CrossEntropyLoss()
    for step in range(options["steps"]):
        x, target = batch(step, options)
        first, last = part(step, options)
        if step % options["accumulate"] == 0:
            optimizer.zero_grad()
        if (step + 1) % options["accumulate"]:
            with ddp.no_sync():
                loss(ddp(x[first:last]), target[first:last]).backward()
            continue
        loss(ddp(x[first:last]), target[first:last]).backward()
        optimizer.step()
    state = model.state_dict()
    bits = hashlib.sha256(b"".join(v.numpy().tobytes() for v in state.values()))
    own = bits.hexdigest()
    if distributed.world_size() > 1:
        assert distributed.Channel().broadcast_text(own) == own, "other bits than rank 0's"
    if distributed.rank() == 0:
        fl.save(state, path)
    print(distributed.rank(), own)


if __name__ == "__main__":
    main(OPTIONS | json.loads(sys.argv[1]), sys.argv[2])
