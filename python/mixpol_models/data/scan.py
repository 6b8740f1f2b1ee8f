"""A log that is described but not read yet: what every source gives, in memory or on its way to disk."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import polars as pl
import polars.selectors as cs

from mixpol_models.data.log import InteractionLog
from mixpol_models.data.splits import Split, Totals

Table = TypeVar("Table", pl.DataFrame, pl.LazyFrame)


@dataclass(frozen=True, eq=False)
class LogScan:
    """Lazy tables of one log.

    Attributes:
        frames: the columns user, item, time, label, polarity, maybe context, and raw others, by which duplicates are
            told. A table with a column "split" keeps it.
        split: gives the others theirs. Where it needs more columns ("date"), they are there.
        name, polarity_rule, source: as in `InteractionLog`.
        drop: rows to leave out, by reason; a row counts for the first that is true of it.
        renumber: of "user" and "item", those whose values are sorted and numbered from 0.
        columns: of the files and their types, in words, where they are not known beforehand.
    """

    frames: tuple[pl.LazyFrame, ...]
    split: Split
    name: str
    polarity_rule: str
    source: str
    drop: Mapping[str, pl.Expr] = field(default_factory=dict)
    renumber: tuple[str, ...] = ()
    columns: str = ""

    def load(self) -> InteractionLog:
        """The log, in memory."""
        kept, dropped = [], dict.fromkeys(self.drops, 0)
        for frame in self.frames:
            with readable(self.name, self.source):
                collected = frame.collect(engine="streaming")
            rows, counts = self.keep(collected)
            kept.append(rows)
            dropped = {reason: n + counts[reason] for reason, n in dropped.items()}
        tables = {column: id_table([frame.lazy() for frame in kept], column) for column in self.renumber}
        kept = [renumbered(frame, tables) for frame in kept]
        split = self.split.column(_totals(kept)) if any("split" not in frame.columns for frame in kept) else None
        return InteractionLog.from_frame(
            *kept,
            name=self.name,
            polarity_rule=self.polarity_rule,
            source=self.source,
            split=split,
            dropped=dropped,
        )

    @property
    def drops(self) -> dict[str, pl.Expr]:
        """All reasons to leave a row out: the source's and the split's."""
        return dict(self.drop) | dict(self.split.dropped())

    def keep(self, frame: pl.DataFrame) -> tuple[pl.DataFrame, dict[str, int]]:
        """The rows to keep, and how many go for each reason."""
        counts = {}
        for reason, condition in self.drops.items():
            if "split" in frame.columns and reason in self.split.dropped():
                counts[reason] = 0
                continue
            rows = frame.filter(~condition.fill_null(False))
            counts[reason] = frame.height - rows.height
            frame = rows
        return frame, counts


def id_table(frames: Sequence[pl.LazyFrame], column: str) -> pl.Series:
    """The distinct values of a column, sorted; a value's place is its new id."""
    distinct, waiting, n_waiting = [], [], 0
    for frame in frames:
        waiting.append(frame.select(column).unique().collect(engine="streaming")[column])
        n_waiting += len(waiting[-1])
        # Merged only when the new outnumber the known: few merges, and at most twice the distinct values are held.
        if n_waiting > sum(map(len, distinct)):
            distinct, waiting, n_waiting = [pl.concat([*distinct, *waiting]).unique()], [], 0
    return pl.concat([*distinct, *waiting]).drop_nulls().unique().sort()


def renumbered(frame: pl.DataFrame, tables: Mapping[str, pl.Series]) -> pl.DataFrame:
    """The rows with the columns of `tables` replaced by places in them; null stays null."""
    for column, values in tables.items():
        table = pl.DataFrame({column: values, "new id": np.arange(len(values))})
        numbered = frame.join(table, on=column, how="left", maintain_order="left")
        frame = numbered.with_columns(pl.col("new id").alias(column)).drop("new id")
    return frame


def without_nan(rows: Table) -> Table:
    """The rows with null for NaN: a missing value in every source, where polars has a number above all others."""
    return rows.with_columns(cs.float().fill_nan(None))


def finite(column: pl.Expr) -> pl.Expr:
    """Floats with null for NaN and infinities, which no id or time can be."""
    return pl.when(column.is_finite()).then(column)


def place_of(share: float, n: int) -> int:
    """The place k (from 0) of a quantile among n sorted values: the next higher one, as polars' "higher"."""
    return min(math.ceil(share * (n - 1)), n - 1)


def _totals(frames: Sequence[pl.DataFrame]) -> Totals:
    users = [frame["user"].max() for frame in frames if frame["user"].dtype.is_integer()]
    times = [frame["time"] for frame in frames if "split" not in frame.columns]

    def time_at(share: float) -> int:
        values = pl.concat(times).drop_nulls()
        return int(values.sort()[place_of(share, len(values))]) if len(values) else 0

    return Totals(max((user for user in users if user is not None), default=-1) + 1, time_at)


@contextmanager
def readable(name: str, source: str, *, mend: str = "fetch the files again") -> Iterator[None]:
    """Turns what polars says about a broken file into a ValueError with the file's name."""
    try:
        yield
    except pl.exceptions.PolarsError as error:
        # What follows are options of polars.
        reason = str(error).partition("\n\n")[0]
        raise ValueError(f"{source}: not readable as {name} ({reason}): {mend}") from error
