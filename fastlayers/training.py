"""The loop of training and validation."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Sized
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from fastlayers import distributed
from fastlayers.autograd import Tensor, no_grad
from fastlayers.distributed import spread
from fastlayers.nn import Module
from fastlayers.state import save
from fastlayers.state.snapshot import Snapshot

__all__ = ["History", "evaluate", "fit"]

Batches = Iterable[Any]
Loss = Callable[[Tensor, Tensor], Tensor]


class _Optimizer(Protocol):
    param_groups: list[dict[str, Any]]

    def zero_grad(self) -> None: ...

    def step(self) -> Any: ...


class _Scheduler(Protocol):
    def step(self) -> None: ...


@dataclass
class History:
    """What `fit` measured.

    Attributes
    ----------
    epochs : list of dict
        For each epoch ``epoch`` (from 1), ``lr``, ``train_loss``, ``train_accuracy``,
        ``images_per_second``, ``seconds`` and, with validation data, ``valid_loss`` and
        ``valid_accuracy``. Accuracies are in [0, 1].
    best_epoch : int
        Epoch of the best checkpoint: the one with the highest validation accuracy, or among equal
        ones the lowest validation loss; without validation data, training figures. 0 before the
        first.
    best_state : dict
        The model's state after that epoch, copied.
    """

    epochs: list[dict[str, Any]] = field(default_factory=list)
    best_epoch: int = 0
    best_state: dict[str, Tensor] = field(default_factory=dict)

    @property
    def best(self) -> dict[str, Any]:
        """Figures of the best epoch."""
        if not self.best_epoch:
            raise ValueError("History.best: epochs must hold a completed one, got none")
        return self.epochs[self.best_epoch - 1]


class _Meter:
    """Mean loss and accuracy over the samples so far."""

    def __init__(self) -> None:
        self.samples, self._right, self._loss = 0, 0, 0.0
        self._start = time.perf_counter()

    def add(self, loss: Tensor, output: Tensor, target: Tensor) -> None:
        count, mean, labels = len(target), loss.item(), np.asarray(target)
        if not count or (math.isnan(mean) and _is_of_no_target(output.array(), labels)):
            return
        self.samples += count
        self._loss += mean * count
        self._right += _right_answers(output.array(), labels)

    def add_ranks(self) -> None:
        """Add the samples of all ranks."""
        total = distributed.total([self.samples, self._right, self._loss])
        self.samples, self._right, self._loss = int(total[0]), int(total[1]), total[2]

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._start

    @property
    def rate(self) -> float:
        return self.samples / max(self.seconds, 1e-9)

    @property
    def loss(self) -> float:
        return self._loss / max(self.samples, 1)

    @property
    def accuracy(self) -> float:
        return self._right / max(self.samples, 1)


def _right_answers(output: np.ndarray, target: np.ndarray) -> int:
    """Samples whose largest output is the target; 0 if targets are not class indices."""
    if output.ndim != 2 or target.ndim != 1 or target.dtype.kind not in "iu":
        return 0
    return int(np.count_nonzero(output.argmax(axis=1) == target))


def _is_of_no_target(output: np.ndarray, target: np.ndarray) -> bool:
    """Whether a NaN mean can only be 0/0, as when all class indices are ignored."""
    return target.dtype.kind in "iu" and bool(np.isfinite(output).all())


def evaluate(model: Module, loss: Loss, batches: Batches) -> tuple[float, float]:
    """Mean loss and accuracy of a model in evaluation mode, without recording gradients.

    Parameters
    ----------
    model : Module
        It and all modules below keep their mode.
    loss : callable
        ``loss(model(input), target)`` is the batch's mean.
    batches : iterable of (input, target)
        A batch whose targets are all ignored by the loss does not count.

    Returns
    -------
    (float, float)
        The loss, and the fraction of samples whose largest output is the target.

    Raises
    ------
    ValueError
        If no batch counts.
    """
    return _told(_measure(model, loss, batches))


def _told(meter: _Meter) -> tuple[float, float]:
    if not meter.samples:
        raise ValueError("evaluate: batches must give at least one batch with targets, got none")
    return meter.loss, meter.accuracy


def _measure(model: Module, loss: Loss, batches: Batches) -> _Meter:
    meter, modes = _Meter(), [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        with no_grad():
            for inputs, targets in batches:
                if len(targets):
                    output = model(inputs)
                    meter.add(loss(output, targets), output, targets)
    finally:
        for module, mode in modes:
            module.training = mode
    return meter


def fit(
    model: Module,
    loss: Loss,
    optimizer: _Optimizer,
    train: Batches,
    valid: Batches | None = None,
    epochs: int = 1,
    *,
    scheduler: _Scheduler | None = None,
    schedule_every: str = "epoch",
    checkpoint: str | os.PathLike[str] | None = None,
    resume: str | os.PathLike[str] | None = None,
    progress: bool = True,
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
) -> History:
    """Train a model, validate it after each epoch and keep its best state.

    A KeyboardInterrupt, like any other exception, ends the training and propagates: the model is as
    the last step left it, `checkpoint` holds the best state so far, and no loader thread remains.

    Started by ``mpiexec``, it trains on all ranks together, with the same results as one process
    except for rounding and dropout masks: `model` is wrapped in
    `distributed.DistributedDataParallel`, its batch norms become `distributed.SyncBatchNorm`, and
    each rank takes its part of each batch, training and validation. All ranks must make the same
    batches, as loaders with equal seeds do; those of a loader with a `data.DistributedSampler` are
    parts already. Only rank 0 writes files, shows progress and calls `on_epoch`; `resume` is a file
    that all ranks can read.

    Parameters
    ----------
    model : Module
        A `DistributedDataParallel` is not wrapped again.
    loss : callable
        ``loss(model(input), target)`` is the batch's mean.
    optimizer : Optimizer
    train, valid : iterable of (input, target)
        Such as a `data.DataLoader`; iterated once per epoch. A batch whose targets are all ignored
        by the loss has a mean of NaN and no gradient: its step is taken, but it does not count.
    epochs : int
    scheduler : scheduler, optional
        Its ``step()`` is called after each epoch, or after each batch.
    schedule_every : {"epoch", "batch"}
    checkpoint : path-like, optional
        File for the best state, written whenever it improves; see `fastlayers.save`.
    resume : path-like, optional
        File for the state of the whole training, written when it begins and after each epoch. If it
        exists already, training continues after the epochs in it, and gives bitwise the same result
        as an uninterrupted run: parameters, buffers, optimiser, schedule, random state and history,
        except for the times in it. Create the arguments as in the first call; they are set to the
        file's state, including the optimiser's options. `epochs` may be larger. If all epochs are
        done, `fit` returns immediately. The interrupted epoch is repeated, so `on_epoch` may get
        its figures twice.
    progress : bool
        Show a progress bar with loss, accuracy and images/s, if tqdm is installed.
    on_epoch : callable, optional
        Called with each epoch's figures.

    Returns
    -------
    History

    Raises
    ------
    ValueError
        For less than one epoch, an unknown `schedule_every`, no training batch that counts, or a
        training loss that is not finite; if `resume` is damaged, or from another training or more
        epochs, in which case nothing is changed.
    TypeError
        With `resume`, if the optimiser or the scheduler cannot save its state.
    OSError
        If the checkpoint or `resume` cannot be written; the previous one is kept.
    """
    if isinstance(epochs, bool) or not isinstance(epochs, int) or epochs < 1:
        raise ValueError(f"fit: epochs must be a positive integer, got {epochs!r}")
    if schedule_every not in ("epoch", "batch"):
        raise ValueError(f"fit: schedule_every must be epoch or batch, got {schedule_every!r}")
    if distributed.is_launched():
        distributed.init()
    trained = spread.model_of_all(model)
    if isinstance(trained, distributed.DistributedDataParallel):
        model = trained.module
    is_first = distributed.rank() == 0
    checkpoint = checkpoint if is_first else None
    history, snapshot = History(), None
    if resume is not None:
        whole = (model, optimizer, scheduler, schedule_every, (train, valid))
        snapshot = Snapshot(resume, *whole)
        history = _begin(snapshot, epochs, checkpoint)
    per_batch = scheduler if schedule_every == "batch" else None
    for epoch in range(len(history.epochs) + 1, epochs + 1):
        lr = optimizer.param_groups[0]["lr"]
        spread.set_epoch(train, epoch - 1)
        part = spread.parts(train)
        bar = _progress_bar(part, f"epoch {epoch}/{epochs}", progress and is_first)
        meter = _train_epoch(trained, loss, optimizer, part, per_batch, bar)
        figures = {
            "epoch": epoch,
            "lr": float(lr),
            "train_loss": meter.loss,
            "train_accuracy": meter.accuracy,
            "images_per_second": meter.rate,
            "seconds": meter.seconds,
        }
        if valid is not None:
            figures["valid_loss"], figures["valid_accuracy"] = _validate(trained, loss, valid)
        if scheduler is not None and per_batch is None:
            scheduler.step()
        history.epochs.append(figures)
        _keep_best(history, figures, model, checkpoint)
        if on_epoch is not None and is_first:
            on_epoch(figures)
        if snapshot is not None and is_first:
            snapshot.write(vars(history))
    return history


def _begin(snapshot: Snapshot, epochs: int, checkpoint: str | os.PathLike[str] | None) -> History:
    """Restore the file's state, or write the first one; rank 0 decides which."""
    is_first = distributed.rank() == 0
    if not any(distributed.total([is_first and snapshot.exists()])):
        if is_first:
            snapshot.write(vars(History()))
        return History()
    history = History(**snapshot.read(epochs))
    if checkpoint is not None and history.best_epoch:
        save(history.best_state, checkpoint)
    return history


def _train_epoch(
    model: Module,
    loss: Loss,
    optimizer: _Optimizer,
    batches: Batches,
    scheduler: _Scheduler | None,
    bar: Any,
) -> _Meter:
    model.train()
    meter = _Meter()
    try:
        for inputs, targets in batches:
            optimizer.zero_grad()
            output = model(inputs)
            value = loss(output, targets)
            value.backward()
            if len(targets):
                _check_loss(value.item(), model, optimizer, meter.samples)
            optimizer.step()
            if scheduler is not None:
                scheduler.step()
            meter.add(value, output, targets)
            if bar is not None:
                bar.set_postfix_str(
                    f"loss {meter.loss:.4f}, accuracy {meter.accuracy:.4f}, "
                    f"{meter.rate:.0f} images/s",
                    refresh=False,
                )
                bar.update()
    finally:
        if bar is not None:
            bar.close()
    meter.add_ranks()
    if not meter.samples:
        raise ValueError("fit: train must give at least one batch with targets, got none")
    return meter


def _check_loss(mean: float, model: Module, optimizer: _Optimizer, samples: int) -> None:
    """Raise if the training has diverged, before the step that would spoil the parameters.

    The mean over no targets, as when all of a batch are ignored, is NaN, and its gradients are 0.
    """
    if math.isfinite(mean):
        return
    gradients = (p.grad for p in model.parameters() if p.grad is not None)
    if math.isinf(mean) or not all(np.isfinite(np.asarray(grad)).all() for grad in gradients):
        optimizer.zero_grad()  # of no use to the caller either
        raise ValueError(
            f"fit: the training loss must be finite, got {mean} after {samples} samples of the "
            "epoch; try a smaller learning rate"
        )


def _validate(model: Module, loss: Loss, batches: Batches) -> tuple[float, float]:
    """`evaluate` on all ranks together."""
    if isinstance(model, distributed.DistributedDataParallel):
        model.sync_buffers()
    meter = _measure(model, loss, spread.parts(batches))
    meter.add_ranks()
    return _told(meter)


def _progress_bar(batches: Batches, description: str, wanted: bool) -> Any:
    """A tqdm bar that vanishes when the epoch ends, or None without tqdm."""
    if not wanted:
        return None
    try:
        from tqdm import tqdm
    except ModuleNotFoundError:
        return None
    total = len(batches) if isinstance(batches, Sized) else None
    return tqdm(total=total, desc=description, unit="batch", leave=False)


def _keep_best(
    history: History,
    figures: dict[str, Any],
    model: Module,
    checkpoint: str | os.PathLike[str] | None,
) -> None:
    def score(epoch: dict[str, Any]) -> tuple[float, float]:
        prefix = "valid" if "valid_loss" in epoch else "train"
        loss = epoch[f"{prefix}_loss"]
        return epoch[f"{prefix}_accuracy"], -loss if np.isfinite(loss) else -np.inf

    if history.best_epoch and score(figures) <= score(history.best):
        return
    history.best_epoch = figures["epoch"]
    history.best_state = {k: v.clone() for k, v in model.state_dict().items()}
    if checkpoint is not None:
        save(history.best_state, checkpoint)
