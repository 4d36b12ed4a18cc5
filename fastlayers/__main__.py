"""Command line: ``python -m fastlayers train``, ``warmup`` and ``info``."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import fastlayers as fl
from fastlayers import distributed, precompile
from fastlayers.data.dataset import MapStyle
from fastlayers.runtime import backend, caches, cores, cpu, threads, topology

__all__ = ["main"]

DATA = ("digits", "mnist", "fashion-mnist", "cifar10")
# With 1,437 digits an epoch is 45 steps of 32 images, with MNIST's 60,000 it is 938 of 64.
EPOCHS = {"digits": 20, "mnist": 3, "fashion-mnist": 10, "cifar10": 15}
BATCH_SIZES = {"digits": 32, "mnist": 64, "fashion-mnist": 64, "cifar10": 64}
# Of state files, which other programs read too.
SUFFIX = ".safetensors"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except (ImportError, OSError, RuntimeError, TypeError, ValueError) as error:
        return _failed(str(error), 1)
    except KeyboardInterrupt:
        return _failed("interrupted", 130)


def _failed(reason: str, status: int) -> int:
    """Print once why this process ends; other ranks, which would wait for it, end too."""
    distributed.end_all(reason, status)  # with several ranks: says which failed, never returns
    print(f"fastlayers: {reason}", file=sys.stderr)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m fastlayers", description=fl.__doc__)
    commands = parser.add_subparsers(required=True, metavar="command")
    train = commands.add_parser("train", help="train a model and keep the best state")
    train.set_defaults(run=_train)
    add = train.add_argument
    add("--data", choices=DATA, default="digits", help="digits are bundled (default)")
    add("--data-dir", type=Path, help="folder of the data's files; otherwise they are downloaded")
    add("--model", choices=sorted(MODELS), default="cnn")
    add("--epochs", type=_positive, help=f"default: {EPOCHS}")
    add("--batch-size", type=_positive, help=f"default: {BATCH_SIZES}")
    add("--lr", type=float, default=0.01, help="highest learning rate of the one-cycle schedule")
    add("--seed", type=int, default=0)
    add("--threads", type=_positive, help="default: the number that info prints")
    add("--out", type=Path, help="folder of the results (default: runs/<data>-<model>-<time>)")
    add("--resume", action="store_true", help="keep the state in <out>/last.*, and resume from it")
    warmup = commands.add_parser("warmup", help="compile kernels in advance, e.g. for an image")
    warmup.set_defaults(run=_warmup)
    add = warmup.add_argument
    what = warmup.add_mutually_exclusive_group(required=True)
    what.add_argument("--model", choices=sorted(MODELS), help="the kernels of this model")
    what.add_argument("--all", action="store_true", help="the kernels of all layers and models")
    add("--input-shape", type=_positive, nargs=4, metavar=("N", "C", "H", "W"))
    add("--dtype", choices=("float32", "float64"), default="float32")
    add("--cpu", choices=cpu.LEVELS, help="for machines of this level, run with FASTLAYERS_CPU")
    info = commands.add_parser("info", help="print versions, CPU, cores, threads and cache folder")
    info.add_argument("--json", action="store_true", help="as a JSON object")
    info.set_defaults(run=_info)
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def _mlp(channels: int, size: int) -> fl.nn.Module:
    return fl.vision.models.MLP(channels * size * size)


MODELS: dict[str, Callable[[int, int], fl.nn.Module]] = {
    "cifar-cnn": lambda channels, _: fl.vision.models.CifarCNN(10, channels, batch_norm=True),
    "cnn": lambda channels, size: fl.vision.models.CNN(10, channels, size),
    "mlp": _mlp,
    "resnet20": lambda channels, _: fl.vision.models.resnet20(10, channels),
    "vgg": lambda channels, size: fl.vision.models.vgg_small(10, channels, size),
}
# The only size that the network with fixed linear layers accepts.
CIFAR_SIZE = 32


def _datasets(options: argparse.Namespace) -> tuple[MapStyle, MapStyle]:
    """Training and held-out images."""
    if options.data == "digits":
        return fl.data.Digits(train=True), fl.data.Digits(train=False)
    kinds = {
        "mnist": fl.vision.datasets.MNIST,
        "fashion-mnist": fl.vision.datasets.FashionMNIST,
        "cifar10": fl.vision.datasets.CIFAR10,
    }
    kind, download = kinds[options.data], options.data_dir is None
    if distributed.local_rank():  # the first rank of each host downloads
        distributed.barrier()
    train, test = (kind(options.data_dir, train=t, download=download) for t in (True, False))
    if not distributed.local_rank():
        distributed.barrier()
    return train, test


def _say(text: str) -> None:
    """Print on rank 0 only."""
    if distributed.rank() == 0:
        print(text, flush=True)


def _train(options: argparse.Namespace) -> int:
    if options.resume and options.out is None:
        raise ValueError("train: --resume needs --out, the folder of the training, got none")
    if distributed.is_launched():
        distributed.init()
    if options.threads:
        fl.set_num_threads(options.threads)
    fl.manual_seed(options.seed)
    train, test = _datasets(options)
    channels, size = np.shape(train[0][0])[0], np.shape(train[0][0])[-1]
    if options.model == "cifar-cnn" and size != CIFAR_SIZE:
        raise ValueError(
            f"--model cifar-cnn takes images of {CIFAR_SIZE}x{CIFAR_SIZE} pixels, "
            f"{options.data} has {size}x{size}"
        )
    model = MODELS[options.model](channels, size)
    batch_size = options.batch_size or BATCH_SIZES[options.data]
    loader = fl.data.DataLoader(train, batch_size, shuffle=True, seed=options.seed, num_workers=1)
    shifted = fl.data.RandomShift(loader, 1, seed=options.seed)
    held_out = fl.data.DataLoader(test, 250, num_workers=1)
    epochs = options.epochs or EPOCHS[options.data]
    optimizer = fl.optim.AdamW(model.parameters(), lr=options.lr, weight_decay=0.05)
    scheduler = fl.optim.OneCycleLR(optimizer, options.lr, total_steps=epochs * len(loader))
    stamp = time.strftime("%Y%m%d-%H%M%S")
    folder = options.out or Path("runs") / f"{options.data}-{options.model}-{stamp}"
    if distributed.rank() == 0:
        folder.mkdir(parents=True, exist_ok=True)
    checkpoint = folder / f"model{SUFFIX}"
    ranks = distributed.world_size()
    _say(
        f"{options.model} on {options.data}: {len(train)} images to train, {len(test)} held out, "
        f"{sum(p.numel() for p in model.parameters())} parameters, "
        f"{fl.get_num_threads()} threads" + (f" on each of {ranks} ranks" if ranks > 1 else "")
    )
    history = fl.training.fit(
        model,
        fl.nn.CrossEntropyLoss(label_smoothing=0.1),
        optimizer,
        shifted,
        held_out,
        epochs,
        scheduler=scheduler,
        schedule_every="batch",
        checkpoint=checkpoint,
        resume=_last(folder) if options.resume else None,
        on_epoch=_print_epoch,
    )
    if distributed.rank() == 0:
        _write_results(folder, history, options)
        _print_best(folder, history)
    return 0


def _print_best(folder: Path, history: fl.training.History) -> None:
    print(
        f"best: epoch {history.best_epoch} with {history.best['valid_accuracy']:.2%} of the "
        f"held-out images correct\nresults: {folder.resolve()}: "
        + ", ".join(sorted(path.name for path in folder.iterdir()))
    )


def _last(folder: Path) -> Path:
    """The training's state; an earlier release wrote npz if safetensors was not installed."""
    paths = [folder / f"last{suffix}" for suffix in (SUFFIX, ".npz")]
    found = [path for path in paths if path.exists()]
    if found:
        _say(f"resuming from {found[0]}")
    return found[0] if found else folder / f"last{SUFFIX}"


def _print_epoch(figures: dict[str, Any]) -> None:
    print(
        f"epoch {figures['epoch']:3d}: loss {figures['train_loss']:.4f}, "
        f"accuracy {figures['train_accuracy']:.2%}; held out: loss {figures['valid_loss']:.4f}, "
        f"accuracy {figures['valid_accuracy']:.2%}; {figures['images_per_second']:.0f} images/s",
        flush=True,
    )


def _write_results(folder: Path, history: fl.training.History, options: argparse.Namespace) -> None:
    given = {k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items()}
    given.pop("run")
    record = {"options": given, "best_epoch": history.best_epoch, "epochs": history.epochs}
    (folder / "history.json").write_text(json.dumps(record, indent=2) + "\n")
    try:
        import matplotlib
    except ModuleNotFoundError:
        print("curves.png needs matplotlib: pip install 'fastlayers[train]'", file=sys.stderr)
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
    epochs = [e["epoch"] for e in history.epochs]
    for axis, name in zip(axes, ("loss", "accuracy"), strict=True):
        axis.plot(epochs, [e[f"train_{name}"] for e in history.epochs], label="training")
        axis.plot(epochs, [e[f"valid_{name}"] for e in history.epochs], label="held out")
        axis.set(xlabel="epoch", ylabel=name)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3)
        axis.legend()
    figure.suptitle(f"{options.model} on {options.data}")
    figure.savefig(folder / "curves.png", dpi=120)
    pyplot.close(figure)


def _warmup(options: argparse.Namespace) -> int:
    if options.cpu:
        cpu.choose(options.cpu)
    if backend.NUMPY:
        print("0 kernels compiled: fastlayers runs on NumPy alone")
        return 0
    from fastlayers.runtime import cache

    channels, size = 3, CIFAR_SIZE
    if options.model and not options.input_shape:
        raise ValueError("warmup: --model needs --input-shape N C H W")
    if options.model:
        _, channels, size, width = options.input_shape
        if size != width:
            raise ValueError(f"warmup: --input-shape needs square images, got {size}x{width}")
    names = [options.model] if options.model else sorted(MODELS)
    shape = tuple(options.input_shape or (32, channels, size, size))
    work = [(MODELS[name](channels, size).to(options.dtype), shape) for name in names]
    if options.all:
        work += precompile.everything(options.dtype)
    done = [fl.warmup(model, shape) for model, shape in work]
    count, seconds = sum(d.kernels for d in done), sum(d.seconds for d in done)
    print(f"{count} kernels compiled in {seconds:.0f} s, in {cache.cache_dir()}")
    return 0


def _info(options: argparse.Namespace) -> int:
    rows = {
        "fastlayers": fl.__version__,
        "Python": f"{platform.python_version()} on {platform.platform()}",
        "NumPy": np.__version__,
        "backend": backend.name(),
    } | ({} if backend.NUMPY else _compiled_info())
    if options.json:
        print(json.dumps(rows, indent=2))
        return 0
    rows |= _in_words(rows) if "threads" in rows else {}
    rows.pop("threads set by", None)
    width = max(map(len, rows))
    for name, value in rows.items():
        print(f"{name:<{width}}  {value}")
    return 0


def _in_words(rows: dict[str, Any]) -> dict[str, str]:
    """What takes more than a value to say."""
    levels = (
        f"{name} {cache['bytes'] >> 10} KiB"
        + (f" shared by {cache['cores']} logical cores" if cache["cores"] > 1 else "")
        for name, cache in rows["caches"].items()
    )
    count = {name: "unknown" if n is None else n for name, n in rows["cores"].items()}
    sizes = (f"{name} {size >> 10} KiB" for name, size in rows["cache sizes used"].items())
    free = [name for name, is_free in rows["free masks"].items() if is_free]
    return {
        "threads": f"{rows['threads']} ({rows['threads set by']})",
        "cores": f"{count['logical']} logical, {count['physical']} physical; this process may use "
        f"{count['allowed']} logical, {count['allowed physical']} physical",
        "CPU quota": "none" if rows["CPU quota"] is None else f"{rows['CPU quota']} cores",
        "caches": ", ".join(levels) or "unknown",
        "cache sizes used": ", ".join(sizes),
        "free masks": " and ".join(free) or "none",
    }


def _compiled_info() -> dict[str, Any]:
    import llvmlite
    import numba

    from fastlayers.runtime import cache
    from fastlayers.runtime.parallel import threading_layer

    folder, allowed = cache.cache_dir(), cores.affinity()
    machine = topology.online() or range(os.cpu_count() or 1)
    return {
        "Numba": numba.__version__,
        "llvmlite": llvmlite.__version__,
        "CPU": cpu.fleet() or cpu.cpu_name(),
        "vector bits": 8 * cpu.vector_bytes(),
        "free masks": {"loads": cpu.masked_loads(), "stores": cpu.masked_stores()},
        "caches": {
            level.name: {"bytes": level.nbytes, "cores": level.shared_by}
            for level in caches.caches()
        },
        "cache sizes used": {
            "L1": cpu.l1_bytes(),
            "L2": cpu.l2_bytes(),
            "last level": cpu.cache_bytes(),
        },
        "cores": {
            "logical": len(machine),
            "physical": topology.physical(machine),
            "allowed": len(allowed),
            "allowed physical": topology.physical(allowed),
        },
        "CPU quota": cores.quota(),
        "threads": fl.get_num_threads(),
        "threads set by": threads.origin(),
        "threading layer": threading_layer(),
        "cache folder": str(folder or "none can be written"),
        "cached kernels": len(list(folder.glob("*.nbc"))) if folder else 0,
    }


if __name__ == "__main__":
    sys.exit(main())
