"""KuaiRand-Pure: short-video impressions; positive means long_view, the context is the tab.

Two forms are read: the official CSV logs (the whole past of every user), and a pair of parquet files (the
past before 25 April 2022, at most 50 events per user and without times, and all columns of 25 to 30 April).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import polars as pl

from mixpol_models.data.log import HISTORY, InteractionLog

NAME = "KuaiRand-Pure"
PARQUET = ("history_before_20220425.parquet", "window_20220425_0430.parquet")
CSV = ("log_standard_4_08_to_4_21_pure.csv", "log_standard_4_22_to_5_08_pure.csv")
FOLDERS = (".", "kuairand_pure", "KuaiRand-Pure", "KuaiRand-Pure/data", "data")

_ACTIONS = ("click", "like", "follow", "comment", "forward", "hate", "profile_enter", "rand")
_LOG_COLUMNS = (
    *("user_id", "video_id", "date", "hourmin", "time_ms", *(f"is_{action}" for action in _ACTIONS)),
    *("long_view", "play_time_ms", "duration_ms", "profile_stay_time", "comment_stay_time", "tab"),
)


@dataclass(frozen=True)
class DateSplit:
    """First and last day (yyyymmdd, as logged) of each split's examples.

    Rows of other days are history only; rows after the last test day are dropped.
    """

    train: tuple[int, int] = (20220425, 20220428)
    valid: tuple[int, int] = (20220429, 20220429)
    test: tuple[int, int] = (20220430, 20220430)

    def __post_init__(self) -> None:
        days = (*self.train, *self.valid, *self.test)
        ordered = all(a <= b for a, b in pairwise(days))
        if not ordered or self.train[1] == self.valid[0] or self.valid[1] == self.test[0]:
            raise ValueError(f"split days are {days}, expected train before valid before test: mend the order")

    def column(self) -> pl.Expr:
        """The split of each row, from its date."""
        split = pl.lit(HISTORY)
        for name in ("train", "valid", "test"):
            inside = pl.col("date").is_between(*getattr(self, name))
            split = pl.when(inside).then(pl.lit(name)).otherwise(split)
        return split.alias("split")


def find_kuairand(folder: Path) -> tuple[Path, Path] | None:
    """The two log files in a folder or its usual sub-folders, parquet before CSV; None without a pair."""
    for pair in (PARQUET, CSV):
        for sub in FOLDERS:
            first, second = (folder / sub / name for name in pair)
            if first.is_file() and second.is_file():
                return first, second
    return None


def load_kuairand(folder: str | Path, split: DateSplit | None = None) -> InteractionLog:
    """Reads KuaiRand-Pure.

    Args:
        folder: holds the log files, itself or in one of the sub-folders `FOLDERS`.
        split: days of the examples; by default 25 to 28 April train, 29 April valid, 30 April test.

    Returns:
        The log. `time` is time_ms [ms]; for parquet history rows it is only an order key (see `_parquet`).

    Raises:
        ValueError: no data there, or not of the known form.
    """
    folder, split = Path(folder), split or DateSplit()
    files = find_kuairand(folder)
    if files is None:
        raise ValueError(
            f"folder is {str(folder)!r}, where there is no KuaiRand-Pure; expected {' and '.join(PARQUET)}, "
            f"or {' and '.join(CSV)}, in it or in {', '.join(FOLDERS[1:])}: mend the path, or run "
            "`mixpol data get kuairand-pure` and leave it out"
        )
    try:
        frames = (_parquet if files[0].suffix == ".parquet" else _csv)(*files, split)
    except pl.exceptions.PolarsError as error:
        raise ValueError(
            f"{files[0].parent}: not readable as KuaiRand-Pure ({error}): fetch the files again"
        ) from error
    return InteractionLog.from_frame(
        *frames,
        name=NAME,
        polarity_rule="long_view (18 s watched, or the whole of a shorter video)",
        source=f"{files[0].name}, {files[1].name}",
    )


def _csv(early: Path, late: Path, split: DateSplit) -> list[pl.DataFrame]:
    integers = dict.fromkeys(_LOG_COLUMNS, pl.Int64)
    logs = [pl.scan_csv(path, schema_overrides=integers).select(_LOG_COLUMNS) for path in (early, late)]
    return [_impressions(pl.concat(logs), split).collect()]


def _parquet(history: Path, window: Path, split: DateSplit) -> list[pl.DataFrame]:
    """The history file knows the order of a user's events and the time of the last one.

    The order key counts back from that time, one step per position: every event precedes the whole window,
    but the last one does not precede a window row of its own time.
    """
    impressions = _impressions(pl.scan_parquet(window).select(_LOG_COLUMNS), split).collect()
    position, last = pl.col("hist_pos"), pl.col("time_ms").max()
    past = (
        pl.scan_parquet(history)
        .select(
            user=pl.col("user_id"),
            item=pl.col("video_id"),
            time=(last + position - position.max()).over("user_id"),
            label=pl.col("long_view"),
            polarity=pl.col("long_view"),
            split=pl.lit(HISTORY),
        )
        .collect()
    )
    first_seen = impressions.group_by("user").agg(first_seen=pl.col("time").min())
    late = past.join(first_seen, on="user").filter(pl.col("time") > pl.col("first_seen"))
    if late.height:
        raise ValueError(
            f"{history}: {late.height:,} events are later than their user's first row in {window.name}, "
            "expected none, since their times are not known: use the official CSV logs"
        )
    return [past, impressions]


def _impressions(log: pl.LazyFrame, split: DateSplit) -> pl.LazyFrame:
    """The columns of an `InteractionLog`, and the raw rest, by which duplicates are told."""
    return log.filter(pl.col("date") <= split.test[1]).select(
        pl.all().exclude("user_id", "video_id", "time_ms", "long_view", "tab"),
        user=pl.col("user_id"),
        item=pl.col("video_id"),
        time=pl.col("time_ms"),
        label=pl.col("long_view"),
        polarity=pl.col("long_view"),
        context=pl.col("tab"),
        split=split.column(),
    )
