"""The paired bootstrap and its weighted AUC."""

from __future__ import annotations

import random

import numpy as np
import pytest

from mixpol_models.experiments.bootstrap import paired_bootstrap, weighted_auc
from mixpol_models.training import auc


@pytest.fixture
def rng(source: random.Random) -> np.random.Generator:
    return np.random.default_rng(source.randrange(2**32))


def rows(rng: np.random.Generator, n: int = 400, users: int = 50) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    user, label = rng.integers(0, users, n), rng.integers(0, 2, n)
    return user, label, rng.normal(size=n) + 0.8 * label


@pytest.mark.parametrize("decimals", [0, 8])
def test_weights_are_repetitions(rng: np.random.Generator, decimals: int) -> None:
    user, label, score = rows(rng)
    score = score.round(decimals)
    weights = rng.integers(0, 4, (5, 50)).astype(float)
    for weighting, found in zip(weights, weighted_auc(user, label, score, weights), strict=True):
        times = weighting[user].astype(int)
        assert found == pytest.approx(auc(label.repeat(times), score.repeat(times)), abs=1e-6)


def test_chunks_do_not_show(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    user, label, score = rows(rng)
    weights = rng.integers(0, 3, (7, 50)).astype(float)
    whole = weighted_auc(user, label, score, weights)
    monkeypatch.setattr("mixpol_models.experiments.bootstrap._CHUNK", 900)
    np.testing.assert_array_equal(weighted_auc(user, label, score, weights), whole)


def test_the_mean_is_the_difference_itself(rng: np.random.Generator) -> None:
    user, label, score = rows(rng)
    runs = np.stack([score, rng.normal(size=len(score))])
    other = rng.normal(size=len(score))
    found = paired_bootstrap(user * 1000 + 7, label, {"a": runs, "b": other}, "b", 50)["a"]
    expected = np.mean([auc(label, run) for run in runs]) - auc(label, other)
    assert found.mean == pytest.approx(expected, abs=1e-6)
    assert found.low < found.mean < found.high


def test_equal_models_differ_by_nothing(rng: np.random.Generator) -> None:
    """Paired: both see the same draws, so a monotone copy has no interval at all."""
    user, label, score = rows(rng)
    found = paired_bootstrap(user, label, {"a": score, "b": 3 * score + 1}, "a", 50)["b"]
    assert (found.mean, found.low, found.high) == (0, 0, 0)


def test_a_real_difference_is_seen_and_noise_is_not(rng: np.random.Generator) -> None:
    user, label, score = rows(rng, n=4000, users=400)
    noise = score + 0.01 * rng.normal(size=len(score))
    found = paired_bootstrap(
        user, label, {"good": score, "same": noise, "bad": rng.normal(size=len(score))}, "good", 200
    )
    assert found["bad"].high < 0
    assert found["same"].high - found["same"].low < 0.01


def test_the_width_is_that_of_theory(rng: np.random.Generator) -> None:
    """One row per user and a constant rival: the interval is that of one AUC (Hanley and McNeil)."""
    n = 2000
    label = rng.integers(0, 2, n)
    score = rng.normal(size=n) + 0.8 * label
    found = paired_bootstrap(np.arange(n), label, {"a": score, "b": np.zeros(n)}, "b", 400)["a"]
    value, positives, negatives = auc(label, score), label.sum(), n - label.sum()
    q1, q2 = value / (2 - value), 2 * value**2 / (1 + value)
    variance = value * (1 - value) + (positives - 1) * (q1 - value**2) + (negatives - 1) * (q2 - value**2)
    expected = 2 * 1.96 * np.sqrt(variance / (positives * negatives))
    assert 0.8 < (found.high - found.low) / expected < 1.2


def test_a_class_may_be_missing_from_a_resample() -> None:
    user, label = np.arange(3), np.array([1, 0, 0])
    found = paired_bootstrap(user, label, {"a": np.array([2.0, 1, 0]), "b": np.array([0.0, 1, 2])}, "b", 40)
    assert found["a"].mean == 1


def test_unknown_reference() -> None:
    with pytest.raises(ValueError, match=r"reference is 'c', expected one of \('a',\)"):
        paired_bootstrap(np.arange(2), np.array([0, 1]), {"a": np.arange(2.0)}, "c")
