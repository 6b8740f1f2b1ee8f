"""The interaction log: one checked polars table, whatever the data came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import polars as pl

from mixpol_models.data.histories import HistoryStore
from mixpol_models.data.splits import HISTORY

SPLITS = ("train", "valid", "test", HISTORY)

_SCHEMA: dict[str, pl.DataType] = {
    "user": pl.Int64(),
    "item": pl.Int64(),
    "time": pl.Int64(),
    "label": pl.UInt8(),
    "polarity": pl.UInt8(),
    "split": pl.Enum(SPLITS),
    "context": pl.Int64(),
}


@dataclass(frozen=True, eq=False)
class InteractionLog:
    """Impressions of many users, sorted by (user, time, item, polarity).

    Attributes:
        frame: one row per impression.
            user, item: int64, dense ids from 0.
            time: int64, orders a user's events; its unit is the source's. Equal times mean "order unknown".
            label: uint8, 1 if the impression is a positive example.
            polarity: uint8, 0 negative, 1 positive: what the row says when it stands in a history.
            split: "train", "valid" or "test" for examples, "history" for rows that are only seen.
            context: int64, small id known before the outcome (KuaiRand's tab); 0 where there is none.
        name: of the data set.
        n_users, n_items, n_contexts: table sizes; every id is below them.
        polarity_rule: what counts as positive, in words.
        source: where the rows came from, in words.
        n_duplicates: exact duplicate rows that were dropped.
        dropped: other rows that were dropped, by reason.
        stored: the history store on disk that the rows are mapped from, if they are; see `history_store`.
    """

    frame: pl.DataFrame
    name: str
    n_users: int
    n_items: int
    n_contexts: int
    polarity_rule: str
    source: str
    n_duplicates: int
    dropped: Mapping[str, int] = field(default_factory=dict)
    stored: HistoryStore | None = None

    @classmethod
    def from_frame(
        cls,
        *frames: pl.DataFrame,
        name: str,
        polarity_rule: str,
        source: str,
        split: pl.Expr | None = None,
        dropped: Mapping[str, int] | None = None,
    ) -> InteractionLog:
        """Checks one or more tables, drops exact duplicates, sorts.

        Args:
            frames: the columns of `InteractionLog.frame` (`context` may be absent, or null in history rows)
                and any others. Rows of one table are duplicates if they are equal in **every** column, so
                hand in the raw columns as well; they are dropped afterwards.
            name, polarity_rule, source, dropped: see `InteractionLog`.
            split: gives "split" to the distinct rows of the tables that lack it.

        Raises:
            ValueError: a column is missing, of the wrong kind, null or out of range.
        """
        distinct = [_distinct(frame) for frame in frames]
        if split is not None:
            distinct = [frame if "split" in frame.columns else frame.with_columns(split) for frame in distinct]
        rows = pl.concat(_typed(frame, name) for frame in distinct)
        rows = rows.sort("user", "time", "item", "polarity", maintain_order=True)
        sizes = rows.select(pl.col("user", "item", "context").max().fill_null(-1) + 1).row(0)
        return cls(
            frame=rows,
            name=name,
            n_users=sizes[0],
            n_items=sizes[1],
            n_contexts=sizes[2],
            polarity_rule=polarity_rule,
            source=source,
            n_duplicates=sum(frame.height for frame in frames) - rows.height,
            dropped=dict(dropped or {}),
        )

    def history_store(self) -> HistoryStore:
        """The events by user and time: `stored`, if the frame's rows still are those of it."""
        columns = [self.frame[name].to_numpy() for name in ("user", "time", "item", "polarity")]
        if self.stored is not None and self.stored.has_rows(*columns):
            return self.stored
        return HistoryStore.of(*columns)

    def describe(self) -> str:
        """One line of text: name, sizes, examples per split, polarity rule."""
        counts = dict(self.frame.group_by("split").len().iter_rows())
        examples = " / ".join(f"{counts.get(split, 0):,}" for split in SPLITS[:3])
        counts_dropped = {"exact duplicates": self.n_duplicates} | dict(self.dropped)
        reasons = ", ".join(f"{n:,} {reason}" for reason, n in counts_dropped.items() if n)
        dropped = f" ({reasons} dropped)" if reasons else ""
        return (
            f"{self.name}: {self.frame.height:,} events{dropped} of {self.n_users:,} users and "
            f"{self.n_items:,} items; {examples} train / valid / test examples; "
            f"positive means {self.polarity_rule}"
        )


def _distinct(frame: pl.DataFrame) -> pl.DataFrame:
    """The first of each set of equal rows, in the order they came."""
    # Equal rows have equal hashes, so only rows that share one need the slow comparison.
    suspect = frame.hash_rows().is_duplicated()
    if not suspect.any():
        return frame
    place = "the row's place"
    kept = frame.with_row_index(place).filter(suspect).unique(frame.columns, keep="first")[place]
    first = pl.Series([False]).new_from_index(0, frame.height).scatter(kept, True)
    return frame.filter(~suspect | first)


def _typed(frame: pl.DataFrame, name: str) -> pl.DataFrame:
    """The log's columns in its types, or a ValueError."""
    if "context" not in frame.columns:
        frame = frame.with_columns(context=pl.lit(0, pl.Int64))
    missing = [column for column in _SCHEMA if column not in frame.columns]
    if missing:
        raise ValueError(f"{name}: frame has no column {missing}; expected {list(_SCHEMA)}: add or rename them")
    frame = frame.select(*_SCHEMA)
    for column, dtype in frame.drop("split").schema.items():
        if not (dtype.is_integer() or dtype == pl.Boolean):
            raise ValueError(f"{name}: column {column!r} is {dtype}, expected integers: cast or re-number it")
    frame = frame.with_columns(
        pl.exclude("split").cast(pl.Int64, strict=False), pl.col("split").cast(pl.Enum(SPLITS), strict=False)
    ).with_columns(context=pl.col("context").fill_null(pl.when(pl.col("split") == HISTORY).then(0)))
    rules = {
        "user": (pl.col("user") >= 0, "ids from 0"),
        "item": (pl.col("item") >= 0, "ids from 0"),
        "time": (pl.col("time").is_not_null(), "a 64-bit time in every row"),
        "label": (pl.col("label").is_between(0, 1), "0 or 1"),
        "polarity": (pl.col("polarity").is_between(0, 1), "0 or 1"),
        "split": (pl.col("split").is_not_null(), f"one of {SPLITS}"),
        "context": (pl.col("context") >= 0, "ids from 0, null only in history rows"),
    }
    kept = frame.select(rule.fill_null(False).alias(column) for column, (rule, _) in rules.items())
    for column, (_, expected) in rules.items():
        if not kept[column].all():
            broken = frame.filter(~kept[column])[column]
            raise ValueError(
                f"{name}: column {column!r} holds {broken[0]!r} ({len(broken):,} such rows), "
                f"expected {expected}: mend or drop those rows"
            )
    return frame.cast(pl.Schema(_SCHEMA))
