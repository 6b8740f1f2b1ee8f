"""Metrics against brute force over all pairs."""

from __future__ import annotations

import random

import numpy as np
import pytest

from mixpol_models.training import auc, evaluate, group_auc


def brute_auc(label: np.ndarray, score: np.ndarray) -> float:
    gaps = score[label == 1][:, None] - score[label == 0][None, :]
    return float((gaps > 0).mean() + (gaps == 0).mean() / 2)


@pytest.fixture
def rng(source: random.Random) -> np.random.Generator:
    return np.random.default_rng(source.randrange(2**32))


@pytest.mark.parametrize("levels", [2, 5, 10**6])
def test_auc(rng: np.random.Generator, levels: int) -> None:
    label = rng.integers(0, 2, 300)
    score = rng.integers(0, levels, 300) / 7 - 3
    assert auc(label, score) == pytest.approx(brute_auc(label, score), abs=1e-6)


def test_auc_counts_order_only(rng: np.random.Generator) -> None:
    """Logits far out, where a sigmoid has one value for all, still rank."""
    label, score = rng.integers(0, 2, 200), rng.normal(size=200)
    assert auc(label, 1e6 + 1e3 * score) == auc(label, score)
    assert auc(np.array([0, 1]), np.array([500.0, 501.0])) == 1


def test_auc_of_one_class_is_nan() -> None:
    assert np.isnan(auc(np.ones(3), np.arange(3)))
    assert np.isnan(auc(np.ones(0), np.ones(0)))


@pytest.mark.parametrize("levels", [3, 10**6])
def test_group_auc(rng: np.random.Generator, levels: int) -> None:
    user = rng.integers(0, 40, 300) * 1_000_003
    label, score = rng.integers(0, 2, 300), rng.integers(0, levels, 300).astype(float)
    values, weights = [], []
    for one in np.unique(user):
        rows = user == one
        if 0 < label[rows].sum() < rows.sum():
            values.append(brute_auc(label[rows], score[rows]))
            weights.append(rows.sum())
    found = group_auc(user, label, score)
    np.testing.assert_allclose(found.auc, values, atol=1e-12)
    np.testing.assert_array_equal(found.impressions, weights)
    assert found.mean == pytest.approx(np.average(values, weights=weights))


def test_group_auc_without_mixed_users() -> None:
    assert np.isnan(group_auc(np.array([0, 1]), np.array([0, 1]), np.array([0.1, 0.2])).mean)
    assert np.isnan(group_auc(np.zeros(0), np.zeros(0), np.zeros(0)).mean)


def test_logloss(rng: np.random.Generator) -> None:
    label, logit = rng.integers(0, 2, 100).astype(np.float32), rng.normal(size=100).astype(np.float32)
    p = 1 / (1 + np.exp(-logit.astype(float)))
    expected = -np.mean(label * np.log(p) + (1 - label) * np.log1p(-p))
    found = evaluate(np.zeros(100, int), label, logit)
    assert found.logloss == pytest.approx(expected, abs=1e-9)
    assert found.examples == 100
    assert found.positives == pytest.approx(label.mean())


def test_a_diverged_model_is_told() -> None:
    with pytest.raises(ValueError, match="lower the learning rate"):
        auc(np.array([0, 1]), np.array([np.nan, 1.0]))
