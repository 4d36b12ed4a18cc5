"""What ranks run: `fit` as a script of one process would call it.

mpiexec -n 2 python fit_program.py '{"epochs": 2, ...}' FOLDER
"""

import json
import os
import signal
import sys
from pathlib import Path

import numpy as np

import fastlayers as fl
from fastlayers import nn
from fastlayers.data import DataLoader, DistributedSampler, RandomShift, TensorDataset

# Batches of 8, the last of 2: with three ranks one has nothing of it.
OPTIONS = {"epochs": 3, "samples": 26, "dropout": 0.3, "sampler": False, "kill": None}


class Killing:
    """Batches, in one of which rank 1 is killed."""

    def __init__(self, batches, number):
        self.batches, self.loader, self.left = batches, batches.loader, number
        self.is_distributed = batches.is_distributed

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        return self.part(0, 1)

    def part(self, rank, ranks):
        for batch in self.batches.part(rank, ranks):
            if self.left == 0 and rank == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            self.left = None if self.left is None else self.left - 1
            yield batch


def main(options, folder):
    fl.manual_seed(1)
    rng = np.random.default_rng(0)
    images = rng.standard_normal((options["samples"], 1, 6, 6), np.float32)
    data = TensorDataset(images, rng.integers(0, 3, options["samples"]))
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2),
        nn.Dropout2d(options["dropout"]), nn.Flatten(), nn.Linear(36, 3),
    )  # fmt: skip
    if options["sampler"]:
        fl.distributed.init()
        loader = DataLoader(data, 3, sampler=DistributedSampler(data, seed=4))
    else:
        loader = DataLoader(data, 8, shuffle=True)
    optimizer = fl.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    folder = Path(folder)
    history = fl.training.fit(
        model,
        nn.CrossEntropyLoss(),
        optimizer,
        Killing(RandomShift(loader, 1), options["kill"]),
        DataLoader(data, 12),
        options["epochs"],
        scheduler=fl.optim.CosineAnnealingLR(optimizer, 3),
        checkpoint=folder / "best.npz",
        resume=folder / "last.npz",
        on_epoch=lambda found: print("epoch", found["epoch"]),
    )
    if fl.distributed.rank() == 0:
        (folder / "history.json").write_text(json.dumps(history.epochs))


if __name__ == "__main__":
    main(OPTIONS | json.loads(sys.argv[1]), sys.argv[2])
