"""A part of a log, for quick runs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import polars as pl

from mixpol_models.data import InteractionLog


def some_users(log: InteractionLog, events: int, seed: int = 0) -> InteractionLog:
    """Keeps about `events` rows: some users, each with all of their rows.

    Args:
        log: returned as it is if it is that small already.
        events: rows aimed at.
        seed: of the choice.
    """
    if log.frame.height <= events:
        return log
    kept = round(log.n_users * events / log.frame.height)
    users = np.random.default_rng(seed).permutation(log.n_users)[: max(kept, 1)]
    return replace(log, frame=log.frame.filter(pl.col("user").is_in(users.tolist())))
