"""Jagged batches and their loaders."""

import pytest
import torch
from data_helpers import log_of

from mixpol_models.data import Batch, Examples, SequenceConfig, build_examples, synthetic_log

EVENTS = [(0, 10, 1, 1), (0, 11, 2, 0), (0, 12, 3, 1), (1, 13, 1, 0), (1, 14, 2, 1)]


@pytest.fixture(scope="module")
def examples() -> Examples:
    return build_examples(synthetic_log(n_users=60, n_items=50, mean_length=12), SequenceConfig(budget=10))


def flat(batches) -> list[list[float]]:
    return [tensor.tolist() for batch in batches for tensor in vars(batch).values()]


def test_a_batch_by_hand():
    batch = build_examples(log_of(EVENTS)).train[[2, 3, 4, 2]]
    assert batch.user.tolist() == [0, 1, 1, 0]
    assert batch.target_item.tolist() == [12, 13, 14, 12]
    assert batch.label.tolist() == [1, 0, 1, 1]
    assert batch.context.tolist() == [0, 0, 0, 0]
    assert batch.offsets.tolist() == [0, 2, 2, 3, 5]
    assert batch.item_ids.tolist() == [10, 11, 13, 10, 11]
    assert batch.polarity.tolist() == [1, 0, 0, 1, 0]
    dtypes = {name: tensor.dtype for name, tensor in vars(batch).items()}
    assert dtypes.pop("label") == torch.float32
    assert dtypes.pop("polarity") == torch.uint8
    assert set(dtypes.values()) == {torch.int64}


def test_to_moves_every_tensor(examples: Examples):
    batch = examples.train[[0, 1]].to("meta")
    assert isinstance(batch, Batch)
    assert {tensor.device.type for tensor in vars(batch).values()} == {"meta"}


def test_index_has_one_dimension(examples: Examples):
    with pytest.raises(ValueError, match=r"index has shape \[\], expected \[B\]"):
        examples.train[0]


def test_every_example_once_and_in_order(examples: Examples):
    train = examples.train
    for shuffle in (False, True):
        batches = list(train.batches(16, shuffle=shuffle))
        assert len(batches) == -(-len(train) // 16)
        pairs = [pair for b in batches for pair in zip(b.user.tolist(), b.target_item.tolist(), strict=True)]
        expected = list(zip(train.user.tolist(), train.item.tolist(), strict=True))
        assert (pairs == expected) is not shuffle
        assert sorted(pairs) == sorted(expected)


def test_drop_last(examples: Examples):
    sizes = [len(batch) for batch in examples.train.batches(16, drop_last=True)]
    assert sizes == [16] * (len(examples.train) // 16)
    assert len(examples.train.loader(16, drop_last=True)) == len(sizes)


def test_order_depends_on_seed_and_epoch_only(examples: Examples):
    def epoch(seed: int, epoch: int) -> list:
        return flat(examples.train.batches(64, shuffle=True, seed=seed, epoch=epoch))

    assert epoch(0, 0) == epoch(0, 0)
    assert epoch(0, 0) != epoch(0, 1)
    assert epoch(0, 0) != epoch(1, 0)


def test_loader_is_the_same_for_any_number_of_workers(examples: Examples):
    expected = [flat(examples.train.batches(64, shuffle=True, seed=3, epoch=e)) for e in (0, 1)]
    for num_workers in (0, 2):
        loader = examples.train.loader(64, shuffle=True, seed=3, num_workers=num_workers)
        assert len(loader) == -(-len(examples.train) // 64)
        assert [flat(loader), flat(loader)] == expected, f"{num_workers} workers"
    loader.sampler.set_epoch(0)
    assert flat(loader) == expected[0]


def test_batch_size_is_checked(examples: Examples):
    with pytest.raises(ValueError, match="batch_size is 0"):
        examples.train.loader(0)
