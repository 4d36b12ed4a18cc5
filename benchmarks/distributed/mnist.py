"""MNIST on several ranks with few threads, and on one rank with all: wall time and accuracy.

    pip install -e ".[mpi,train]"
    python -m benchmarks.distributed.mnist --data-dir FOLDER [--ranks 2] [--threads 1] [--epochs 3]
        [--rounds 3]

Both are `python -m fastlayers train` with the same batches over all ranks, as separate processes
that take turns. The wall time is that of the epochs, training and validation, after a first run of
each that compiles; that of the whole command is given beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.compare.harness import table

__all__ = ["main"]

# For Open MPI, ignored by other launchers: a container's user is root.
AS_ROOT = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
Run = tuple[float, float, float]


def run(ranks: int, threads: int, options: argparse.Namespace, epochs: int) -> Run:
    """Seconds of training and of the whole command, and the best accuracy."""
    command = [sys.executable, "-m", "fastlayers", "train", "--data", "mnist"]
    command += ["--data-dir", str(options.data_dir), "--epochs", str(epochs)]
    if ranks > 1:
        here = str(Path(sys.executable).parent)
        mpiexec = shutil.which("mpiexec", path=here) or shutil.which("mpiexec")
        if mpiexec is None:
            raise FileNotFoundError("mpiexec: pip install 'fastlayers[mpi]'")
        command = [mpiexec, "-n", str(ranks), *command]
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        subprocess.run(
            [*command, "--threads", str(threads), "--out", folder],
            check=True,
            env=os.environ | AS_ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        whole = time.perf_counter() - begin
        epochs_done = json.loads(Path(folder, "history.json").read_text())["epochs"]
    trained = sum(epoch["seconds"] for epoch in epochs_done)
    return trained, whole, max(epoch["valid_accuracy"] for epoch in epochs_done)


def main() -> None:
    """Take turns, and print the medians."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.distributed.mnist", description=__doc__
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--data-dir", type=Path, required=True)
    add("--ranks", type=int, default=2)
    add("--threads", type=int, default=1, help="of each rank; the other has as many in all")
    add("--epochs", type=int, default=3)
    add("--rounds", type=int, default=3)
    options = parser.parse_args()
    contestants = {
        f"{options.ranks} ranks x {options.threads}": (options.ranks, options.threads),
        f"1 rank x {options.ranks * options.threads}": (1, options.ranks * options.threads),
    }
    for place in contestants.values():
        run(*place, options, 1)
    runs: dict[str, list[Run]] = {name: [] for name in contestants}
    for _ in range(options.rounds):
        for name, place in contestants.items():
            runs[name].append(run(*place, options, options.epochs))
    medians = {
        name: [statistics.median(part) for part in zip(*r, strict=True)] for name, r in runs.items()
    }
    base = list(medians.values())[1]
    rows = [
        [
            name,
            f"{m[0]:.2f}",
            f"{m[0] / base[0]:.2f}",
            f"{m[1]:.2f}",
            f"{m[1] / base[1]:.2f}",
            f"{m[2]:.2%}",
        ]
        for name, m in medians.items()
    ]
    header = ["", "training, s", "ratio", "command, s", "ratio", "right"]
    print(table(header, rows))


if __name__ == "__main__":
    main()
