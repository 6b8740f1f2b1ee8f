"""The published preparation: filters, the cut in time, and who validates and who tests.

Ivanova et al., arXiv 2508.14786, as their notebooks and loader do it: rare items leave first, then users with few
items, one pass each; the newest tenth of time is held out and its users are halved.
"""

from __future__ import annotations

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mixpol_models.pnfrec.events import Events, Split

FEWEST = 5
QUANTILE = 0.9
SPLIT_SEED = 42
FEWEST_POSITIVES = 2


def prepare(frame: pl.DataFrame, name: str) -> Split:
    """Raw interactions to a split.

    Args:
        frame: columns user and item (any sortable ids), time (sortable numbers) and positive (bool).
        name: of the data set.

    Raises:
        ValueError: a value is missing, or a part is empty.
    """
    for column in ("user", "item", "time", "positive"):
        missing = frame[column].null_count()
        if missing:
            raise ValueError(
                f"{name}: {missing:,} of {frame.height:,} rows have no {column} (empty or NaN), expected one in every "
                "row: mend or drop those rows"
            )
    frame = with_codes(frame)
    filtered = drop_rare(frame)
    if not filtered.height:
        raise ValueError(
            f"{name}: no events remain of {frame.height:,}, expected items with {FEWEST} users and users with "
            f"{FEWEST} items"
        )
    cut = np.quantile(filtered["time"].to_numpy(), QUANTILE, method="nearest")
    train = filtered.filter(pl.col("time") < cut)
    late = filtered.filter(pl.col("time") >= cut)
    late = late.join(train.select("user").unique(), on="user", how="semi")
    late = late.join(train.select("item").unique(), on="item", how="semi")
    validation_users, test_users = halves(np.unique(late["user"].to_numpy()))
    validation = late.filter(pl.col("user").is_in(validation_users.tolist()))
    test = late.filter(pl.col("user").is_in(test_users.tolist()))
    return assemble(
        train,
        last_is_positive(validation),
        test,
        name=name,
        n_items=frame["item"].n_unique(),
        counts=counts_of(filtered) | {"validation users": len(validation_users), "test users": len(test_users)},
    )


def with_codes(frame: pl.DataFrame) -> pl.DataFrame:
    """Users to 0, 1, ... and items to 1, 2, ... in the order of their ids; before the filters, as published."""
    return frame.with_columns(
        (pl.col("user").rank("dense") - 1).cast(pl.Int64), pl.col("item").rank("dense").cast(pl.Int64)
    )


def drop_rare(frame: pl.DataFrame) -> pl.DataFrame:
    """Without items of fewer than 5 users, then without users of fewer than 5 items; one pass each."""
    frame = frame.filter(pl.col("user").n_unique().over("item") >= FEWEST)
    return frame.filter(pl.col("item").n_unique().over("user") >= FEWEST)


def halves(users: NDArray) -> tuple[NDArray, NDArray]:
    """(validation, test): what scikit-learn's train_test_split(users, test_size=0.5, random_state=42) returns.

    It permutes with the legacy generator, whose stream NumPy has frozen, and the test half, the larger one of an odd
    number, is the first.
    """
    order = np.random.RandomState(SPLIT_SEED).permutation(len(users))
    first = -(-len(users) // 2)
    return users[order[first:]], users[order[:first]]


def last_is_positive(part: pl.DataFrame) -> pl.DataFrame:
    """The users whose last event is positive."""
    ordered = part.sort("user", "time", maintain_order=True)
    return ordered.filter(pl.col("positive").last().over("user"))


def assemble(
    train: pl.DataFrame,
    validation: pl.DataFrame,
    test: pl.DataFrame,
    *,
    name: str,
    n_items: int,
    counts: dict[str, int],
    notes: tuple[str, ...] = (),
) -> Split:
    """Splits the three parts as the published loader does.

    Each part keeps users with two positives in it; validation and test users must be among those of train, whose
    events precede theirs.

    Args:
        train, validation, test: columns user, item (from 1), time and positive; rows of equal time stay in order.
        name, n_items, notes, counts: see `Split`.
    """
    columns = ["user", "item", "time", "positive"]
    train = _two_positives(train).select(columns)
    parts = {}
    for label, part in (("validation", validation), ("test", test)):
        kept = _two_positives(part).select(columns).join(train.select("user").unique(), on="user", how="semi")
        past = train.join(kept.select("user").unique(), on="user", how="semi")
        parts[label] = Events.from_frame(pl.concat([past, kept]).sort("user", "time", maintain_order=True))
    events = Events.from_frame(train.sort("user", "time", maintain_order=True))
    for label, part in {"train": events, **parts}.items():
        if not len(part):
            raise ValueError(f"{name}: the {label} part has no users, expected some: the data are too small to split")
    return Split(name, n_items, events, parts["validation"], parts["test"], notes, counts)


def counts_of(frame: pl.DataFrame) -> dict[str, int]:
    """Users, items and events."""
    return {"users": frame["user"].n_unique(), "items": frame["item"].n_unique(), "events": frame.height}


def _two_positives(part: pl.DataFrame) -> pl.DataFrame:
    return part.filter(pl.col("positive").sum().over("user") >= FEWEST_POSITIVES)
