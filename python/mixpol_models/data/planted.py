"""A log in which a skip means one thing for its own group and another for all other groups."""

from __future__ import annotations

import numpy as np
import polars as pl

from mixpol_models.data.log import InteractionLog
from mixpol_models.data.splits import by_time

NAME = "planted"
_START, _SKIP, _DECAY, _QUALITY = -1.1, 1.2, 0.9, 0.5


def planted_log(
    seed: int = 0,
    *,
    effect: bool = True,
    n_users: int = 1000,
    length: int = 40,
    n_groups: int = 4,
    items_per_group: int = 5,
) -> InteractionLog:
    """Draws a log of users who tire of what they skip and turn to something else.

    Every user is shown `length` items, of a group drawn evenly (item i is of group i % n_groups), and likes one with
    probability sigmoid(-1.1 + quality[item] + appetite[user, group]), quality ~ N(0, 0.5²).
    Appetites start at 0 and fade by a tenth with every impression. A skip takes 1.2 from the appetite for its own group
    and hands it out evenly to the others; a like leaves all as they are.

    So the *same* skip speaks against a target of its group and for a target of any other, and how many skips there are
    in itself says nothing. Likes are fewer (3 of 10) and only show what was liked before: less is to be had from them
    alone, and unmarked they stand between the skips as noise. A mark that is the same for every target (a polarity
    bias) is no evidence by itself: a model has to tie it to the likeness of event and target. TAPF's gate g(x ∘ t) of
    signed events does so from the start; DIN's activation unit, which sees x + P[s], t and t ∘ (x + P[s]), can learn it
    from a bias too, so with enough training the two may end level.

    Args:
        seed: same seed, same log.
        effect: False leaves appetites at 0 and draws the rest alike: no history can help.
        n_users: of the log.
        length: impressions per user.
        n_groups, items_per_group: the more items, the longer a model takes to find out which belong together.

    Returns:
        The log; step s of every user lies at a time in [1 000 s, 1 000 s + 999]; split by global time quantiles
        80 / 10 / 10 %.
    """
    for name, value, least in (
        ("n_users", n_users, 1),
        ("length", length, 10),
        ("n_groups", n_groups, 2),
        ("items_per_group", items_per_group, 1),
    ):
        if value < least:
            raise ValueError(f"{name} is {value}, expected at least {least}: leave it at its default")
    rng = np.random.default_rng(seed)
    user = np.arange(n_users)
    quality = rng.normal(0.0, _QUALITY, n_groups * items_per_group)
    appetite = np.zeros((n_users, n_groups))
    steps = []
    for step in range(length):
        group = rng.integers(0, n_groups, n_users)
        item = group + n_groups * rng.integers(0, items_per_group, n_users)
        odds = _START + quality[item] + effect * appetite[user, group]
        liked = rng.random(n_users) < 1.0 / (1.0 + np.exp(-odds))
        time = 1_000 * step + rng.integers(0, 1_000, n_users)
        steps.append(pl.DataFrame({"user": user, "item": item, "time": time, "label": liked, "polarity": liked}))
        lost = _SKIP * ~liked
        appetite = _DECAY * appetite + (lost / (n_groups - 1))[:, None]
        appetite[user, group] -= lost + lost / (n_groups - 1)
    return InteractionLog.from_frame(
        pl.concat(steps).with_columns(by_time()),
        name=NAME if effect else f"{NAME}, no effect",
        polarity_rule="a drawn like",
        source=f"generated, seed {seed}",
    )
