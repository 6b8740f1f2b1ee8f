"""KuaiRec: how far users watched short videos; positive means watch_ratio > 2, the authors' example of a like.

Others cut elsewhere (at .5, .7, 2 inclusive): say which rule a figure is for. `small_matrix` shows nearly every video
to each of its users, so its impressions are the experiment's and not a feed's. Credit (CC BY-SA 4.0): Gao et al.,
KuaiRec, CIKM 2022, doi 10.1145/3511808.3557220.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import polars as pl

from mixpol_models.data.log import InteractionLog
from mixpol_models.data.rules import parse_rule
from mixpol_models.data.scan import LogScan, finite, readable, without_nan
from mixpol_models.data.splits import Split, TimeSplit

NAME = "KuaiRec"
MATRICES = ("big", "small")
FOLDERS = (".", "data", "KuaiRec/data", "KuaiRec", "KuaiRec 2.0/data", "kuairec")
LOOKED_FOR = "big_matrix.csv or small_matrix.csv"

_COLUMNS = {
    "user_id": pl.Int64(),
    "video_id": pl.Int64(),
    "play_duration": pl.Int64(),
    "video_duration": pl.Int64(),
    "timestamp": pl.Float64(),
    "watch_ratio": pl.Float64(),
    # yyyymmdd, but written with a fraction where some are missing.
    "date": pl.Float64(),
}


def find_kuairec(folder: Path, matrix: str | None = None) -> Path | None:
    """The matrix in a folder or its usual sub-folders; by default the big one before the small one."""
    for name in (matrix,) if matrix else MATRICES:
        for sub in FOLDERS:
            file = folder / sub / f"{name}_matrix.csv"
            if file.is_file():
                return file
    return None


def scan_kuairec(
    folder: str | Path,
    matrix: Literal["big", "small"] | None = None,
    *,
    polarity: str = "watch_ratio > 2.0",
    split: Split | None = None,
) -> LogScan:
    """Describes a matrix of KuaiRec.

    Args:
        folder: holds {matrix}_matrix.csv, itself or in one of the sub-folders `FOLDERS`.
        matrix: "big" (12,530,806 rows) or "small" (4,676,570); None takes the big one, or what is there.
        polarity: what is positive, a rule (see `rules`) over watch_ratio, play_duration and video_duration [ms].
        split: by default global time quantiles 80 / 10 / 10 %. `UserSplit(0.7, 0.1)` keeps users apart.

    Returns:
        The log; times in ms, rounded. Rows without a time or a watch_ratio (empty or NaN) are dropped and counted.
        Ids are as in the file.

    Raises:
        ValueError: no data there, or not of the known form.
    """
    if matrix not in (None, *MATRICES):
        raise ValueError(f"matrix is {matrix!r}, expected 'big' or 'small': None takes what is there")
    file = find_kuairec(Path(folder), matrix)
    if file is None:
        wanted = f"{matrix}_matrix.csv" if matrix else LOOKED_FOR
        raise ValueError(
            f"folder is {str(folder)!r}, where there is no {NAME}; expected {wanted} in it or in "
            f"{', '.join(FOLDERS[1:])}: mend the path"
        )
    positive = parse_rule(polarity, _COLUMNS)
    with readable(NAME, file.name):
        header = pl.scan_csv(file, n_rows=0).collect_schema().names()
        missing = [name for name in _COLUMNS if name not in header]
        if missing:
            raise ValueError(f"{file}: no column {missing}, expected {list(_COLUMNS)}: fetch the file again")
        rows = pl.scan_csv(file, schema_overrides=_COLUMNS | {"time": pl.String}, null_values=["", "NaN"])
    frame = without_nan(rows).select(
        pl.all().exclude("user_id", "video_id", "time", "date"),
        date=pl.col("date").cast(pl.Int64, strict=False),
        user=pl.col("user_id"),
        item=pl.col("video_id"),
        time=(finite(pl.col("timestamp")) * 1000).round().cast(pl.Int64),
        label=positive,
        polarity=positive,
    )
    return LogScan(
        (frame,),
        split or TimeSplit(),
        name=f"{NAME} {file.name.removesuffix('_matrix.csv')} matrix",
        polarity_rule=polarity,
        source=file.name,
        drop={
            "without a timestamp": pl.col("time").is_null(),
            "without a watch_ratio": pl.col("watch_ratio").is_null(),
        },
    )


def load_kuairec(
    folder: str | Path,
    matrix: Literal["big", "small"] | None = None,
    *,
    polarity: str = "watch_ratio > 2.0",
    split: Split | None = None,
) -> InteractionLog:
    """Reads KuaiRec; the arguments are those of `scan_kuairec`."""
    return scan_kuairec(folder, matrix, polarity=polarity, split=split).load()
