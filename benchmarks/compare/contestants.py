"""The training step of a case in each library: forward, cross-entropy, backward, SGD momentum.

A preparation runs in the contestant's process. It returns the step and a `Start`: the losses of
the first steps on one batch without dropout, which show whether all do the same work. After them
dropout is on, and one more step has been made, so that everything is compiled.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.compare.cases import LR, MOMENTUM, Batches, Case, initial_value
from benchmarks.compare.harness import Contestant, resident_memory
from benchmarks.compare.networks import networks

__all__ = ["CONTESTANTS", "TORCH_FLOAT32", "Start", "Step", "start"]

Step = Callable[[], float]
CHECKED_STEPS = 3


@dataclass(frozen=True)
class Start:
    """What a contestant reports when it is prepared.

    Attributes
    ----------
    losses : list of float
        Of the first steps, on the same batch and without dropout.
    parameters : int
        Elements of all parameters.
    resident : int
        Bytes resident after the imports, before there was a model.
    """

    losses: list[float]
    parameters: int
    resident: int


def prepare_fastlayers(threads: int, case: Case) -> tuple[Step, Start]:
    import fastlayers as fl

    fl.set_num_threads(threads)
    resident = resident_memory()
    model = (vars(fl.models) | networks(fl))[case.factory](**case.options)
    state = model.state_dict()
    model.load_state_dict({k: initial_value(k, np.shape(v)) for k, v in state.items()})
    del state
    loss = fl.nn.CrossEntropyLoss()
    optimizer = fl.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM)
    batches = [(fl.tensor(x), fl.tensor(y)) for x, y in case.batches()]
    return _started(_stepper(model, loss, optimizer), model, batches, resident)


def prepare_torch(threads: int, mode: str, case: Case) -> tuple[Step, Start]:
    """`mode` is eager, channels_last, compile or bfloat16; the last two are channels_last too."""
    import torch

    from benchmarks.compare.torch_models import torch_models

    torch.set_num_threads(threads)
    resident = resident_memory()
    model = (torch_models() | networks(torch))[case.factory](**case.options)
    state = model.state_dict()
    model.load_state_dict(
        {k: torch.from_numpy(initial_value(k, tuple(v.shape))) for k, v in state.items()}
    )
    del state
    batches = [(torch.from_numpy(x), torch.from_numpy(y)) for x, y in case.batches()]
    if mode != "eager":
        model = model.to(memory_format=torch.channels_last)
        batches = [(x.contiguous(memory_format=torch.channels_last), y) for x, y in batches]
    loss = torch.nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM, fused=True)
    called = torch.compile(model) if mode == "compile" else model
    step = _stepper(called, loss, optimizer)
    if mode == "bfloat16":
        with_float32 = step

        def step(inputs: Any, targets: Any) -> float:
            with torch.autocast("cpu", torch.bfloat16):  # backward follows the forward's types
                return with_float32(inputs, targets)

    return _started(step, model, batches, resident)


def _stepper(model: Any, loss: Any, optimizer: Any) -> Callable[[Any, Any], float]:
    """The training step, literally the same code for torch and fastlayers."""

    def step(inputs: Any, targets: Any) -> float:
        optimizer.zero_grad()
        value = loss(model(inputs), targets)
        value.backward()
        optimizer.step()
        return float(value.item())

    return step


def _started(
    step: Callable[[Any, Any], float], model: Any, batches: Batches, resident: int
) -> tuple[Step, Start]:
    rates = [(module, module.p) for module in model.modules() if hasattr(module, "p")]
    for module, _ in rates:
        module.p = 0.0
    losses = [step(*batches[0]) for _ in range(CHECKED_STEPS)]
    for module, rate in rates:
        module.p = rate
    parameters = sum(int(np.prod(p.shape)) for p in model.parameters())
    return _cycle(step, batches), Start(losses, parameters, resident)


def _cycle(step: Callable[[Any, Any], float], batches: Batches) -> Step:
    """A function that steps through the batches repeatedly; one step is made."""
    count = 0

    def next_step() -> float:
        nonlocal count
        count += 1
        return step(*batches[count % len(batches)])

    next_step()
    return next_step


def prepare_jax(threads: int, case: Case) -> tuple[Step, Start]:
    """JAX's pool has as many threads as the process has CPUs, so those are limited."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    os.environ["JAX_PLATFORMS"] = "cpu"
    import jax
    import jax.numpy as jnp

    from benchmarks.compare import jax_models

    key = jax.random.key(0)
    resident = resident_memory()
    batches = [(jnp.array(np.moveaxis(x, 1, -1)), jnp.array(y)) for x, y in case.batches()]

    def model(net: jax_models.Network, x: Any) -> Any:
        return jax_models.MODELS[case.factory](net, x, case.classes, **case.options)

    def update(state: Any, x: Any, y: Any, dropout: bool) -> tuple[Any, Any]:
        parameters, momenta, buffers, key = state
        key, mask_key = jax.random.split(key)
        (loss, buffers), gradients = jax.value_and_grad(jax_models.loss_function, 1, has_aux=True)(
            model, parameters, buffers, mask_key if dropout else None, x, y
        )
        momenta = jax.tree.map(lambda v, g: MOMENTUM * v + g, momenta, gradients)
        parameters = jax.tree.map(lambda p, v: p - LR * v, parameters, momenta)
        return (parameters, momenta, buffers, key), loss

    compiled = jax.jit(update, static_argnums=3, donate_argnums=0)
    parameters, buffers = jax_models.initial_values(model, batches[0][0])
    elements = sum(value.size for value in parameters.values())
    state = parameters, jax.tree.map(jnp.zeros_like, parameters), buffers, key
    del parameters, buffers

    def step(x: Any, y: Any, dropout: bool = True) -> float:
        nonlocal state
        state, loss = compiled(state, x, y, dropout)
        jax.block_until_ready(state)
        return float(loss)

    losses = [step(*batches[0], dropout=False) for _ in range(CHECKED_STEPS)]
    return _cycle(step, batches), Start(losses, elements, resident)


CONTESTANTS: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
    "fastlayers": (prepare_fastlayers, ()),
    "torch": (prepare_torch, ("eager",)),
    "channels_last": (prepare_torch, ("channels_last",)),
    "compile": (prepare_torch, ("compile",)),
    "jax": (prepare_jax, ()),
    "bfloat16": (prepare_torch, ("bfloat16",)),
}
TORCH_FLOAT32 = ("torch", "channels_last", "compile")


def start(name: str, threads: int) -> Contestant:
    """A process of the contestant of this name."""
    prepare, options = CONTESTANTS[name]
    return Contestant(name, prepare, threads, *options)
