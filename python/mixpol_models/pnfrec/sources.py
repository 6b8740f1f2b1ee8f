"""The data sets of the paper, each from its own file format, to users, items, times and polarity."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl

from mixpol_models.data.scan import readable, without_nan
from mixpol_models.pnfrec.config import DATASETS
from mixpol_models.pnfrec.events import Split
from mixpol_models.pnfrec.preparation import assemble, counts_of, drop_rare, prepare

ML1M_ORDERED = "ml1m_full_ordered.parquet"
ML1M_CUT = 978_132_500  # 2000-12-29 23:28:20 UTC
_ML1M_NOTE = (
    "MovieLens-1M rebuilt around the authors' test and validation files: exact for their users and for users 1 to "
    "2999; for others the cut uses estimated times, and 23,008 rows of 2,302 users cannot be placed with certainty."
)
_ZVUK_USERS = 20_000
_ZVUK_MORE_THAN = 5


def load_split(dataset: str, data: str | os.PathLike[str] | None = None) -> Split:
    """Reads and prepares a data set.

    Args:
        dataset: "ml-1m" (ratings.dat, or the folder of the ordered parquet file and the authors' two files),
            "ml-20m" (ratings.csv), "toys" and "sports" (JSON lines), "zvuk" (parquet), "kion" (csv).
        data: the file or its folder; None takes ml_1m in MIXPOL_DATA.

    Raises:
        ValueError: an unknown data set, no such file, or other columns than expected.
    """
    if dataset not in DATASETS:
        raise ValueError(f"dataset is {dataset!r}, expected one of {DATASETS}")
    if data is None:
        root = os.environ.get("MIXPOL_DATA", "")
        if dataset != "ml-1m" or not root:
            raise ValueError(f"data is not given for {dataset}, expected a file or folder: set data in the YAML file")
        data = Path(root) / "ml_1m"
    place = Path(data).expanduser()
    if dataset == "ml-1m" and (place / ML1M_ORDERED).is_file():
        return _ml1m_around_published(place)
    read, pattern = _READERS[dataset]
    if place.is_dir():
        found = sorted(place.glob(pattern))
        if len(found) != 1:
            raise ValueError(f"data is {str(place)!r} with {len(found)} files {pattern}, expected one: name the file")
        place = found[0]
    if not place.is_file():
        raise ValueError(f"data is {str(place)!r}, where there is no file; expected {pattern} or its folder")
    return prepare(read(place), dataset)


def read_movielens(path: Path) -> pl.DataFrame:
    """ratings.dat (user::item::rating::s) or ratings.csv (userId,movieId,rating,timestamp); positive from 4."""
    if path.suffix == ".dat":
        parts = pl.read_csv(path, has_header=False, separator="\n", new_columns=["line"])["line"].str.split("::")
        frame = pl.DataFrame({"line": parts}).select(
            *(pl.col("line").list.get(i).alias(name) for i, name in enumerate(["user", "item", "rating", "time"]))
        )
        frame = frame.with_columns(pl.col("user", "item", "time").cast(pl.Int64), pl.col("rating").cast(pl.Float64))
    else:
        names = {"userId": "user", "movieId": "item", "rating": "rating", "timestamp": "time"}
        types = {"userId": pl.Int64, "movieId": pl.Int64, "rating": pl.Float64, "timestamp": pl.Int64}
        frame = _renamed(_csv(path, types), path, names)
    return frame.select("user", "item", "time", positive=pl.col("rating") >= 4)


def read_amazon(path: Path) -> pl.DataFrame:
    """reviews_*_5.json, one object a line (reviewerID, asin, overall, unixReviewTime); positive is 5."""
    names = {"reviewerID": "user", "asin": "item", "overall": "rating", "unixReviewTime": "time"}
    types = {"reviewerID": pl.String, "asin": pl.String, "overall": pl.Float64, "unixReviewTime": pl.Int64}
    frame = _renamed(pl.read_ndjson(path, schema=types), path, names)
    return frame.select("user", "item", "time", positive=pl.col("rating") >= 5)


def read_zvuk(path: Path, seed: int = 0) -> pl.DataFrame:
    """zvuk-interactions.parquet; positive from 30 s of play, summed within user, track and session.

    Of the users with more than 5 events 20,000 are drawn (published without a seed, so its users cannot be had again),
    then tracks with more than 5 events are kept. The time is that of the session's first play of the track.

    Args:
        path: columns user_id, track_id, session_id, datetime and play_duration (s).
        seed: of the draw.
    """
    names = {"user_id": "user", "track_id": "item", "session_id": "session", "datetime": "time", "play_duration": "s"}
    frame = _renamed(pl.read_parquet(path), path, names)
    frame = frame.group_by("user", "item", "session", maintain_order=True).agg(pl.col("s").sum(), pl.col("time").min())
    frame = frame.filter(pl.len().over("user") > _ZVUK_MORE_THAN)
    users = np.sort(frame["user"].unique().to_numpy())
    if len(users) > _ZVUK_USERS:
        users = np.random.default_rng(seed).choice(users, _ZVUK_USERS, replace=False)
        frame = frame.filter(pl.col("user").is_in(users.tolist()))
    frame = frame.filter(pl.len().over("item") > _ZVUK_MORE_THAN)
    return frame.select("user", "item", pl.col("time").to_physical().cast(pl.Int64), positive=pl.col("s") >= 30)


def read_kion(path: Path) -> pl.DataFrame:
    """interactions.csv (user_id, item_id, last_watch_dt, watched_pct); positive from 15 % watched; unknown is 0 %.

    Its times are days: within a day the order is that of the file.
    """
    names = {"user_id": "user", "item_id": "item", "last_watch_dt": "time", "watched_pct": "share"}
    types = {"user_id": pl.Int64, "item_id": pl.Int64, "last_watch_dt": pl.Date, "watched_pct": pl.Float64}
    frame = _renamed(_csv(path, types), path, names)
    return frame.select(
        "user", "item", pl.col("time").to_physical().cast(pl.Int64), positive=pl.col("share").fill_null(0) >= 15
    )


_READERS: dict[str, tuple[Callable[[Path], pl.DataFrame], str]] = {
    "ml-1m": (read_movielens, "ratings.dat"),
    "ml-20m": (read_movielens, "ratings.csv"),
    "toys": (read_amazon, "reviews_*_5.json"),
    "sports": (read_amazon, "reviews_*_5.json"),
    "zvuk": (read_zvuk, "zvuk-interactions*.parquet"),
    "kion": (read_kion, "interactions*.csv"),
}


def _csv(path: Path, types: dict[str, type[pl.DataType]]) -> pl.DataFrame:
    # The types of a few first rows need not be those of all.
    with readable(path.name, str(path), mend="mend the file, or fetch it again"):
        return pl.read_csv(path, schema_overrides=types)


def _renamed(frame: pl.DataFrame, path: Path, names: dict[str, str]) -> pl.DataFrame:
    missing = [name for name in names if name not in frame.columns]
    if missing:
        raise ValueError(f"{path}: column {missing[0]!r} is not there, expected {list(names)}: another file?")
    return without_nan(frame.select(list(names)).rename(names))


def _ml1m_around_published(folder: Path) -> Split:
    """The authors' own test and validation users, with a train part rebuilt from the ordered ratings."""
    full = pl.read_parquet(folder / ML1M_ORDERED).select(
        (pl.col("user_id").cast(pl.Int64) - 1).alias("user"),
        pl.col("movie_id").rank("dense").cast(pl.Int64).alias("item"),
        pl.col("pos").cast(pl.Int64).alias("time"),  # the order is exact where the clock is not
        pl.col("ts_est").alias("clock"),
        (pl.col("rating") >= 4).alias("positive"),
    )
    filtered = drop_rare(full)
    parts = {}
    for label in ("validation", "test"):
        published = pl.read_parquet(folder / f"pnfrec_{label}.parquet").select(
            pl.col("user_id").cast(pl.Int64).alias("user"), pl.col("item_id").cast(pl.Int64).alias("item") + 1
        )
        parts[label] = filtered.join(published, on=["user", "item"], how="semi")
        if parts[label].height != published.height:
            raise ValueError(
                f"pnfrec_{label}.parquet has {published.height:,} rows of which {parts[label].height:,} are in "
                f"{ML1M_ORDERED}, expected all: the files do not belong together"
            )
    starts = pl.concat(parts.values()).group_by("user").agg(pl.col("time").min().alias("start"))
    estimated = ~(pl.col("clock") >= ML1M_CUT).fill_null(False)
    before = pl.when(pl.col("start").is_not_null()).then(pl.col("time") < pl.col("start")).otherwise(estimated)
    train = filtered.join(starts, on="user", how="left", maintain_order="left").filter(before)
    counts = counts_of(filtered) | {f"train {name}": value for name, value in counts_of(train).items()}
    counts |= {f"{label} users": part["user"].n_unique() for label, part in parts.items()}
    return assemble(
        train,
        parts["validation"],
        parts["test"],
        name="ml-1m",
        n_items=int(full["item"].max()),  # type: ignore[arg-type]
        counts=counts,
        notes=(_ML1M_NOTE,),
    )
