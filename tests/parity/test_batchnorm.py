"""The batch norm layer against PyTorch's, where options and buffers are not as they were made."""

import numpy as np
import pytest

from fastlayers import nn

torch = pytest.importorskip("torch")


def switched_off(bn, array):
    bn.track_running_stats = False


def without_statistics(bn, array):
    bn.running_mean = bn.running_var = None


def without_count(bn, array):
    bn.num_batches_tracked = None


def old_count(bn, array):
    bn.num_batches_tracked = array([7])


def real_count(bn, array):
    bn.num_batches_tracked = array(7.0)


CHANGES = [
    lambda bn, array: None,
    switched_off,
    without_statistics,
    without_count,
    old_count,
    real_count,
]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("momentum", [0.1, -0.5, 1.5, 2, 0, None])
def test_equals_torch(change, momentum):
    ours, theirs = nn.BatchNorm2d(3, momentum=momentum), torch.nn.BatchNorm2d(3, momentum=momentum)
    change(ours, np.array)
    change(theirs, torch.tensor)
    rng = np.random.default_rng(0)
    for step in range(6):
        for bn in (ours, theirs):
            bn.train(step not in (2, 4))
        n = [4, 0, 4, 2, 0, 3][step]
        x = rng.standard_normal((n, 3, 2, 2)).astype(np.float32) + 3
        got, want = ours(x), theirs(torch.tensor(x))
        if momentum is None or 0 <= momentum <= 1:  # else a variance may be negative
            np.testing.assert_allclose(
                np.asarray(got.detach()), want.detach().numpy(), rtol=1e-4, atol=1e-4
            )
        for name, value in theirs.named_buffers():
            mine = np.asarray(getattr(ours, name))
            np.testing.assert_allclose(mine, value.numpy(), rtol=1e-5, atol=1e-5)
            assert mine.shape == value.shape
        assert {n for n, _ in ours.named_buffers()} == {n for n, _ in theirs.named_buffers()}


@pytest.mark.parametrize("old", [True, False])
def test_states_are_taken_alike(old):
    layer = torch.nn.BatchNorm2d(2)
    layer(torch.randn(4, 2, 3, 3))
    state = {k: v for k, v in layer.state_dict().items() if not old or "num" not in k}
    ours, theirs = nn.BatchNorm2d(2), torch.nn.BatchNorm2d(2)
    ours.load_state_dict(state)
    theirs.load_state_dict(state)
    assert int(np.asarray(ours.num_batches_tracked)) == int(theirs.num_batches_tracked)


def test_repr():
    for options in ({}, {"affine": False}, {"bias": False}, {"momentum": None}):
        ours, theirs = nn.BatchNorm2d(2, **options), torch.nn.BatchNorm2d(2, **options)
        assert repr(ours) == repr(theirs)
