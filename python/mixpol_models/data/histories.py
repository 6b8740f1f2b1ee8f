"""Histories of examples: events stored once, ranges per example, gathered per batch.

No example owns a copy of its history. It owns one range of rows (two with a negative share).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from mixpol_models.data.sequence import SequenceConfig

Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class HistoryStore:
    """All events of a log, once, sorted by (user, time).

    Attributes:
        user, time, item: [E] int64. polarity: [E] uint8.
        offsets: [n_users+1] int64; the rows of user u are offsets[u] : offsets[u+1].
        before: [E] int64, the first row of the same user at the row's own time. Rows offsets[user[i]] : before[i] are
            thus the events strictly before row i; rows of equal time never see each other.

    The arrays may be mapped from disk (see `store`); then so are the lists of positive and negative rows.
    """

    user: Ints
    time: Ints
    item: Ints
    polarity: NDArray[np.uint8]
    offsets: Ints
    before: Ints

    @classmethod
    def of(cls, user: Ints, time: Ints, item: Ints, polarity: NDArray[np.uint8]) -> HistoryStore:
        """The store of a log's columns [E], sorted by (user, time)."""
        n_users = int(user[-1]) + 1 if len(user) else 0
        offsets = np.searchsorted(user, np.arange(n_users + 1))
        before = _latest(_changes(user) | _changes(time))
        return cls(user, time, item, polarity, offsets, before)

    def has_rows(self, *columns: NDArray) -> bool:
        """Whether these are the arrays `user`, `time`, `item` and `polarity`, not parts or copies of them."""
        own = (self.user, self.time, self.item, self.polarity)
        pairs = zip(own, columns, strict=True)
        return all(len(a) == len(b) and (not len(a) or a.ctypes.data == b.ctypes.data) for a, b in pairs)

    @cached_property
    def positives(self) -> Ints:
        """The positive rows, ascending."""
        return np.flatnonzero(self.polarity)

    @cached_property
    def negatives(self) -> Ints:
        """The negative rows, ascending."""
        return np.flatnonzero(self.polarity == 0)

    def select(self, rows: Ints, sequence: SequenceConfig) -> Histories:
        """The histories of the examples that are rows `rows` [n] of the log."""
        first, before, budget = self.offsets[self.user[rows]], self.before[rows], sequence.budget
        if sequence.kind == "mixed" and sequence.negative_share is None:
            return Histories(self, (_Part(None, np.maximum(first, before - budget), before),))

        positives = self.positives
        low, high = np.searchsorted(positives, first), np.searchsorted(positives, before)
        if sequence.kind == "positive":
            return Histories(self, (_Part(positives, np.maximum(low, high - budget), high),))

        negatives = self.negatives
        negative_low, negative_high = np.searchsorted(negatives, first), np.searchsorted(negatives, before)
        n_positive, n_negative = high - low, negative_high - negative_low
        take_negative = np.minimum(n_negative, sequence.n_negative)
        take_positive = np.minimum(n_positive, budget - take_negative)
        take_negative = np.minimum(n_negative, budget - take_positive)
        return Histories(
            self,
            (
                _Part(positives, high - take_positive, high),
                _Part(negatives, negative_high - take_negative, negative_high),
            ),
        )


@dataclass(frozen=True, eq=False)
class _Part:
    """Ranges start : end [n] into `rows`, an ascending list of store rows; None lists them all."""

    rows: Ints | None
    start: Ints
    end: Ints

    @property
    def length(self) -> Ints:
        return self.end - self.start

    def of(self, index: Ints) -> _Part:
        return _Part(self.rows, self.start[index], self.end[index])

    def expand(self) -> tuple[Ints, Ints]:
        """All places in `rows` [N], range after range, and the store rows there [N]."""
        length = self.length
        skipped = np.cumsum(length) - length
        places = np.arange(length.sum()) + np.repeat(self.start - skipped, length)
        return places, places if self.rows is None else self.rows[places]


@dataclass(frozen=True, eq=False)
class Histories:
    """The histories of n examples: a range of all events, of one polarity, or one range of each polarity."""

    store: HistoryStore
    parts: tuple[_Part] | tuple[_Part, _Part]

    @property
    def lengths(self) -> Ints:
        """[n] int64, events per example."""
        return sum((part.length for part in self.parts[1:]), self.parts[0].length)

    def gather(self, index: Ints) -> tuple[Ints, NDArray[np.uint8], Ints]:
        """Jagged histories of some examples, oldest event first.

        Args:
            index: [B] int64, examples; may repeat.

        Returns:
            item [N] int64, polarity [N] uint8, offsets [B+1] int64.
        """
        first, *second = (part.of(index) for part in self.parts)
        offsets = np.zeros(len(index) + 1, dtype=np.int64)
        np.cumsum(sum((part.length for part in second), first.length), out=offsets[1:])
        rows = _merge(first, second[0], offsets) if second else first.expand()[1]
        return self.store.item[rows], self.store.polarity[rows], offsets


def _merge(positive: _Part, negative: _Part, offsets: Ints) -> Ints:
    """The store rows of both parts [N], ascending, which is by time, within each example."""
    merged = np.empty(offsets[-1], dtype=np.int64)
    for part, other in ((positive, negative), (negative, positive)):
        places, rows = part.expand()
        # Each store row is in one of the two lists: rows - places counts the other's rows before it. No sort.
        ahead = np.maximum(rows - places - np.repeat(other.start, part.length), 0)
        merged[np.repeat(offsets[:-1] - part.start, part.length) + places + ahead] = rows
    return merged


def _changes(values: Ints) -> NDArray[np.bool_]:
    """[n] -> [n]: whether a value differs from the one before; the first does."""
    changes = np.ones(len(values), dtype=bool)
    changes[1:] = values[1:] != values[:-1]
    return changes


def _latest(marks: NDArray[np.bool_]) -> Ints:
    """[n] -> [n] int64: the latest marked row up to each row."""
    return np.maximum.accumulate(np.where(marks, np.arange(len(marks)), 0))
