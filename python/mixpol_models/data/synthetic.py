"""A log that needs no download, with a polarity effect planted in it."""

from __future__ import annotations

import numpy as np
import polars as pl

from mixpol_models.data.log import InteractionLog
from mixpol_models.data.splits import by_time

NAME = "synthetic"


def synthetic_log(
    seed: int = 0, *, n_users: int = 2000, n_items: int = 1000, n_groups: int = 20, mean_length: float = 60.0
) -> InteractionLog:
    """Draws a log in which skips tell as much as likes.

    Item i belongs to group i % n_groups. A user is shown groups at rates of their own (Dirichlet, α = 0.5),
    which say nothing about taste, and within a group popular items most (Zipf, low ids first). They like an
    impression with probability sigmoid(-0.8 + taste[user, group] + quality[item]), taste ~ N(0, 2²),
    quality ~ N(0, 0.5²). Many likes of a group may thus mean taste or mere exposure; the skips tell which.
    Impressions per user follow a log-normal law (σ = 0.8, 2 to 500).

    Args:
        seed: same seed, same log.
        n_users, n_items, n_groups: table sizes; n_items is rounded down to full groups.
        mean_length: about this many impressions per user.

    Returns:
        The log; times in s over 30 days, split by global time quantiles 80 / 10 / 10 %.
    """
    sizes = {"n_users": n_users, "n_groups": n_groups, "n_items": n_items, "mean_length": mean_length}
    for name, value in sizes.items():
        least = n_groups if name == "n_items" else 1
        if value < least:
            raise ValueError(f"{name} is {value}, expected at least {least}: leave it at its default")
    rng = np.random.default_rng(seed)
    length = rng.lognormal(np.log(mean_length) - 0.8**2 / 2, 0.8, n_users).round().clip(2, 500)
    user = np.repeat(np.arange(n_users), length.astype(np.int64))
    n_events = len(user)
    shown = rng.gamma(0.5, size=(n_users, n_groups)).cumsum(axis=1)
    group = (rng.random((n_events, 1)) * shown[user, -1:] >= shown[user]).sum(axis=1)
    popularity = 1.0 / (np.arange(n_items // n_groups) + 1.0)
    item = group + n_groups * rng.choice(len(popularity), size=n_events, p=popularity / popularity.sum())
    taste = rng.normal(0.0, 2.0, (n_users, n_groups))
    quality = rng.normal(0.0, 0.5, n_items)
    logit = -0.8 + taste[user, group] + quality[item]
    liked = rng.random(n_events) < 1.0 / (1.0 + np.exp(-logit))
    time = 1_650_000_000 + rng.integers(0, 30 * 86_400, n_events)
    frame = pl.DataFrame({"user": user, "item": item, "time": time, "label": liked, "polarity": liked})
    return InteractionLog.from_frame(
        frame.with_columns(by_time()),
        name=NAME,
        polarity_rule="a drawn like",
        source=f"generated, seed {seed}",
    )
