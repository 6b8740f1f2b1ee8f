"""Splits by days, by time, by user, by each user's tail. Never by row: neighbours in time must not straddle a cut.

A split is told the totals of the log first (`column`), so that it can be computed piece by piece afterwards.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, Protocol

import numpy as np
import polars as pl

HISTORY = "history"
_NAMES = ("train", "valid", "test")


@dataclass(frozen=True)
class Totals:
    """Totals of a log that a split may ask for.

    Attributes:
        n_users: user ids are below it.
        time_at: the k-th smallest time (k from 0) of a share q of the n rows, k = ⌈q (n - 1)⌉.
    """

    n_users: int
    time_at: Callable[[float], int]


class Split(Protocol):
    """Names the split of each row."""

    def column(self, totals: Totals) -> pl.Expr:
        """The column "split". It may look at whole users, but not beyond."""
        ...

    def dropped(self) -> Mapping[str, pl.Expr]:
        """Rows that belong to no split, by reason."""
        ...


@dataclass(frozen=True)
class DateSplit:
    """First and last day (yyyymmdd, as logged) of each split's examples.

    Rows of other days are history only; rows after the last test day are dropped. `valid` None is no validation days:
    training then keeps its last epoch.
    """

    train: tuple[int, int] = (20220425, 20220428)
    valid: tuple[int, int] | None = (20220429, 20220429)
    test: tuple[int, int] = (20220430, 20220430)

    def __post_init__(self) -> None:
        parts = [part for part in (self.train, self.valid, self.test) if part is not None]
        days = tuple(day for part in parts for day in part)
        apart = all(before[1] < after[0] for before, after in pairwise(parts))
        if not apart or any(first > last for first, last in parts):
            raise ValueError(f"split days are {days}, expected train before valid before test: mend the order")

    def column(self, totals: Totals | None = None) -> pl.Expr:
        """The split of each row, from its date."""
        split = pl.lit(HISTORY)
        for name in _NAMES:
            days = getattr(self, name)
            if days is not None:
                split = pl.when(pl.col("date").is_between(*days)).then(pl.lit(name)).otherwise(split)
        return split.alias("split")

    def dropped(self) -> dict[str, pl.Expr]:
        """Rows after the last test day."""
        return {"after the last test day": pl.col("date") > self.test[1]}


@dataclass(frozen=True)
class TimeSplit:
    """Global time quantiles. The cuts are times, so rows of equal time share a split.

    Attributes:
        train, valid: shares of the rows, in (0, 1); the rest is test.
    """

    train: float = 0.8
    valid: float = 0.1

    def __post_init__(self) -> None:
        _check_shares(self.train, self.valid)

    def column(self, totals: Totals) -> pl.Expr:
        """The split of each row, from its time."""
        return _by_cuts(totals.time_at(self.train), totals.time_at(self.train + self.valid))

    def dropped(self) -> dict[str, pl.Expr]:
        """None."""
        return {}


@dataclass(frozen=True)
class UserSplit:
    """Whole users at random: every event of a user is in the same split.

    Attributes:
        train, valid: shares of the users, in (0, 1), rounded down for train and up for train + valid.
        seed: of the draw.
    """

    train: float = 0.8
    valid: float = 0.1
    seed: int = 42

    def __post_init__(self) -> None:
        _check_shares(self.train, self.valid)

    def column(self, totals: Totals) -> pl.Expr:
        """The split of each row, from its user."""
        n = totals.n_users
        ends = [math.floor(self.train * n), math.ceil((self.train + self.valid) * n), n]
        split = np.empty(n, dtype=np.int8)
        split[np.random.default_rng(self.seed).permutation(n)] = np.repeat(np.arange(3), np.diff([0, *ends]))
        names = pl.Series(_NAMES, dtype=pl.Enum((*_NAMES, HISTORY)))
        return pl.lit(names.gather(split)).gather(pl.col("user")).alias("split")

    def dropped(self) -> dict[str, pl.Expr]:
        """None."""
        return {}


@dataclass(frozen=True)
class TailSplit:
    """The end of each user's own sequence: the last events are test, those before valid, the rest train.

    Events of equal time share a split, so a user may have a few more than asked for.

    Attributes:
        valid, test: events per user, at least 1. A user with fewer has no train events.
    """

    valid: int = 1
    test: int = 1

    def __post_init__(self) -> None:
        if min(self.valid, self.test) < 1:
            raise ValueError(f"valid={self.valid}, test={self.test}: expected at least 1 event per user each")

    def column(self, totals: Totals | None = None) -> pl.Expr:
        """The split of each row, from how many events of its user are later."""
        later = pl.col("time").rank("min", descending=True).over("user") - 1
        return (
            pl.when(later < self.test)
            .then(pl.lit("test"))
            .when(later < self.test + self.valid)
            .then(pl.lit("valid"))
            .otherwise(pl.lit("train"))
            .alias("split")
        )

    def dropped(self) -> dict[str, pl.Expr]:
        """None."""
        return {}


def day_of(time: pl.Expr, unit: Literal["s", "ms", "us", "ns"]) -> pl.Expr:
    """The column "date" that `DateSplit` reads, for a log without one: yyyymmdd of a Unix time, in UTC."""
    day = pl.from_epoch(time, unit).dt
    date = day.year().cast(pl.Int64) * 10_000 + day.month().cast(pl.Int64) * 100 + day.day().cast(pl.Int64)
    return date.alias("date")


def by_time(train: float = 0.8, valid: float = 0.1) -> pl.Expr:
    """The split column for a log without days of its own: global time quantiles, as `TimeSplit` in one expression.

    Args:
        train, valid: shares of the rows, in (0, 1); the rest is test.
    """
    _check_shares(train, valid)
    time = pl.col("time")
    return _by_cuts(time.quantile(train, "higher"), time.quantile(train + valid, "higher"))


def _by_cuts(first_valid: int | pl.Expr, first_test: int | pl.Expr) -> pl.Expr:
    time = pl.col("time")
    return (
        pl.when(time < first_valid)
        .then(pl.lit("train"))
        .when(time < first_test)
        .then(pl.lit("valid"))
        .otherwise(pl.lit("test"))
        .alias("split")
    )


def _check_shares(train: float, valid: float) -> None:
    if not (0 < train < 1 and 0 < valid < 1 and train + valid < 1):
        raise ValueError(f"train={train}, valid={valid}: expected positive shares with a sum below 1, the rest is test")
