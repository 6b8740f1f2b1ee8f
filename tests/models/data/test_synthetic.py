"""The planted effect: polarity in the history must be worth something."""

import numpy as np
import pytest

from mixpol_models.data import SequenceConfig, build_examples, synthetic_log

N_GROUPS = 20


def auc(score: np.ndarray, label: np.ndarray) -> float:
    order = np.argsort(score + np.random.default_rng(0).uniform(0, 1e-9, len(score)))
    rank = np.empty(len(score))
    rank[order] = np.arange(1, len(score) + 1)
    positive = label == 1
    n_pos, n_neg = positive.sum(), (~positive).sum()
    return (rank[positive].sum() - n_pos * (n_pos + 1) / 2) / (n_pos * n_neg)


def test_same_seed_same_log():
    small = {"n_users": 30, "n_items": 40, "mean_length": 10}
    assert synthetic_log(1, **small).frame.equals(synthetic_log(1, **small).frame)
    assert not synthetic_log(1, **small).frame.equals(synthetic_log(2, **small).frame)


def test_looks_like_a_log():
    log = synthetic_log(n_users=500)
    lengths = log.frame.group_by("user").len()["len"]
    assert 45 < lengths.mean() < 75
    assert lengths.max() > 3 * lengths.median()
    popular = log.frame.group_by("item").len().sort("len", descending=True)["len"]
    assert popular[:100].sum() > 0.4 * log.frame.height
    assert 0.25 < log.frame["label"].mean() < 0.45


def test_negatives_tell_more_than_positives_alone():
    """The target's group in the history ranks targets better by polarity than by positives alone."""
    log = synthetic_log()
    mixed = build_examples(log, SequenceConfig(budget=50)).test
    positive = build_examples(log, SequenceConfig(kind="positive", budget=50)).test

    def counts(examples, polarity: int) -> np.ndarray:
        batch = examples[np.arange(len(examples))]
        owner = np.repeat(np.arange(len(batch)), np.diff(batch.offsets.numpy()))
        same = batch.item_ids.numpy() % N_GROUPS == batch.target_item.numpy()[owner] % N_GROUPS
        return np.bincount(owner[same & (batch.polarity.numpy() == polarity)], minlength=len(batch))

    likes, skips = counts(mixed, 1), counts(mixed, 0)
    by_polarity = auc((likes + 0.7) / (likes + skips + 2.0), mixed.label)
    without_polarity = auc(likes + skips, mixed.label)
    positives_only = auc(counts(positive, 1), positive.label)
    assert by_polarity > positives_only + 0.04
    assert positives_only > without_polarity + 0.05
    assert abs(without_polarity - 0.5) < 0.05


def test_sizes_are_checked():
    with pytest.raises(ValueError, match="n_groups is 0"):
        synthetic_log(n_groups=0)
