import numpy as np
import pytest

from fastlayers.data import DataLoader, DistributedSampler, RandomShift, TensorDataset


def shares(samples, ranks, **options):
    return [
        list(DistributedSampler(range(samples), ranks, rank, **options)) for rank in range(ranks)
    ]


@pytest.mark.parametrize("samples, ranks", [(12, 3), (13, 3), (14, 3), (2, 4), (0, 2), (7, 1)])
@pytest.mark.parametrize("shuffle", [False, True])
def test_every_sample_is_given_once(samples, ranks, shuffle):
    found = shares(samples, ranks, shuffle=shuffle)
    assert sorted(index for share in found for index in share) == list(range(samples))
    lengths = [len(share) for share in found]
    assert max(lengths) - min(lengths) <= 1
    for rank, length in enumerate(lengths):
        sampler = DistributedSampler(range(samples), ranks, rank)
        assert (len(sampler), sampler.shortest, sampler.longest) == (
            length,
            min(lengths),
            max(lengths),
        )


def test_drops_or_pads_as_asked():
    assert shares(7, 3, shuffle=False, drop_last=True) == [[0, 3], [1, 4], [2, 5]]
    assert shares(7, 3, shuffle=False, pad=True) == [[0, 3, 6], [1, 4, 0], [2, 5, 1]]
    assert shares(2, 5, shuffle=False, pad=True) == [[0], [1], [0], [1], [0]]
    for options, length in (({"drop_last": True}, 2), ({"pad": True}, 3)):
        sampler = DistributedSampler(range(7), 3, 2, **options)
        assert len(sampler) == sampler.shortest == sampler.longest == length


def test_order_is_of_seed_and_epoch():
    sampler = DistributedSampler(range(50), 1, 0, seed=4)
    first = list(sampler)
    assert list(sampler) == first
    sampler.set_epoch(1)
    assert list(sampler) != first
    sampler.set_epoch(0)
    assert list(sampler) == first
    assert list(DistributedSampler(range(50), 1, 0, seed=5)) != first


def test_by_default_alone():
    sampler = DistributedSampler(range(3), shuffle=False)
    assert list(sampler) == [0, 1, 2]


@pytest.mark.parametrize(
    "options, text",
    [
        ({"num_replicas": 0}, "num_replicas must be a positive integer, got 0"),
        ({"num_replicas": 2, "rank": 2}, "rank must be less than 2, got 2"),
        ({"seed": -1}, "seed must be a non-negative integer, got -1"),
        ({"drop_last": True, "pad": True}, "pad must be False if drop_last is true, got both"),
    ],
)
def test_refuses(options, text):
    with pytest.raises(ValueError, match=f"^DistributedSampler: {text}$"):
        DistributedSampler(range(4), **options)
    with pytest.raises(ValueError, match="dataset must have samples to pad with"):
        DistributedSampler([], 2, 0, pad=True)
    with pytest.raises(ValueError, match="epoch must be a non-negative integer"):
        DistributedSampler(range(4)).set_epoch(-1)


@pytest.mark.parametrize("drop_last, lengths", [(False, [[2, 1], [2, 0]]), (True, [[2], [2]])])
def test_all_ranks_get_equally_many_batches(drop_last, lengths):
    x = np.arange(5.0)
    for rank, expected in enumerate(lengths):
        sampler = DistributedSampler(x, 2, rank, shuffle=False)
        loader = DataLoader(TensorDataset(x, x), 2, sampler=sampler, drop_last=drop_last)
        batches = list(loader)
        assert [len(batch[0]) for batch in batches] == expected
        assert len(loader) == len(expected)
        np.testing.assert_array_equal(
            np.concatenate([batch[0].data for batch in batches]),
            np.arange(rank, 5, 2)[: sum(expected)],
        )


def test_an_empty_batch_has_the_fields_of_others():
    samples = [{"x": np.ones((2, 3), np.float32), "y": 1}]
    loader = DataLoader(samples, sampler=DistributedSampler(samples, 2, 1))
    [batch] = loader
    assert batch["x"].shape == (0, 2, 3)
    assert batch["y"].shape == (0,)


@pytest.mark.parametrize("seed", [None, 3])
def test_parts_of_batches_make_up_the_batches(seed):
    images = np.arange(7 * 9, dtype=np.float32).reshape(7, 1, 3, 3)
    import fastlayers as fl

    def epoch(rank, ranks):
        fl.manual_seed(1)
        loader = DataLoader(TensorDataset(images, np.arange(7)), 3, True, seed=seed)
        return [
            [field.data for field in batch]
            for batch in RandomShift(loader, 1, seed=seed).part(rank, ranks)
        ]

    whole = epoch(0, 1)
    assert [len(labels) for _, labels in whole] == [3, 3, 1]
    for ranks in (1, 2, 4):
        parts = [epoch(rank, ranks) for rank in range(ranks)]
        for number, batch in enumerate(whole):
            for field, values in enumerate(batch):
                joined = np.concatenate([part[number][field] for part in parts])
                np.testing.assert_array_equal(joined, values)
