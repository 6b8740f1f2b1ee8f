"""Bootstrap over test users, within those with a positive and those with a negative target."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mixpol_models.pnfrec.evaluation import Ranking, gains


@dataclass(frozen=True)
class Interval:
    """A value on the users as they are, and its 2.5 % and 97.5 % points over resamples."""

    value: float
    low: float
    high: float

    def excludes_zero(self) -> bool:
        """Whether the interval excludes 0."""
        return self.low > 0 or self.high < 0


def user_intervals(
    rankings: Sequence[Ranking],
    against: Sequence[Ranking] | None = None,
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Interval]:
    """Intervals of HR_p, NDCG_p, MRR_p, ..._n and Δ..., or of their differences to another model on the same users.

    A user's gains are averaged over the seeds first: the interval holds the chance in who the users are. Every call
    with the same users and seed draws the same users.

    Args:
        rankings: one a seed.
        against: of the other model, for paired differences.
        resamples: how many.
        seed: of the draws.

    Raises:
        ValueError: the users are not the same, or one group of users is empty.
    """
    positive = rankings[0].positive
    for other in [*rankings, *(against or ())]:
        if not np.array_equal(other.positive, positive):
            raise ValueError("rankings are of different users, expected the same test part for all")
    if positive.all() or not positive.any():
        raise ValueError(f"{positive.sum()} of {len(positive)} targets are positive, expected both polarities")
    mean = _mean_gains(rankings)
    if against is not None:
        mean = {name: gain - _mean_gains(against)[name] for name, gain in mean.items()}
    rng = np.random.default_rng(seed)
    groups = {"p": np.flatnonzero(positive), "n": np.flatnonzero(~positive)}
    draws = {key: rng.choice(users, (resamples, len(users))) for key, users in groups.items()}
    found = {}
    for name, gain in mean.items():
        value = {key: gain[users].mean() for key, users in groups.items()}
        drawn = {key: gain[users].mean(1) for key, users in draws.items()}
        for key in groups:
            found[f"{name}_{key}"] = _interval(value[key], drawn[key])
        found[f"Δ{name}"] = _interval(value["p"] - value["n"], drawn["p"] - drawn["n"])
    return found


def _mean_gains(rankings: Sequence[Ranking]) -> dict[str, NDArray[np.float64]]:
    per_seed = [gains(ranking.rank) for ranking in rankings]
    return {name: np.mean([gain[name] for gain in per_seed], axis=0) for name in per_seed[0]}


def _interval(value: float, drawn: NDArray[np.float64]) -> Interval:
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Interval(float(value), float(low), float(high))
