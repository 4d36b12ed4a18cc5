"""DistributedDataParallel on real MPI processes, beside one process on all samples."""

import json
from pathlib import Path

import numpy as np
import pytest
from distributed import program

import fastlayers as fl
from fastlayers import distributed, nn

PROGRAM = Path(program.__file__).read_text()
UNEQUAL = [[5, 0, 7], [12, 0, 0], [1, 4, 7], [4, 4, 4]]
# Ranks, options, and the largest relative difference that is rounding.
RUNS = [
    (2, {}, 1e-5),
    (3, {"parts": UNEQUAL}, 1e-5),
    (4, {"parts": [[0, 1, 9, 2], [3, 3, 3, 3]], "dtype": "float64"}, 1e-10),
    (2, {"accumulate": 2, "dtype": "float64"}, 1e-10),
    (3, {"model": "plain", "norm": "none", "parts": UNEQUAL}, 1e-5),
]


def furthest(a, b):
    """Largest difference of two states, relative to the largest value of each array."""
    assert a.keys() == b.keys()
    return max(np.abs(a[k] - b[k]).max() / max(np.abs(b[k]).max(), 1e-3) for k in b)


@pytest.mark.parametrize("number, options, bound", RUNS, ids=str)
def test_ranks_train_as_one_process_on_all_samples(ranks, tmp_path, number, options, bound):
    options = program.OPTIONS | options
    together, alone = tmp_path / "together.npz", tmp_path / "alone.npz"
    bits = {
        line.split()[1]
        for line in ranks(number, PROGRAM, json.dumps(options), together).splitlines()
    }
    assert len(bits) == 1  # all ranks' states
    program.main(options, alone)
    assert furthest(fl.load(together), fl.load(alone)) <= bound


def test_gradients_of_any_use(ranks):
    ranks(
        2,
        """
        import numpy as np
        import fastlayers as fl
        from fastlayers import distributed, nn

        distributed.init()
        rank = distributed.rank()
        x = np.full((1 + rank, 2), 1.0 + rank)  # one sample of ones, two of twos: a mean of 5 / 3


        class Two(nn.Module):
            def __init__(self):
                super().__init__()
                self.first, self.second = nn.Linear(2, 1, dtype=float), nn.Linear(2, 1, dtype=float)

            def forward(self, x, both=False):
                return self.first(x) + self.second(x) if both else self.first(x)


        def grad(p):
            return None if p.grad is None else p.grad.tolist()


        model = distributed.DistributedDataParallel(Two(), bucket_cap_mb=1e-6)
        first, second = model.module.first, model.module.second
        model(x).mean().backward()
        np.testing.assert_allclose(first.weight.grad, 5 / 3)
        assert grad(second.weight) is None  # no rank used it

        model.zero_grad()
        model(x, both=rank == 1).mean().backward()
        np.testing.assert_allclose(first.weight.grad, 5 / 3)
        np.testing.assert_allclose(second.weight.grad, 4 / 3)  # twos of two samples of three

        model(x).mean().backward()  # adds up, as without ranks
        np.testing.assert_allclose(first.weight.grad, 10 / 3)
        np.testing.assert_allclose(second.weight.grad, 4 / 3)

        model.zero_grad()
        with model.no_sync():
            model(x).mean().backward()
        np.testing.assert_allclose(first.weight.grad, 1.0 + rank)
        model(x).mean().backward()
        np.testing.assert_allclose(first.weight.grad, 10 / 3)

        # A backward through another model leaves this one's forward pass waiting for its own.
        other = distributed.DistributedDataParallel(nn.Linear(2, 1, dtype=float))
        model.zero_grad()
        y, z = model(x), other(x)
        z.mean().backward()
        assert grad(first.weight) is None
        np.testing.assert_allclose(other.module.weight.grad, 5 / 3)
        y.mean().backward()
        np.testing.assert_allclose(first.weight.grad, 5 / 3)

        # Nobody has samples: no gradient, not one of 0 / 0.
        model.zero_grad()
        model(x[:0]).sum().backward()
        assert grad(first.weight) is None
        """,
    )


def test_sums_begin_while_backward_goes_on(ranks):
    ranks(
        2,
        """
        import numpy as np
        from fastlayers import distributed, nn

        model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
        model = distributed.DistributedDataParallel(model, bucket_cap_mb=1e-6)
        reducer, begun = model._reducer, []
        ready = reducer.ready
        reducer.ready = lambda *args: (ready(*args), begun.append(reducer._started))
        model(np.ones((3, 4), np.float32)).sum().backward()
        assert begun[0] <= 1 and begun[-1] == 6 and 2 <= begun[3] <= 4, begun
        """,
    )


def test_buffers_are_those_of_rank_0(ranks):
    ranks(
        2,
        """
        import numpy as np
        from fastlayers import distributed, nn

        distributed.init()
        model = distributed.DistributedDataParallel(nn.BatchNorm1d(2))
        x = np.random.default_rng(distributed.rank()).standard_normal((4, 2)).astype(np.float32)
        model(x)
        model.sync_buffers()
        text = str(model.state_dict())
        assert distributed.Channel().broadcast_text(text) == text
        model(x[: 4 * distributed.rank()])  # nothing on rank 0
        assert int(model.module.num_batches_tracked) == 1 + distributed.rank()
        assert model.module.training
        """,
    )


def test_alone_it_is_the_model():
    model = nn.Linear(3, 2)
    wrapped = distributed.DistributedDataParallel(model)
    x = np.ones((2, 3), np.float32)
    np.testing.assert_array_equal(wrapped(x).array(), model(x).array())
    assert list(wrapped.state_dict()) == ["module.weight", "module.bias"]
    with wrapped.no_sync():
        wrapped(x).sum().backward()
    assert model.weight.grad is not None
    wrapped.sync_buffers()


@pytest.mark.parametrize(
    "arguments, options, error, text",
    [
        ((3,), {}, TypeError, "module must be a Module, got int"),
        ((nn.ReLU(),), {"bucket_cap_mb": 0}, ValueError, "bucket_cap_mb must be positive, got 0"),
    ],
)
def test_refuses(arguments, options, error, text):
    with pytest.raises(error, match=f"^DistributedDataParallel: {text}$"):
        distributed.DistributedDataParallel(*arguments, **options)
