"""KuaiVideo_x1 as the FuxiCTR benchmarks use it: every row has a list of clicked and one of skipped items.

What is public of the two CSV files is which fields the benchmark's models read: item_id, is_click (the label),
pos_items and neg_items (at most 100 items each, separated by "^") and group_id; user_id and a column of times are
assumed here, not known. All names are arguments, and a missing column is an error that lists the file's own.

The lists keep no order between clicks and skips. With lists, the k-th newest of both get the same time (order unknown),
and the impressions come after both, at one time, so that they do not see each other. With `time`, the lists are ignored
and histories come from the samples, interleaved as they happened.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from mixpol_models.data.log import InteractionLog
from mixpol_models.data.scan import LogScan, readable
from mixpol_models.data.splits import HISTORY, Totals

NAME = "KuaiVideo_x1"
FILES = ("train.csv", "test.csv")
FOLDERS = (".", NAME, f"KuaiShou/{NAME}", "kuaivideo", "kuaivideo_x1")
LOOKED_FOR = "train.csv and test.csv with a column pos_items"


@dataclass(frozen=True)
class KuaiVideoColumns:
    """Names in the CSV files.

    Attributes:
        user, item, label: of the impression; `label` holds 0 or 1.
        positives, negatives: the lists, oldest first, joined by `separator`.
        time: whole numbers that order a user's impressions, or None to use the lists.
        separator: between the items of a list.
    """

    user: str = "user_id"
    item: str = "item_id"
    label: str = "is_click"
    positives: str = "pos_items"
    negatives: str = "neg_items"
    time: str | None = None
    separator: str = "^"


def find_kuaivideo(folder: Path) -> tuple[Path, Path] | None:
    """train.csv and test.csv in a folder or its usual sub-folders, if train.csv has lists."""
    for sub in FOLDERS:
        train, test = (folder / sub / name for name in FILES)
        if train.is_file() and test.is_file():
            with train.open(encoding="utf-8", errors="replace") as file:
                header = file.readline().strip().split(",")
            if KuaiVideoColumns.positives in header:
                return train, test
    return None


def scan_kuaivideo(
    folder: str | Path, *, columns: KuaiVideoColumns | None = None, valid: float = 0.1, seed: int = 42
) -> LogScan:
    """Describes KuaiVideo_x1.

    Args:
        folder: holds train.csv and test.csv, itself or in one of the sub-folders `FOLDERS`.
        columns: names in the files.
        valid: share of the users, in (0, 1), whose training rows are the valid examples; test.csv is the test set. (The
            benchmark itself validates on test.csv.)
        seed: of the draw of those users.

    Returns:
        The log. Items are numbered anew from 0. With lists a user of the log is one user with one pair of lists, so the
        log has more users than the data where lists change from row to row.

    Raises:
        ValueError: no data there, or not of this form.
    """
    folder, columns = Path(folder), columns or KuaiVideoColumns()
    if not 0 < valid < 1:
        raise ValueError(f"valid is {valid}, expected a share in (0, 1): 0.1 is a good start")
    files = find_kuaivideo(folder)
    if files is None and all((folder / name).is_file() for name in FILES):
        files = (folder / FILES[0], folder / FILES[1])
    if files is None:
        raise ValueError(
            f"folder is {str(folder)!r}, where there is no {NAME}; expected {LOOKED_FOR} in it or in "
            f"{', '.join(FOLDERS[1:])}: mend the path"
        )
    lists = columns.time is None
    used = [columns.user, columns.item, columns.label]
    used += [columns.positives, columns.negatives] if lists else [str(columns.time)]
    tables = []
    with readable(NAME, str(files[0].parent)):
        for file in files:
            header = pl.scan_csv(file, n_rows=0).collect_schema().names()
            missing = [name for name in used if name not in header]
            if missing:
                raise ValueError(f"{file}: no column {missing}, the file has {header}: name them in `columns`")
            rows = pl.scan_csv(file, infer_schema=False).select(used)
            tables.append(rows.with_columns(is_test=pl.lit(file is files[1])))
    rows = pl.concat(tables)
    who = pl.col(columns.user)
    # The benchmark reads the label as a float.
    label = pl.col(columns.label).cast(pl.Float64).fill_nan(None) != 0
    if lists:
        who = pl.struct(columns.user, columns.positives, columns.negatives).hash()
    rows = rows.with_columns(user=who)
    impressions = rows.select(
        "user",
        "is_test",
        item=pl.col(columns.item),
        time=pl.lit(0, pl.Int64) if lists else pl.col(str(columns.time)).cast(pl.Int64),
        label=label,
        polarity=label,
    )
    if lists:
        # Nothing tells two impressions of one item apart, but they are two: the row does.
        impressions = impressions.with_row_index("row")
    frames = (_lists(rows, columns), impressions) if lists else (impressions,)
    return LogScan(
        frames,
        _FileSplit(valid, seed),
        name=NAME,
        polarity_rule=f"{columns.label} is 1",
        source="train.csv, test.csv; "
        + ("histories from the two lists, whose common order is unknown" if lists else f"ordered by {columns.time}"),
        renumber=("user", "item"),
    )


def load_kuaivideo(
    folder: str | Path, *, columns: KuaiVideoColumns | None = None, valid: float = 0.1, seed: int = 42
) -> InteractionLog:
    """Reads KuaiVideo_x1; the arguments are those of `scan_kuaivideo`."""
    return scan_kuaivideo(folder, columns=columns, valid=valid, seed=seed).load()


@dataclass(frozen=True)
class _FileSplit:
    """Test rows are those of test.csv; of the others, some users' are valid."""

    valid: float
    seed: int

    def column(self, totals: Totals) -> pl.Expr:
        chosen = np.random.default_rng(self.seed).random(totals.n_users) < self.valid
        train = (
            pl.when(pl.lit(pl.Series(chosen)).gather(pl.col("user"))).then(pl.lit("valid")).otherwise(pl.lit("train"))
        )
        return pl.when(pl.col("is_test")).then(pl.lit("test")).otherwise(train).alias("split")

    def dropped(self) -> Mapping[str, pl.Expr]:
        return {}


def _lists(rows: pl.LazyFrame, columns: KuaiVideoColumns) -> pl.LazyFrame:
    """The events of every user's lists, before time 0."""
    users = rows.select("user", columns.positives, columns.negatives).unique("user", keep="any")
    events = []
    for name, polarity in ((columns.positives, True), (columns.negatives, False)):
        listed = users.select("user", item=pl.col(name).fill_null("").str.split(columns.separator)).with_columns(
            # -n ... -1, so that both lists end together.
            time=pl.int_ranges(-pl.col("item").list.len().cast(pl.Int64), 0)
        )
        events.append(
            listed.explode("item", "time")
            .filter(pl.col("item") != "")
            .with_columns(label=pl.lit(polarity), polarity=pl.lit(polarity), split=pl.lit(HISTORY))
        )
    return pl.concat(events)
