"""p-values against scipy where it is installed, and against counting."""

from __future__ import annotations

import math

import pytest

from mixpol_models.experiments.significance import paired_t, sign_flip


def test_paired_t_in_closed_form() -> None:
    """Two degrees of freedom: P(|T| > t) = 1 - t / √(2 + t²)."""
    t = 3.0 / math.sqrt(1 / 3)  # of 2, 3, 4: mean 3, standard deviation 1
    assert paired_t([2.0, 3.0, 4.0]) == pytest.approx(1 - t / math.sqrt(2 + t * t), abs=1e-8)
    assert paired_t([-1.0, 1.0]) == pytest.approx(1.0, abs=1e-8)
    assert math.isnan(paired_t([0.3]))


def test_paired_t_against_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    values = [0.4, -0.1, 0.7, 0.2, 0.9, -0.3]
    assert paired_t(values) == pytest.approx(stats.ttest_1samp(values, 0).pvalue, rel=1e-6)


def test_sign_flip_counts() -> None:
    assert sign_flip([1.0, 2.0, 3.0]) == 2 / 8
    assert sign_flip([1.0, -1.0]) == 1.0
    assert sign_flip([3.0, -1.0, 2.0]) == 4 / 8  # |4| is reached by ±(3, -1, 2) and ±(3, 1, 2)
    assert sign_flip([1.0] * 20) < 1e-3
    assert math.isnan(sign_flip([1.0]))
