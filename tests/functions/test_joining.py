"""Tensors joined, divided, arranged, padded and multiplied."""

from typing import Any

import numpy as np
import pytest

from fastlayers import functions as fl
from fastlayers.autograd import Tensor
from fastlayers.functions.padding import pad


def test_cat_takes_the_common_dtype_and_leaves_empty_ones_out() -> None:
    y = fl.cat([fl.zeros(0), fl.ones(1, 2, dtype=np.int64), fl.zeros(1, 2)])
    assert y.tolist() == [[1, 1], [0, 0]] and y.dtype == np.float32


def test_parts_are_views_and_their_changes_have_gradients() -> None:
    x = fl.ones(4, requires_grad=True)
    y = x * 1
    for factor, part in enumerate(fl.split(y, [1, 3])):
        part.mul_(factor + 2)
    assert y.tolist() == [2, 3, 3, 3]
    y.sum().backward()
    assert x.grad is not None and x.grad.tolist() == [2, 3, 3, 3]


def test_numpys_functions_are_recorded() -> None:
    x = fl.ones(2, requires_grad=True)
    y: Any = np.concatenate([x, x * 2], axis=0)
    z: Any = np.stack([y, y], axis=1)
    np.flip(np.transpose(z), axis=0).sum().backward()
    assert x.grad is not None and x.grad.tolist() == [6, 6]


def test_einsum_of_repeated_and_missing_letters() -> None:
    x = fl.arange(9.0).reshape(3, 3).requires_grad_()
    fl.einsum("ii,j->", x, fl.tensor([1.0, 2.0])).backward()
    assert x.grad is not None
    np.testing.assert_array_equal(x.grad.numpy(), 3 * np.eye(3))


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda x: fl.cat([]), ValueError, "non-empty"),
        (lambda x: fl.cat(x), TypeError, "list or tuple"),
        (lambda x: fl.cat([x, x.t()]), RuntimeError, "match"),
        (lambda x: fl.cat([x, 1]), TypeError, "int at 1"),
        (lambda x: fl.stack([x, x.t()]), RuntimeError, "equal size"),
        (lambda x: fl.split(x, [1, 2]), RuntimeError, "sum exactly"),
        (lambda x: fl.chunk(x, 0), RuntimeError, "greater than 0"),
        (lambda x: fl.unbind(fl.tensor(1.0)), IndexError, "0-d"),
        (lambda x: x.narrow(1, 2, 2), RuntimeError, "at most"),
        (lambda x: x.select(0, 2), IndexError, "index"),
        (lambda x: fl.roll(x, (1, 2), 0), RuntimeError, "align"),
        (lambda x: x.repeat(2), RuntimeError, "number of dimensions"),
        (lambda x: fl.repeat_interleave(x, -1), RuntimeError, "non-negative"),
        (lambda x: fl.repeat_interleave(x, 2, 1, output_size=5), RuntimeError, "output_size"),
        (lambda x: fl.tril(x[0]), RuntimeError, "2 dimensions"),
        (lambda x: fl.meshgrid(x), RuntimeError, "one axis"),
        (lambda x: fl.meshgrid(x[0], indexing="no"), RuntimeError, "indexing"),
        (lambda x: x.diagonal(0, 1, 1), RuntimeError, "differ"),
        (lambda x: fl.dot(x, x), RuntimeError, "1 axes"),
        (lambda x: fl.mv(x, x[:, 0]), RuntimeError, "size mismatch"),
        (lambda x: fl.mv(x, x[0].double()), RuntimeError, "same dtype"),
        (lambda x: fl.addmm(fl.zeros(2), x, x.t() @ x), RuntimeError, "existing size"),
        (lambda x: fl.einsum("ij,jk", x, x), RuntimeError, "one size"),
        (lambda x: fl.einsum("ij->ijk", x), RuntimeError, "output"),
        (lambda x: fl.einsum("i", x), RuntimeError, "dimensions"),
        (lambda x: fl.einsum("i1", x), RuntimeError, "a-zA-Z"),
        (lambda x: fl.tensordot(x, x, ([1], [0])), RuntimeError, "match"),
        (lambda x: pad(x, (1,)), RuntimeError, "divisible by 2"),
        (lambda x: pad(x, (3, 0), "reflect"), RuntimeError, "less than"),
        (lambda x: pad(x, (1, 1, 1, 1), "reflect"), NotImplementedError, "axes more"),
        (lambda x: pad(x, (1, 1), "mirror"), NotImplementedError, "mode"),
        (lambda x: pad(x, (1, 1), "circular", 2.0), RuntimeError, "value"),
        (lambda x: pad(x, (-2, -2)), RuntimeError, "non-negative"),
        (lambda x: pad(x, (-2, 2), "circular"), RuntimeError, "at most"),
    ],
)
def test_what_is_refused(call: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        call(fl.arange(6.0).reshape(2, 3))


def test_pad_modes() -> None:
    x = fl.tensor([[1.0, 2.0, 3.0]])
    assert pad(x, (1, 2)).tolist() == [[0, 1, 2, 3, 0, 0]]
    assert pad(x, (-1, 1), value=9).tolist() == [[2, 3, 9]]
    assert pad(x, (1, 1), "reflect").tolist() == [[2, 1, 2, 3, 2]]
    assert pad(x, (1, 1), "replicate").tolist() == [[1, 1, 2, 3, 3]]
    assert pad(x, (1, 1), "circular").tolist() == [[3, 1, 2, 3, 1]]
    assert pad(x, (-1, 1), "circular").tolist() == [[2, 3, 2]]


def test_axis_is_dim() -> None:
    x = fl.zeros(2, 3)
    assert fl.cat([x, x], axis=1).shape == (2, 6) and fl.stack([x, x], axis=-1).shape == (2, 3, 2)
    assert x.unsqueeze(axis=0).squeeze(axis=0).shape == (2, 3)
    assert [part.shape for part in x.chunk(3, axis=1)] == [(2, 1)] * 3
    assert x.gather(axis=1, index=fl.zeros(2, 1).long()).shape == (2, 1)


def test_numpys_functions_have_numpys_arguments() -> None:
    x = fl.arange(6.0).reshape(2, 3)
    a = x.numpy()
    calls: list[Any] = [
        lambda x: np.tril(x, k=-1),
        lambda x: np.triu(x, k=1),
        lambda x: np.diag(x, k=1),
        lambda x: np.rot90(x, 3, axes=(1, 0)),
        lambda x: np.flip(x),
        lambda x: np.flip(x, axis=(0, 1)),
        lambda x: np.roll(x, 2),
        lambda x: np.roll(x, 1, axis=(0, 1)),
        lambda x: np.tile(x, 2),
        lambda x: np.tile(x, (2, 1, 1)),
        lambda x: np.repeat(x, [1, 2], axis=0),
        lambda x: np.repeat(x, 2),
        lambda x: np.reshape(x, (3, -1)),
        lambda x: np.reshape(x, shape=6),
        lambda x: np.transpose(x, (1, 0)),
        lambda x: np.swapaxes(x, 0, 1),
        lambda x: np.moveaxis(x, 0, -1),
        lambda x: np.squeeze(np.expand_dims(x, axis=1), axis=1),
        lambda x: np.broadcast_to(x, (2, 2, 3)),
        lambda x: np.concatenate([x, x], axis=1),
        lambda x: np.vstack([x, x]),
        lambda x: np.hstack((x, x)),
        lambda x: np.outer(x[0], x[1]),
        lambda x: np.einsum("ij,kj->ik", x, x),
        lambda x: np.tensordot(x, x, axes=((1,), (1,))),
        lambda x: np.meshgrid(x[0], x[1])[0],
    ]
    for call in calls:
        y = call(x)
        assert isinstance(y, Tensor)
        np.testing.assert_array_equal(y.numpy(), call(a))
