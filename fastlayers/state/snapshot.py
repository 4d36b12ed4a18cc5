"""Files with the complete state of a training, to resume it as if it had not been interrupted.

Such a file holds a tree of dicts, lists and numbers as JSON text in one array, as encoded by
`fastlayers.state.nested`, the arrays that the tree names, and a checksum of everything, since
safetensors has none.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastlayers import random
from fastlayers.autograd.tensor import Tensor
from fastlayers.autograd.values import as_array
from fastlayers.nn import Module
from fastlayers.optim import LRScheduler
from fastlayers.state import load, nested, save

__all__ = ["Snapshot", "pack", "unpack"]

Tree = dict[str, Any]
Arrays = dict[str, np.ndarray]

FORMAT = 1
# What a schedule changes from step to step.
_POSITION = {"last_epoch", "_last_lr"}
# Exceptions that a file of another structure, such as a forged one, can cause.
_MISFITS = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)


@dataclass
class Snapshot:
    """The parts of a training that change as it proceeds, and the file that keeps their state.

    Attributes
    ----------
    path : path-like
        Written by `fastlayers.save`, completely or not at all.
    model, optimizer, scheduler, schedule_every
        As `fastlayers.training.fit` takes them.
    data : tuple
        The iterables of batches. The file has the ``epoch`` and the ``seed`` of each, and of its
        ``loader`` and ``sampler``.

    Raises
    ------
    TypeError
        If the optimiser or the scheduler cannot save and load its state.
    """

    path: str | os.PathLike[str]
    model: Module
    optimizer: Any
    scheduler: Any
    schedule_every: str
    data: tuple[Any, ...]

    def __post_init__(self) -> None:
        for name, part in (("optimizer", self.optimizer), ("scheduler", self.scheduler)):
            if part is not None and not hasattr(part, "load_state_dict"):
                raise TypeError(
                    f"fit: {name} must have state_dict and load_state_dict for resume, "
                    f"got {type(part).__name__}"
                )

    def exists(self) -> bool:
        """Whether there is a file to resume from."""
        return Path(self.path).exists()

    def write(self, history: Mapping[str, Any]) -> None:
        """Replace the file by one with the current state and the history so far.

        Raises
        ------
        TypeError
            If a state holds anything but numbers, text, arrays, tensors, and dicts, lists and
            tuples of these.
        OSError, ModuleNotFoundError
            As for `fastlayers.save`.
        """
        save(pack(self._state() | {"history": dict(history)}), self.path)

    def read(self, epochs: int) -> Tree:
        """Set all parts to the file's state, and return its history.

        Parameters
        ----------
        epochs : int
            The number of epochs that the training is to have.

        Raises
        ------
        ValueError
            If the file is damaged, or from another training or more epochs; then nothing is
            changed.
        """
        arrays = load(self.path)
        try:
            saved = unpack(arrays)
            self._check(saved, epochs)
            before = self._state()
            try:
                self._set(saved)
            except BaseException:
                self._set(before)
                raise
        except _MISFITS as error:
            raise ValueError(
                f"fit: resume must be the state of this training, got {self.path}: {error}"
            ) from error
        history: Tree = saved["history"]
        return history

    def _state(self) -> Tree:
        return {
            "format": FORMAT,
            "model": self.model.state_dict(),
            "optimizer": _state_of(self.optimizer),
            "scheduler": _state_of(self.scheduler),
            "schedule_every": self.schedule_every,
            "random": random.get_rng_state(),
            "data": [[_counts(part) for part in _chain(batches)] for batches in self.data],
        }

    def _set(self, state: Tree) -> None:
        self.optimizer.load_state_dict(state["optimizer"]["state"])
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state["scheduler"]["state"])
        random.set_rng_state(state["random"])
        for batches, saved in zip(self.data, state["data"], strict=True):
            for part, counts in zip(_chain(batches), saved, strict=True):
                if "epoch" in counts:
                    part.epoch = counts["epoch"]
        # Last, since it changes all or nothing, so that no copy of the model is needed for a
        # rollback.
        self.model.load_state_dict(state["model"])

    def _check(self, saved: Tree, epochs: int) -> None:
        """Raise an error unless the state belongs to such parts."""
        own = self._state()
        if missing := (own.keys() | {"history"}) - saved.keys():
            raise ValueError(f"it has no {sorted(missing)}")
        _same("format", saved["format"], FORMAT)
        _same("schedule_every", saved["schedule_every"], self.schedule_every)
        for part in ("optimizer", "scheduler"):
            _same(part, _kind(saved[part]), _kind(own[part]))
        _check_model(saved["model"], own["model"])
        if isinstance(self.scheduler, LRScheduler):
            given, mine = saved["scheduler"]["state"], own["scheduler"]["state"]
            for name in [name for name in mine if name not in _POSITION]:
                _same(f"scheduler's {name}", given.get(name), mine[name])
        _same("data", _fixed(saved["data"]), _fixed(own["data"]))
        _check_history(saved["history"], epochs)


def pack(tree: Any) -> Arrays:
    """Named arrays of a tree of dicts, lists, tuples, numbers, text, arrays and tensors.

    Raises
    ------
    TypeError
        If it holds anything else.
    """
    arrays: Arrays = {}
    text = json.dumps(nested.encode("fit", tree, arrays))
    arrays["tree"] = np.frombuffer(text.encode(), np.uint8)
    arrays["checksum"] = np.array(_checksum(arrays), np.uint32)
    return arrays


def unpack(arrays: Mapping[str, np.ndarray | Tensor]) -> Any:
    """The tree that `pack` made the arrays from, bitwise.

    Raises
    ------
    ValueError
        If these are not arrays that it made.
    """
    parts = {name: as_array(array) for name, array in arrays.items()}
    if not {"tree", "checksum"} <= parts.keys():
        raise ValueError(f"it has no tree and checksum, but {sorted(parts)[:3]}")
    if parts.pop("checksum").tolist() != _checksum(parts):
        raise ValueError("it is damaged, its checksum is that of another content")
    return nested.decode(json.loads(parts.pop("tree").tobytes()), parts, Tensor)


def _checksum(arrays: Mapping[str, np.ndarray]) -> int:
    """Of names, dtypes, shapes and values."""
    total = 0
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        head = f"{name} {array.dtype} {arrays[name].shape}"
        total = zlib.crc32(array.data, zlib.crc32(head.encode(errors="replace"), total))
    return total


def _state_of(part: Any) -> Tree | None:
    return None if part is None else {"kind": type(part).__name__, "state": part.state_dict()}


def _kind(saved: Tree | None) -> Any:
    return None if saved is None else saved["kind"]


def _chain(batches: Any) -> Iterator[Any]:
    """The iterable of batches, and what it is made of."""
    while batches is not None:
        yield batches
        yield getattr(batches, "sampler", None)
        batches = getattr(batches, "loader", None)


def _counts(part: Any) -> dict[str, int]:
    found = {name: getattr(part, name, None) for name in ("epoch", "seed")}
    return {name: value for name, value in found.items() if isinstance(value, int)}


def _fixed(data: list[list[dict[str, int]]]) -> list[list[dict[str, int]]]:
    """Everything except the epochs."""
    return [[{k: v for k, v in c.items() if k != "epoch"} for c in counts] for counts in data]


def _same(name: str, saved: Any, own: Any) -> None:
    if saved != own:
        raise ValueError(f"{name} is {saved!r} there and {own!r} here")


def _check_model(saved: Mapping[str, Any], own: Tree) -> None:
    def kinds(state: Mapping[str, Any]) -> dict[str, str]:
        return {name: f"{value.dtype} {tuple(value.shape)}" for name, value in state.items()}

    there, here = kinds(saved), kinds(own)
    for name in sorted(there.keys() | here.keys()):
        _same(f"model's {name}", there.get(name), here.get(name))


def _check_history(history: Mapping[str, Any], epochs: int) -> None:
    _same("history", sorted(history), ["best_epoch", "best_state", "epochs"])
    done = [figures["epoch"] for figures in history["epochs"]]
    if done != list(range(1, len(done) + 1)) or history["best_epoch"] not in (done or [0]):
        raise ValueError(f"history has epochs {done}, the best {history['best_epoch']!r}")
    if len(done) > epochs:
        raise ValueError(f"it has {len(done)} epochs, more than {epochs}")
