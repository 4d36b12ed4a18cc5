"""Random programs of views and changes in place against PyTorch: the same errors or gradients.

A program makes leaves, results and views, changes some of them in place, and differentiates a sum
of all. The same steps are done by both libraries; where one refuses a step, so must the other.
"""

from collections.abc import Callable
from itertools import compress
from typing import Any

import numpy as np
import pytest

import fastlayers as fl

torch = pytest.importorskip("torch")

Tensors = list[Any]
Step = tuple[str, Callable[[Tensors], Any]]
SHAPE = (2, 3, 2)


def steps(rng: np.random.Generator, count: int) -> list[Step]:
    """Random steps on the tensors that there are."""

    def pick(*choices: Any) -> Any:
        return choices[rng.integers(len(choices))]

    made = []
    for _ in range(count):
        i, j = (int(rng.integers(100)) for _ in range(2))
        scale = float(pick(2.0, 0.5, -1.5))
        at = pick(0, -1, slice(0, 1), slice(None, None, 2), (slice(None), 1), (Ellipsis, 0), [0, 1])
        made.append(
            pick(
                *VIEWS(i, at),
                *VIEWS(i, at),
                *NEW(i, j, scale),
                *IN_PLACE(i, j, scale, at),
                *IN_PLACE(i, j, scale, at),
            )
        )
    return made


def VIEWS(i: int, at: Any) -> list[Step]:
    return [
        (f"append t[{i}][{at}]", lambda t: _of(t, i)[at]),
        (f"append t[{i}].transpose(0, -1)", lambda t: _of(t, i).transpose(0, -1)),
        (f"append t[{i}].unsqueeze(0)", lambda t: _of(t, i).unsqueeze(0)),
        (f"append t[{i}].squeeze()", lambda t: _of(t, i).squeeze()),
        (f"append t[{i}].narrow(0, 0, 1)", lambda t: _of(t, i).narrow(0, 0, 1)),
        (f"append t[{i}].select(-1, 0)", lambda t: _of(t, i).select(-1, 0)),
        (f"append t[{i}].diagonal(0, 0, 1)", lambda t: _of(t, i).diagonal(0, 0, 1)),
        (f"append t[{i}].reshape(-1)", lambda t: _of(t, i).reshape(-1)),
        (f"append t[{i}].detach()", lambda t: _of(t, i).detach()),
    ]


def NEW(i: int, j: int, scale: float) -> list[Step]:
    return [
        (f"append t[{i}] * {scale}", lambda t: _of(t, i) * scale),
        (f"append t[{i}] * t[{j}]", lambda t: _of(t, i) * _of(t, j)),
        (f"append t[{i}].tanh()", lambda t: _of(t, i).tanh()),
        (f"append t[{i}].square()", lambda t: _of(t, i).square()),
        (f"append t[{i}].sum(0)", lambda t: _of(t, i).sum(0)),
        (f"append t[{i}].expand(2, ...) * 1", lambda t: _of(t, i).expand(2, *_of(t, i).shape) * 1),
        (f"append t[{i}].clone()", lambda t: _of(t, i).clone()),
    ]


def IN_PLACE(i: int, j: int, scale: float, at: Any) -> list[Step]:
    def assign(t: Tensors, value: Any) -> None:
        _of(t, i)[at] = value

    def add(t: Tensors, value: Any) -> None:
        x = _of(t, i)
        x += value

    def item(t: Tensors) -> None:
        x = _of(t, i)
        x[at] *= scale

    return [
        (f"t[{i}].mul_({scale})", lambda t: _drop(_of(t, i).mul_(scale))),
        (f"t[{i}].mul_(t[{j}])", lambda t: _drop(_of(t, i).mul_(_value(t, i, j)))),
        (f"t[{i}] += t[{j}]", lambda t: add(t, _value(t, i, j))),
        (f"t[{i}].tanh_()", lambda t: _drop(_of(t, i).tanh_())),
        (f"t[{i}].exp_()", lambda t: _drop(_of(t, i).clamp_(-1, 1).exp_())),
        (
            f"t[{i}].add_(t[{j}], alpha=2)",
            lambda t: _drop(_of(t, i).add_(_value(t, i, j), alpha=2)),
        ),
        (f"t[{i}].fill_({scale})", lambda t: _drop(_of(t, i).fill_(scale))),
        (f"t[{i}].zero_()", lambda t: _drop(_of(t, i).zero_())),
        (f"t[{i}].copy_(t[{j}])", lambda t: _drop(_of(t, i).copy_(_value(t, i, j)))),
        (f"t[{i}].masked_fill_(> 0, 1)", lambda t: _drop(_of(t, i).masked_fill_(_of(t, i) > 0, 1))),
        (f"t[{i}].unsqueeze_(0)", lambda t: _drop(_of(t, i).unsqueeze_(0))),
        (f"t[{i}].transpose_(0, -1)", lambda t: _drop(_of(t, i).transpose_(0, -1))),
        (
            f"t[{i}].sub_(t[{j}].detach())",
            lambda t: _drop(_of(t, i).sub_(_value(t, i, j).detach())),
        ),
        (f"t[{i}][{at}] = {scale}", lambda t: assign(t, scale)),
        (f"t[{i}][{at}] = t[{j}][{at}]", lambda t: assign(t, _value(t, i, j)[at])),
        (f"t[{i}][{at}] = t[{j}]", lambda t: assign(t, _value(t, i, j))),
        (f"t[{i}][{at}] *= {scale}", item),
    ]


def _of(tensors: Tensors, i: int) -> Any:
    return tensors[i % len(tensors)]


def _value(tensors: Tensors, i: int, j: int) -> Any:
    """What tensor `i` is changed with: of overlapping memory PyTorch's results are of chance."""
    target, other = _of(tensors, i), _of(tensors, j)
    if other is target or not np.shares_memory(values(target, False), values(other, False)):
        return other
    return other.clone()


def _drop(result: Any) -> None:
    """Of a step that makes no new tensor."""


# What PyTorch refuses and NumPy's memory allows: operands that overlap the written memory.
ALLOWED = ("single memory location", "memory overlap")


def usable(program: list[Step], leaves: Tensors, quiet: list[bool]) -> list[bool]:
    """Which steps mean the same in both libraries."""
    tensors, kept = [leaves[0] * 1.0, *leaves], []
    for (_, step), silent in zip(program, quiet, strict=True):
        kept.append(False)
        try:
            with torch.set_grad_enabled(not silent):
                result = step(tensors)
        except (RuntimeError, IndexError, ValueError, TypeError) as error:
            if any(text in str(error) for text in ALLOWED):
                continue
            if "is out of bounds" in str(error):  # PyTorch has changed some elements then
                continue
        else:
            if result is not None:
                tensors.append(result)
        kept[-1] = True
    return kept


def run(program: list[Step], leaves: Tensors, module: Any, quiet: list[bool]) -> list[Any]:
    """What the steps do: the error's kind, or the values and facts at the end, and gradients."""
    tensors, trace = [leaves[0] * 1.0, *leaves], []
    for (_, step), silent in zip(program, quiet, strict=True):
        before = [values(t) for t in tensors]
        try:
            with module.set_grad_enabled(not silent):
                result = step(tensors)
        except (RuntimeError, IndexError, ValueError, TypeError) as error:
            trace.append("refused")
            for a, t in zip(before, tensors, strict=True):
                np.testing.assert_array_equal(a, values(t), err_msg=f"changed by {error}")
            continue
        trace.append("done")
        if result is not None:
            tensors.append(result)
        # PyTorch takes a view whose base has come to require a gradient for a leaf until asked.
        assert all(t.is_leaf or t.grad_fn is not None for t in tensors)
    trace += [(t.requires_grad, t.is_leaf, values(t)) for t in tensors]
    used = [t for t in tensors if t.requires_grad]
    try:
        for t in used:
            t.sum().backward(retain_graph=True)
    except RuntimeError:
        return [*trace, "not differentiable"]
    gradients = [t.grad if t.is_leaf else None for t in leaves]
    return trace + [None if g is None else values(g) for g in gradients]


def values(tensor: Any, copied: bool = True) -> np.ndarray:
    return np.array(tensor.detach().numpy(), copy=copied)


@pytest.mark.parametrize("block", range(10))
def test_programs_give_the_same_errors_or_gradients(block: int) -> None:
    differentiated = 0
    for seed in range(block * 100, block * 100 + 100):
        rng = np.random.default_rng(seed)
        program = steps(rng, int(rng.integers(2, 9)))
        starts = [np.round(rng.uniform(-1, 1, SHAPE), 2) for _ in range(3)]
        grads = [True, bool(rng.integers(2)), False]
        # A view that was made without recording is of no use to PyTorch afterwards, and another
        # shape of a result has a gradient of the former one.
        unusual = ("append", "unsqueeze_", "transpose_")
        quiet = [
            bool(rng.random() < 0.1) and not any(word in name for word in unusual)
            for name, _ in program
        ]
        made = [torch.tensor(a, requires_grad=g) for a, g in zip(starts, grads, strict=True)]
        kept = usable(program, made, quiet)
        program, quiet = list(compress(program, kept)), list(compress(quiet, kept))
        text = [f"{'no_grad: ' * q}{name}" for (name, _), q in zip(program, quiet, strict=True)]
        both = []
        for module in (fl, torch):
            made = [module.tensor(a, requires_grad=g) for a, g in zip(starts, grads, strict=True)]
            both.append(run(program, made, module, quiet))
        message = f"seed {seed}, {grads}: {text}"
        compare(both[0], both[1], message)
        differentiated += isinstance(both[1][-3], np.ndarray)
    assert differentiated > 20


def compare(found: list[Any], expected: list[Any], message: str) -> None:
    if expected[-1] == "not differentiable" and found[-1] != expected[-1]:
        # A result in place of an op that has saved it is of another memory here: that is right.
        found, expected = found[: len(expected) - 1], expected[:-1]
    assert [type(a) for a in found] == [type(a) for a in expected], (
        f"{message}\n{found}\n{expected}"
    )
    for a, b in zip(found, expected, strict=True):
        if isinstance(b, np.ndarray):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12, err_msg=message)
        elif isinstance(b, tuple):
            assert a[:2] == b[:2], message
            np.testing.assert_allclose(a[2], b[2], rtol=1e-9, atol=1e-12, err_msg=message)
        else:
            assert a == b, message
