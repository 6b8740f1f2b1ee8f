"""MovieLens 1M and 20M from GroupLens's own files, or 1M in an ordered parquet; positive means a rating of at least 4.

GroupLens allows research use and no redistribution without permission: nothing is downloaded or kept here.
Harper, Konstan: The MovieLens Datasets, ACM TiiS 5(4), 2015, doi 10.1145/2827872.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import polars as pl

from mixpol_models.data.log import InteractionLog
from mixpol_models.data.rules import parse_rule
from mixpol_models.data.scan import LogScan, readable, without_nan
from mixpol_models.data.splits import DateSplit, Split, TailSplit, TimeSplit, day_of

ORDERED = "ml1m_full_ordered.parquet"
FILES = {
    "ml-1m": ("ratings.dat", ORDERED),
    "ml-20m": ("ratings.csv",),
}
FOLDERS = (".", "ml-1m", "ml_1m", "ml-20m", "ml_20m")
Release = Literal["ml-1m", "ml-20m"]


def find_ratings(folder: Path, release: Release | None = None) -> Path | None:
    """The ratings in a folder or its usual sub-folders: ratings.dat before the ordered parquet before ratings.csv."""
    names = FILES[release] if release else [name for names in FILES.values() for name in names]
    for name in names:
        for sub in FOLDERS:
            file = folder / sub / name
            if file.is_file():
                return file
    return None


def scan_ratings(
    folder: str | Path,
    release: Release | None = None,
    *,
    polarity: str = "rating >= 4",
    split: Split | None = None,
    keep_order: bool = True,
) -> LogScan:
    """Describes MovieLens 1M or 20M.

    Args:
        folder: holds ratings.dat (1M: user::movie::rating::seconds), ratings.csv (20M: userId, movieId, rating,
            timestamp) or `ORDERED`, itself or in one of the sub-folders `FOLDERS`.
        release: "ml-1m" or "ml-20m"; None takes what is there.
        polarity: what is positive, a rule (see `rules`) over "rating".
        split: by default global time quantiles 80 / 10 / 10 %; `TailSplit()` leaves each user's last two out. Days are
            in UTC.
        keep_order: of `ORDERED` only: events of equal time keep the file's order, that of ratings.dat, by moving some
            by seconds. False leaves them equal, which means that their order is unknown, as in the other files.

    Returns:
        The log. User and movie ids are numbered anew from 0, in their order. Times are in s; those of `ORDERED` are
        estimated in part (`source` says so), so cuts by global time are approximate there, and users without any known
        time are dropped and counted. With `TailSplit`, which needs the order alone, they stay, timed by position.

    Raises:
        ValueError: no data there, or not of the known form.
    """
    if release is not None and release not in FILES:
        raise ValueError(f"release is {release!r}, expected one of {list(FILES)}: None takes what is there")
    file = find_ratings(Path(folder), release)
    if file is None:
        wanted = " or ".join(FILES[release] if release else [name for names in FILES.values() for name in names])
        raise ValueError(
            f"folder is {str(folder)!r}, where there is no MovieLens; expected {wanted} in it or in "
            f"{', '.join(FOLDERS[1:])}: mend the path"
        )
    split = split or TimeSplit()
    name = "MovieLens-20M" if file.name in FILES["ml-20m"] else "MovieLens-1M"
    with readable(name, file.name):
        if file.name == ORDERED:
            rows, source = (
                _ordered(file, keep_order),
                f"{file.name}: order exact, times estimated where they are not known",
            )
        else:
            rows, source = (_dat(file) if file.suffix == ".dat" else _csv(file)), file.name
        rows = without_nan(rows)
        positive = parse_rule(polarity, {"rating": rows.collect_schema()["rating"]})
        frame = rows.with_columns(label=positive, polarity=positive)
        if isinstance(split, DateSplit):
            frame = frame.with_columns(day_of(pl.col("time"), "s"))
    drop = {}
    if file.name == ORDERED and not isinstance(split, TailSplit):
        drop = {"of users without any known time": pl.col("no time")}
    return LogScan((frame,), split, name, polarity, source, drop=drop, renumber=("user", "item"))


def load_ratings(
    folder: str | Path,
    release: Release | None = None,
    *,
    polarity: str = "rating >= 4",
    split: Split | None = None,
    keep_order: bool = True,
) -> InteractionLog:
    """Reads MovieLens 1M or 20M; the arguments are those of `scan_ratings`."""
    return scan_ratings(folder, release, polarity=polarity, split=split, keep_order=keep_order).load()


def _dat(file: Path) -> pl.LazyFrame:
    # Polars separates at single bytes: "::" leaves an empty column between every two.
    names = ["user", "1", "item", "2", "rating", "3", "time"]
    kinds = [pl.Int64, pl.String, pl.Int64, pl.String, pl.Int64, pl.String, pl.Int64]
    schema = dict(zip(names, kinds, strict=True))
    rows = pl.scan_csv(file, separator=":", has_header=False, schema=schema, quote_char=None)
    return rows.select("user", "item", "rating", "time")


def _csv(file: Path) -> pl.LazyFrame:
    columns = {"userId": pl.Int64, "movieId": pl.Int64, "rating": pl.Float64, "timestamp": pl.Int64}
    rows = pl.scan_csv(file, schema_overrides=columns).select(*columns)
    return rows.rename({"userId": "user", "movieId": "item", "timestamp": "time"})


def _ordered(file: Path, keep_order: bool) -> pl.LazyFrame:
    place, time = pl.col("pos").cast(pl.Int64), pl.col("ts_est")
    known = time.is_not_null()
    if keep_order:
        # The running maximum of (time - place) makes time + place strictly increasing.
        time = (time - place).cum_max().over("user_id", order_by="pos") + place
    return pl.scan_parquet(file).select(
        pl.col("rating").cast(pl.Int64),
        pl.col("ratings_dat_row"),
        user=pl.col("user_id").cast(pl.Int64),
        item=pl.col("movie_id").cast(pl.Int64),
        time=pl.when(known).then(time).otherwise(place),
        **{"no time": ~known},
    )
