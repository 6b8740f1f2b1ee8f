"""TencentGR-1M and its kin (TAAC 2025): ad exposures, clicks and conversions; positive means a click or a conversion.

Two forms are read. The folder form: seq/*.parquet, a user a row, `seq` a list of {item_id, action_type, timestamp}.
The older one: seq.jsonl, a user a line, a list of [user_id, item_id, user_feat, item_feat, action_type, timestamp].
action_type is 0 exposure, 1 click, 2 conversion. indexer.pkl is never opened: a pickle runs what its writer wants.
Table sizes come from the ids in the sequences instead.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import polars as pl
from polars.io.plugins import register_io_source

from mixpol_models.data.log import InteractionLog
from mixpol_models.data.rules import parse_rule
from mixpol_models.data.scan import LogScan, readable
from mixpol_models.data.splits import DateSplit, Split, TimeSplit, day_of

NAME = "TencentGR"
FOLDERS = (".", "data", "TencentGR-1M", "TencentGR-10M", "TencentGR_1k", "TencentGR_1M")
LOOKED_FOR = "seq/*.parquet or seq.jsonl"
_EVENT = {"user": pl.Int64(), "item": pl.Int64(), "action_type": pl.Int64(), "time": pl.Int64()}


def find_tencentgr(folder: Path) -> list[Path] | None:
    """The sequence files in a folder or its usual sub-folders, parquet before jsonl."""
    for sub in FOLDERS:
        parts = sorted((folder / sub / "seq").glob("*.parquet"))
        if parts:
            return parts
        if (folder / sub / "seq.jsonl").is_file():
            return [folder / sub / "seq.jsonl"]
    return None


def scan_tencentgr(folder: str | Path, *, polarity: str = "action_type >= 1", split: Split | None = None) -> LogScan:
    """Describes a TencentGR log.

    Args:
        folder: holds seq/*.parquet or seq.jsonl, itself or in one of the sub-folders `FOLDERS`.
        polarity: what is positive, a rule (see `rules`) over "action_type".
        split: by default global time quantiles 80 / 10 / 10 %; `TailSplit()` takes the end of every sequence.
            Days are in UTC.

    Returns:
        The log; times in s, ids as in the files (from 1; 0 is padding there), text user ids numbered from 0. Rows
        without an item or an action (a user's profile in the older form) are dropped and counted.

    Raises:
        ValueError: no data there, or not of the known form.
    """
    files = find_tencentgr(Path(folder))
    if files is None:
        raise ValueError(
            f"folder is {str(folder)!r}, where there is no {NAME}; expected {LOOKED_FOR} in it or in "
            f"{', '.join(FOLDERS[1:])}: mend the path"
        )
    positive = parse_rule(polarity, {"action_type": pl.Int64()})
    with readable(NAME, files[0].name):
        rows = _jsonl(files[0]) if files[0].suffix == ".jsonl" else _parquet(files)
        text_users = rows.collect_schema()["user"] == pl.String
    frame = rows.with_columns(label=positive, polarity=positive)
    if isinstance(split, DateSplit):
        frame = frame.with_columns(day_of(pl.col("time"), "s"))
    missing = pl.any_horizontal(pl.col("item", "action_type").is_null())
    return LogScan(
        (frame,),
        split or TimeSplit(),
        name=NAME,
        polarity_rule=polarity,
        source=files[0].name if len(files) == 1 else f"{len(files)} files in {files[0].parent.name}/",
        drop={"without an item or an action": missing},
        renumber=("user",) if text_users else (),
    )


def load_tencentgr(
    folder: str | Path, *, polarity: str = "action_type >= 1", split: Split | None = None
) -> InteractionLog:
    """Reads a TencentGR log; the arguments are those of `scan_tencentgr`."""
    return scan_tencentgr(folder, polarity=polarity, split=split).load()


def _parquet(files: list[Path]) -> pl.LazyFrame:
    users = pl.scan_parquet(files)
    schema = users.collect_schema()
    inner = getattr(schema.get("seq"), "inner", None)
    fields = [field.name for field in getattr(inner, "fields", ())]
    if "user_id" not in schema or not {"item_id", "action_type", "timestamp"} <= set(fields):
        raise ValueError(
            f"{files[0]}: columns are {dict(schema)}, expected user_id and seq, a list of item_id, action_type and "
            "timestamp: fetch the files again"
        )
    event = pl.col("seq").struct
    return (
        users.select("user_id", "seq")
        .explode("seq")
        # A user without events gives one empty row.
        .filter(pl.col("seq").is_not_null())
        .select(
            user=pl.col("user_id"),
            **{
                name: event.field(field).fill_nan(None).cast(pl.Int64)
                for name, field in (("item", "item_id"), ("action_type", "action_type"), ("time", "timestamp"))
            },
            # Logged twice is not the same as read twice: the place in the sequence tells rows apart.
            place=pl.int_range(pl.len()).over("user_id"),
        )
    )


def _jsonl(file: Path) -> pl.LazyFrame:
    text = _first_user_is_text(file)
    schema = _EVENT | {"user": pl.String() if text else pl.Int64(), "place": pl.Int64()}

    def batches(
        columns: list[str] | None, predicate: pl.Expr | None, n_rows: int | None, batch_size: int | None
    ) -> Iterator[pl.DataFrame]:
        left = n_rows
        for rows in _events(file, max(batch_size or 0, 100_000)):
            frame = pl.DataFrame(rows, schema=schema, orient="row")
            if left is not None:
                frame = frame.head(left)
                left -= frame.height
            if predicate is not None:
                frame = frame.filter(predicate)
            yield frame if columns is None else frame.select(columns)
            if left == 0:
                return

    return register_io_source(batches, schema=schema)


def _first_user_is_text(file: Path) -> bool:
    for rows in _events(file, 1):
        return isinstance(rows[0][0], str)
    return False


def _events(file: Path, size: int) -> Iterator[list[tuple]]:
    """(user, item, action, time, place in the sequence), at least `size` at a time but for the last."""
    rows: list[tuple] = []
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                for place, (user, item, _, _, action, time) in enumerate(json.loads(line, parse_constant=_missing)):
                    rows.append((user, item, action, time, place))
            except (ValueError, TypeError) as error:
                raise ValueError(
                    f"{file}, line {number}: not a list of [user_id, item_id, user_feat, item_feat, action_type, "
                    f"timestamp] ({error}): fetch the file again"
                ) from error
            if len(rows) >= size:
                yield rows
                rows = []
    if rows:
        yield rows


def _missing(name: str) -> None:
    """NaN and the infinities of a JSON line are missing values."""
