"""Events of users in order of time, jagged, and the parts of a split."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray


@dataclass(frozen=True)
class Events:
    """Users' events, oldest first.

    Attributes:
        item: [N] int64, from 1; 0 is padding.
        positive: [N] bool.
        offsets: [users + 1] int64.
        user: [users] int64, ascending.
    """

    item: NDArray[np.int64]
    positive: NDArray[np.bool_]
    offsets: NDArray[np.int64]
    user: NDArray[np.int64]

    @classmethod
    def from_frame(cls, frame: pl.DataFrame) -> Events:
        """From columns user, item and positive, sorted by user and time."""
        user, counts = np.unique(frame["user"].to_numpy(), return_counts=True)
        return cls(
            item=frame["item"].to_numpy().astype(np.int64),
            positive=frame["positive"].to_numpy().astype(bool),
            offsets=np.concatenate(([0], np.cumsum(counts))).astype(np.int64),
            user=user.astype(np.int64),
        )

    def __len__(self) -> int:
        """Users."""
        return len(self.user)

    @property
    def counts(self) -> NDArray[np.int64]:
        """[users], events of each."""
        return np.diff(self.offsets)

    @property
    def row(self) -> NDArray[np.int64]:
        """[N], which user an event is of."""
        return np.repeat(np.arange(len(self)), self.counts)

    @property
    def last(self) -> NDArray[np.int64]:
        """[users], index of each user's last event."""
        return self.offsets[1:] - 1

    def where(self, keep: NDArray[np.bool_]) -> Events:
        """Some of the events; users stay, even without any."""
        counts = np.bincount(self.row[keep], minlength=len(self))
        offsets = np.concatenate(([0], np.cumsum(counts))).astype(np.int64)
        return Events(self.item[keep], self.positive[keep], offsets, self.user)

    def newest(self, limit: int) -> Events:
        """Each user's last `limit` events."""
        return self.where(self.offsets[1:][self.row] - np.arange(len(self.item)) <= limit)

    def of_users(self, rows: NDArray[np.int64]) -> Events:
        """The users at `rows`, ascending."""
        inside = np.zeros(len(self), bool)
        inside[rows] = True
        kept = self.where(inside[self.row])
        counts = kept.counts[inside]
        return Events(kept.item, kept.positive, np.concatenate(([0], np.cumsum(counts))), self.user[inside])


@dataclass(frozen=True)
class Split:
    """Training, validation and test data of a comparison.

    Attributes:
        name: of the data set.
        n_items: largest item id.
        train: events before the cut.
        validation, test: whole histories of users, whose last event is the target.
        notes: how the split came about, where that is not as published.
        counts: what the steps of the preparation left, by name.
    """

    name: str
    n_items: int
    train: Events
    validation: Events
    test: Events
    notes: tuple[str, ...]
    counts: dict[str, int]

    def describe(self) -> str:
        """One line."""
        test = self.test.positive[self.test.last]
        return (
            f"{self.name}: {len(self.train):,} training users, {len(self.train.item):,} events, "
            f"{len(np.unique(self.train.item)):,} items; {len(self.validation):,} validation users; "
            f"{test.sum():,} test users with a positive and {(~test).sum():,} with a negative target"
        )
