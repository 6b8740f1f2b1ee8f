"""Paired bootstrap over users: how far a difference of AUCs could be chance in who was sampled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Elements per work array, which keeps a chunk of resamples within a few tens of MB.
_CHUNK = 1_000_000


@dataclass(frozen=True)
class Difference:
    """AUC of one model minus AUC of the reference, on the same rows.

    Attributes:
        mean: on the rows as they are, mean over runs.
        low, high: 2.5 % and 97.5 % points over resamples of the users.
    """

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, mean: float, draws: NDArray) -> Difference:
        """From the difference under each resample; one without a class is NaN, and left out."""
        low, high = np.nanquantile(draws, [0.025, 0.975])
        return cls(float(mean), float(low), float(high))

    @property
    def text(self) -> str:
        """As "+0.0104 [+0.0071, +0.0138]"."""
        return f"{self.mean:+.4f} [{self.low:+.4f}, {self.high:+.4f}]"


def paired_bootstrap(
    user: NDArray,
    label: NDArray,
    scores: Mapping[str, NDArray],
    reference: str,
    resamples: int = 400,
    seed: int = 0,
) -> dict[str, Difference]:
    """Intervals for AUC differences. Users are drawn with replacement, with all of their rows, the same for all models.

    With several runs (seeds) of a model the AUCs are averaged over runs within each resample, so an interval is
    about the average run and holds the chance in the users; the spread over seeds stands beside it.

    Args:
        user: [n] integers.
        label: [n], 0 or 1, both present.
        scores: per model [n], or [runs, n].
        reference: the key in `scores` that the others are held against.
        resamples: how many.
        seed: of the draws.

    Returns:
        one `Difference` for each other model.
    """
    if reference not in scores:
        raise ValueError(f"reference is {reference!r}, expected one of {tuple(scores)}")
    codes, n_users = _codes(user)
    draws = _draw(n_users, resamples, seed)
    everyone = np.ones((1, n_users))
    aucs = {
        name: np.mean(
            [weighted_auc(codes, label, run, np.vstack([everyone, draws])) for run in np.atleast_2d(runs)], axis=0
        )
        for name, runs in scores.items()
    }
    gaps = {name: values - aucs[reference] for name, values in aucs.items() if name != reference}
    return {name: Difference.of(gap[0], gap[1:]) for name, gap in gaps.items()}


def auc_resamples(
    user: NDArray, label: NDArray, score: NDArray, resamples: int = 400, seed: int = 0, rows: NDArray | None = None
) -> NDArray[np.float64]:
    """AUC under resamples of the users: what one model adds to a paired bootstrap, so that no scores have to be kept.

    The draws depend on the users, `resamples` and `seed` alone: element r of two models' results belongs together, and
    the quantiles of their difference are those of `paired_bootstrap`.

    Args:
        user, label, score: [n], as in `paired_bootstrap`.
        resamples, seed: of the draws.
        rows: [n] booleans; the AUC is over these rows alone, the draws are over the users of all. None takes all.

    Returns:
        [resamples]; NaN where a class was not drawn.
    """
    codes, n_users = _codes(user)
    chosen = slice(None) if rows is None else rows
    return weighted_auc(codes[chosen], label[chosen], score[chosen], _draw(n_users, resamples, seed))


def weighted_auc(user: NDArray, label: NDArray, score: NDArray, weights: NDArray) -> NDArray[np.float64]:
    """AUC with every row weighted by its user, for many weightings at once.

    Args:
        user: [n] integers from 0.
        label: [n], 0 or 1.
        score: [n]; a tie counts half.
        weights: [R, users].

    Returns:
        [R]; NaN where a class has no weight.
    """
    order = np.argsort(score, kind="stable")
    score, user, positive = np.asarray(score)[order], user[order], np.asarray(label)[order] == 1
    first_of_tie = np.ones(len(score), bool)
    first_of_tie[1:] = score[1:] != score[:-1]
    starts = np.flatnonzero(first_of_tie)
    tie = (np.cumsum(first_of_tie) - 1)[positive]
    before, through = starts[tie], np.append(starts[1:], len(score))[tie]
    result = np.empty(len(weights))
    step = max(1, _CHUNK // max(len(score), 1))
    for i in range(0, len(weights), step):
        rows = weights[i : i + step][:, user]
        below = np.zeros((len(rows), len(score) + 1))
        np.cumsum(rows * ~positive, axis=1, out=below[:, 1:])
        of_positives = rows[:, positive]
        won = (of_positives * (below[:, before] + below[:, through])).sum(axis=1) / 2
        pairs = of_positives.sum(axis=1) * below[:, -1]
        result[i : i + step] = np.divide(won, pairs, out=np.full(len(rows), np.nan), where=pairs > 0)
    return result


def _codes(user: NDArray) -> tuple[NDArray[np.int64], int]:
    known, codes = np.unique(user, return_inverse=True)
    return codes, len(known)


def _draw(n_users: int, resamples: int, seed: int) -> NDArray[np.float64]:
    """[resamples, n_users]: how often each user was drawn."""
    rng = np.random.default_rng(seed)
    drawn = rng.integers(0, n_users, (resamples, n_users)) + np.arange(resamples)[:, None] * n_users
    return np.bincount(drawn.ravel(), minlength=resamples * n_users).reshape(resamples, n_users).astype(float)
