"""AUC, gAUC and logloss of logits against labels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F
from torchmetrics.functional.classification import binary_auroc


@dataclass(frozen=True)
class Metrics:
    """Metrics of a model on one example set.

    Attributes:
        auc: chance that a positive is ranked above a negative; a tie counts half. NaN with one class only.
        gauc: AUC within each user, averaged over users weighted by impressions; users with one class are left out.
        logloss: mean binary cross-entropy, nats.
        examples: number of rows.
        positives: share of positive rows.
        users: users in the gAUC.
    """

    auc: float
    gauc: float
    logloss: float
    examples: int
    positives: float
    users: int


@dataclass(frozen=True)
class GroupAUC:
    """AUC within each user that has both classes.

    Attributes:
        user: [U] int64.
        auc: [U] float64.
        impressions: [U] int64.
    """

    user: NDArray[np.int64]
    auc: NDArray[np.float64]
    impressions: NDArray[np.int64]

    @property
    def mean(self) -> float:
        """gAUC: the mean weighted by impressions; NaN without users."""
        return float(np.average(self.auc, weights=self.impressions)) if len(self.auc) else float("nan")


def evaluate(user: NDArray, label: NDArray, logit: NDArray) -> Metrics:
    """All metrics of one example set.

    Args:
        user: [n] integers.
        label: [n], 0 or 1.
        logit: [n], finite.
    """
    groups = group_auc(user, label, logit)
    scores, targets = torch.from_numpy(np.asarray(logit, np.float64)), torch.from_numpy(np.asarray(label, np.float64))
    return Metrics(
        auc=auc(label, logit),
        gauc=groups.mean,
        logloss=F.binary_cross_entropy_with_logits(scores, targets).item(),
        examples=len(label),
        positives=float(np.mean(label)),
        users=len(groups.user),
    )


def auc(label: NDArray, score: NDArray) -> float:
    """AUC of one ranking, exact, ties at half; NaN with one class only.

    Args:
        label: [n], 0 or 1.
        score: [n], any finite numbers: only their order counts.
    """
    label = np.asarray(label)
    if len(label) == 0 or label.min() == label.max():
        return float("nan")
    # Ranks keep the order and the ties, and lie in [0, 1], where torchmetrics does not squash its input.
    _, rank = np.unique(_finite(score), return_inverse=True)
    ranks = torch.from_numpy(rank / max(rank.max(), 1))
    return binary_auroc(ranks, torch.from_numpy(label.astype(np.int64))).item()


def group_auc(user: NDArray, label: NDArray, score: NDArray) -> GroupAUC:
    """AUC per user, for all users at once: mid-ranks within each user, then sums per user.

    Args:
        user: [n] integers.
        label: [n], 0 or 1.
        score: [n], finite.
    """
    user, label, score = np.asarray(user), np.asarray(label), _finite(score)
    if len(user) == 0:
        return GroupAUC(np.zeros(0, np.int64), np.zeros(0), np.zeros(0, np.int64))
    order = np.lexsort((score, user))
    user, score, positive = user[order], score[order], label[order] == 1
    first_of_user = np.ones(len(user), bool)
    first_of_user[1:] = user[1:] != user[:-1]
    first_of_tie = first_of_user.copy()
    first_of_tie[1:] |= score[1:] != score[:-1]
    group, tie = np.cumsum(first_of_user) - 1, np.cumsum(first_of_tie) - 1
    starts, tie_starts = np.flatnonzero(first_of_user), np.flatnonzero(first_of_tie)
    tie_sizes = np.diff(tie_starts, append=len(user))
    # 1-based mid-rank within the user: ties share the mean of the ranks that they fill.
    rank = tie_starts[tie] + (tie_sizes[tie] + 1) / 2 - starts[group]
    impressions = np.diff(starts, append=len(user))
    positives = np.bincount(group, weights=positive).astype(np.int64)
    rank_sum = np.bincount(group, weights=rank * positive)
    pairs = positives * (impressions - positives)
    both = pairs > 0
    values = (rank_sum[both] - positives[both] * (positives[both] + 1) / 2) / pairs[both]
    return GroupAUC(user[starts][both].astype(np.int64), values, impressions[both])


def _finite(score: NDArray) -> NDArray[np.float64]:
    score = np.asarray(score, np.float64)
    bad = ~np.isfinite(score)
    if bad.any():
        raise ValueError(
            f"score holds {score[bad][0]} ({bad.sum():,} of {len(score):,} are not finite), expected finite "
            "numbers: the model has diverged; lower the learning rate"
        )
    return score
