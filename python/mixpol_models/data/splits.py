"""Splits by time. Never by row: neighbours in time must not straddle the cut."""

from __future__ import annotations

import polars as pl


def by_time(train: float = 0.8, valid: float = 0.1) -> pl.Expr:
    """The split column for a log without days of its own: global time quantiles.

    The cuts are times, so rows of equal time share a split.

    Args:
        train, valid: shares of the rows, in (0, 1); the rest is test.
    """
    if not (0 < train < 1 and 0 < valid < 1 and train + valid < 1):
        raise ValueError(f"train={train}, valid={valid}: expected positive shares with a sum below 1, the rest is test")
    time = pl.col("time")
    first_valid = time.quantile(train, "higher")
    first_test = time.quantile(train + valid, "higher")
    return (
        pl.when(time < first_valid)
        .then(pl.lit("train"))
        .when(time < first_test)
        .then(pl.lit("valid"))
        .otherwise(pl.lit("test"))
        .alias("split")
    )
