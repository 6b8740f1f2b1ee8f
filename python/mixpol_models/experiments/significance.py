"""Tests of paired differences over seeds."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np

# All sign patterns up to here, a seeded sample of them above.
_EXACT = 16
_SAMPLE = 1 << _EXACT


def paired_t(differences: Sequence[float]) -> float:
    """Two-sided p-value of Student's t-test for a mean of zero, n - 1 degrees of freedom.

    Args:
        differences: one per seed, [n]; taken as normal, which nobody can check with three of them.

    Returns:
        NaN for n < 2 or when all are the same.
    """
    values = np.asarray(differences, float)
    n = len(values)
    if n < 2 or values.std(ddof=1) == 0:
        return float("nan")
    t = abs(values.mean()) / (values.std(ddof=1) / math.sqrt(n))
    # P(|T| > t) = 2 c ∫ cos(u)^(ν-1) du over [atan(t / √ν), π/2], the density after t = √ν tan u.
    freedom = n - 1
    u = np.linspace(math.atan(t / math.sqrt(freedom)), math.pi / 2, 20_001)
    c = math.exp(math.lgamma(n / 2) - math.lgamma(freedom / 2)) / math.sqrt(math.pi)
    return float(2 * c * np.trapezoid(np.cos(u) ** (freedom - 1), u))


def sign_flip(differences: Sequence[float], seed: int = 0) -> float:
    """Two-sided p-value of a sign-flip permutation test for a mean of zero.

    Under the null hypothesis each difference is as likely with the other sign. No law is assumed, but with n
    differences the p-value is at least 2 / 2^n: 0.25 for three seeds.

    Args:
        differences: one per pair, [n].
        seed: of the sample of sign patterns that stands for all of them from n = 17 on.

    Returns:
        NaN for n < 2.
    """
    values = np.asarray(differences, float)
    n = len(values)
    if n < 2:
        return float("nan")
    if n <= _EXACT:
        signs = np.array(list(itertools.product((-1, 1), repeat=n)), np.int8)
    else:
        signs = np.random.default_rng(seed).choice(np.array([-1, 1], np.int8), (_SAMPLE, n))
        signs[0] = 1
    reached = np.abs(signs @ values) >= abs(values.sum()) * (1 - 1e-12)
    return float(reached.mean())
