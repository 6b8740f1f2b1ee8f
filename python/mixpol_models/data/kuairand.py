"""KuaiRand: short-video impressions; positive means long_view unless another rule is given, the context is the tab.

Two forms are read: the official CSV logs of -Pure, -1K and -27K (the whole past of every user), and for -Pure a pair of
parquet files (the past before 25 April 2022, at most 50 events per user and without times, and all columns of 25 to
30 April).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import polars as pl

from mixpol_models.data.log import InteractionLog
from mixpol_models.data.rules import parse_rule
from mixpol_models.data.scan import LogScan, readable, without_nan
from mixpol_models.data.splits import HISTORY, DateSplit, Split, Totals

NAME = "KuaiRand-Pure"
PARQUET = ("history_before_20220425.parquet", "window_20220425_0430.parquet")
EARLY, LATE = "log_standard_4_08_to_4_21", "log_standard_4_22_to_5_08"
CSV = (f"{EARLY}_pure.csv", f"{LATE}_pure.csv")
# The largest release keeps each log in two parts.
LOGS = {
    "KuaiRand-Pure": CSV,
    "KuaiRand-1K": (f"{EARLY}_1k.csv", f"{LATE}_1k.csv"),
    "KuaiRand-27K": tuple(f"{log}_27k_part{part}.csv" for log in (EARLY, LATE) for part in (1, 2)),
}
RANDOM = {release: f"log_random_4_22_to_5_08_{release.rpartition('-')[2].lower()}.csv" for release in LOGS}
FOLDERS = (".", "kuairand_pure", *(f"{release}{sub}" for release in LOGS for sub in ("", "/data")), "data")
LONG_VIEW = "long_view (18 s watched, or the whole of a shorter video)"

_ACTIONS = ("click", "like", "follow", "comment", "forward", "hate", "profile_enter", "rand")
_LOG_COLUMNS = (
    *("user_id", "video_id", "date", "hourmin", "time_ms", *(f"is_{action}" for action in _ACTIONS)),
    *("long_view", "play_time_ms", "duration_ms", "profile_stay_time", "comment_stay_time", "tab"),
)
Random = Literal["exclude", "include", "test"]


def find_kuairand(folder: Path) -> tuple[Path, ...] | None:
    """The standard log files of one release in a folder or its usual sub-folders; None without a whole set.

    Parquet comes before CSV, and -Pure before -1K before -27K.
    """
    for names in (PARQUET, *LOGS.values()):
        for sub in FOLDERS:
            files = tuple(folder / sub / name for name in names)
            if all(file.is_file() for file in files):
                return files
    return None


def load_kuairand(
    folder: str | Path,
    split: Split | None = None,
    *,
    polarity: str = "long_view",
    random: Random = "exclude",
) -> InteractionLog:
    """Reads KuaiRand; the arguments are those of `scan_kuairand`."""
    return scan_kuairand(folder, split, polarity=polarity, random=random).load()


def scan_kuairand(
    folder: str | Path,
    split: Split | None = None,
    *,
    polarity: str = "long_view",
    random: Random = "exclude",
) -> LogScan:
    """Describes a KuaiRand log.

    Args:
        folder: holds the log files, itself or in one of the sub-folders `FOLDERS`.
        split: of the examples; by default by days: 25 to 28 April 2022 train, 29 April valid, 30 April test.
        polarity: what is positive, a rule (see `rules`) over the columns of the log: "long_view", "is_click",
            "play_time_ms < 2000: negative", ... The parquet history knows long_view and is_like alone.
        random: the log of randomly exposed videos is left out ("exclude"), taken like any other row ("include"), or its
            rows are the test examples, and standard rows of the test days history ("test").

    Returns:
        The log. `time` is time_ms [ms]; for parquet history rows it is only an order key (see `_parquet`).

    Raises:
        ValueError: no data there, not of the known form, or not with these options.
    """
    folder, split = Path(folder), split or DateSplit()
    if random not in ("exclude", "include", "test"):
        raise ValueError(f"random is {random!r}, expected 'exclude', 'include' or 'test': 'exclude' is the default")
    files = find_kuairand(folder)
    if files is None:
        raise ValueError(
            f"folder is {str(folder)!r}, where there is no KuaiRand-Pure; expected {' and '.join(PARQUET)}, "
            f"or {' and '.join(CSV)} (or those of 1k, or 27k in parts), in it or in {', '.join(FOLDERS[1:])}: mend the "
            "path, or run `mixpol data get kuairand-pure` and leave it out"
        )
    release = next((release for release, names in LOGS.items() if files[0].name == names[0]), NAME)
    if random != "exclude":
        if files[0].suffix == ".parquet":
            raise ValueError(
                f"random is {random!r}, but {files[0].parent} holds the parquet form: use the official CSV"
            )
        files = (*files, files[0].parent / RANDOM[release])
        if not files[-1].is_file():
            raise ValueError(f"random is {random!r}, expected {files[-1]}, which is not there: add it, or 'exclude' it")
    with readable(release, str(files[0].parent)):
        frames = _parquet(*files, polarity) if files[0].suffix == ".parquet" else _csv(files, polarity)
    return LogScan(
        frames,
        _RandomTest(split) if random == "test" else split,
        name=release,
        polarity_rule=LONG_VIEW if polarity == "long_view" else polarity,
        source=", ".join(file.name for file in files),
    )


@dataclass(frozen=True)
class _RandomTest:
    """The random log as test set; other rows of the test part are history only."""

    standard: Split

    def column(self, totals: Totals) -> pl.Expr:
        split = self.standard.column(totals)
        standard = pl.when(split == "test").then(pl.lit(HISTORY)).otherwise(split.cast(pl.String))
        return pl.when(pl.col("is_rand") == 1).then(pl.lit("test")).otherwise(standard).alias("split")

    def dropped(self) -> Mapping[str, pl.Expr]:
        standard = pl.col("is_rand") != 1
        return {reason: condition & standard for reason, condition in self.standard.dropped().items()}


def _csv(files: tuple[Path, ...], polarity: str) -> tuple[pl.LazyFrame]:
    integers = dict.fromkeys(_LOG_COLUMNS, pl.Int64)
    logs = [pl.scan_csv(path, schema_overrides=integers).select(_LOG_COLUMNS) for path in files]
    return (_impressions(pl.concat(logs), polarity),)


def _parquet(history: Path, window: Path, polarity: str) -> tuple[pl.LazyFrame, pl.LazyFrame]:
    """The history file knows the order of a user's events and the time of the last one.

    The order key counts back from that time, one step per position: every event precedes the whole window,
    but the last one does not precede a window row of its own time.
    """
    impressions = _impressions(pl.scan_parquet(window).select(_LOG_COLUMNS), polarity)
    position, last = pl.col("hist_pos"), pl.col("time_ms").max()
    log = pl.scan_parquet(history)
    known = {name: dtype for name, dtype in log.collect_schema().items() if name in ("long_view", "is_like")}
    positive = parse_rule(polarity, known)
    past = without_nan(log).select(
        user=pl.col("user_id"),
        item=pl.col("video_id"),
        time=(last + position - position.max()).over("user_id"),
        label=positive,
        polarity=positive,
        split=pl.lit(HISTORY),
    )
    first_seen = impressions.group_by("user").agg(first_seen=pl.col("time").min())
    late = past.join(first_seen, on="user").filter(pl.col("time") > pl.col("first_seen"))
    n_late = late.select(pl.len()).collect().item()
    if n_late:
        raise ValueError(
            f"{history}: {n_late:,} events are later than their user's first row in {window.name}, "
            "expected none, since their times are not known: use the official CSV logs"
        )
    return past, impressions


def _impressions(log: pl.LazyFrame, polarity: str) -> pl.LazyFrame:
    """The columns of an `InteractionLog`, and the raw rest, by which duplicates are told."""
    positive = parse_rule(polarity, dict.fromkeys(_LOG_COLUMNS, pl.Int64()))
    return without_nan(log).select(
        pl.all().exclude("user_id", "video_id", "time_ms", "tab"),
        user=pl.col("user_id"),
        item=pl.col("video_id"),
        time=pl.col("time_ms"),
        label=positive,
        polarity=positive,
        context=pl.col("tab"),
    )
