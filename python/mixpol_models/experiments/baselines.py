"""Rate baselines: products of smoothed positive rates, which a model has to beat to show that sequences help."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mixpol_models.data import InteractionLog
from mixpol_models.data.log import HISTORY
from mixpol_models.training.metrics import auc, group_auc

ITEM_WEIGHT, USER_WEIGHT, CONTEXT_WEIGHT = 20, 10, 20


@dataclass(frozen=True)
class RateBaseline:
    """One product of rates.

    Attributes:
        name: in tables.
        uses_context: a model that sees the context (tab) must be held against the baseline that does.
        auc, gauc: on the test rows. A product of rates is no probability, so there is no logloss.
        score: [n] float64, in the order of the test examples.
    """

    name: str
    uses_context: bool
    auc: float
    gauc: float
    score: NDArray[np.float64]


def rate_baselines(log: InteractionLog) -> list[RateBaseline]:
    """Smoothed positive rates, multiplied, on the test rows.

    rate = (positives + k m) / (rows + k) with m the mean of the training rows, k = 20 for items and contexts and 10 for
    users; unseen ids get m. Training rows are the history and the training days; for the context's rate, which
    the history may not know, the training days alone.

    Args:
        log: as it was loaded (not through `with_history_targets`).

    Returns:
        item × user, and item × user × context if the log has contexts.
    """
    frame = log.frame.with_columns(pl.col("label").cast(pl.Float64))
    past = frame.filter(pl.col("split").is_in([HISTORY, "train"]))
    days = frame.filter(pl.col("split") == "train")
    test = frame.filter(pl.col("split") == "test")
    mean = float(past["label"].mean())
    user, label = test["user"].to_numpy(), test["label"].to_numpy()

    def rate(rows: pl.DataFrame, key: str, weight: int) -> NDArray[np.float64]:
        rates = rows.group_by(key).agg(rate=(pl.col("label").sum() + weight * mean) / (pl.len() + weight))
        joined = test.select(key).join(rates, on=key, how="left", maintain_order="left")
        return joined["rate"].fill_null(mean).to_numpy()

    def baseline(name: str, uses_context: bool, score: NDArray[np.float64]) -> RateBaseline:
        return RateBaseline(name, uses_context, auc(label, score), group_auc(user, label, score).mean, score)

    product = rate(past, "item", ITEM_WEIGHT) * rate(past, "user", USER_WEIGHT)
    found = [baseline("item × user", False, product)]
    if log.n_contexts > 1:
        found.append(baseline("item × user × tab", True, product * rate(days, "context", CONTEXT_WEIGHT)))
    return found
