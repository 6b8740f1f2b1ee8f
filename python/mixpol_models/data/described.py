"""Any log in CSV or parquet files, described by a YAML file.

    name: my feed
    files: events/*.parquet             # beside the YAML file; a pattern or a list of them
    columns: {user: uid, item: iid, time: ts, context: page}
    time_unit: s                        # s, ms, us or ns since 1970: for split dates, and for times with fractions
    polarity: "watch_ratio < 0.3: negative"
    label: "click == 1"                 # what is predicted; left out: polarity
    split: {time: [0.8, 0.1]}           # or {dates: {train: [20220425, 20220428], valid: ..., test: ...}},
                                        # {users: [0.8, 0.1], seed: 42}, {tail: [1, 1]} (events a user: valid, test)
    drop_incomplete: true               # drop and count rows without user, item, time, polarity, label or context;
                                        # else an error
    types: {uid: string, ts: time}      # string, integer, float, bool, time (ISO 8601), where a column needs it
    separator: ","                      # of CSV files
    missing: [NA]                       # of CSV files: texts that mean "no value", as the empty one does

Users, items and contexts are numbered anew from 0, in the order of their values. Whole times stay as they are; dates
and times with fractions become ms. NaN is a missing value everywhere, and so are infinite ids and times. What a column
of CSV files holds is decided by all of its values (see `columns`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

import polars as pl
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from mixpol_models.data.columns import Kind, Table, read_table
from mixpol_models.data.log import InteractionLog
from mixpol_models.data.rules import parse_rule
from mixpol_models.data.scan import LogScan, finite
from mixpol_models.data.splits import DateSplit, Split, TailSplit, TimeSplit, UserSplit, day_of

SUFFIXES = (".yaml", ".yml")
_PER_MS = {"s": 1000.0, "ms": 1.0, "us": 1e-3, "ns": 1e-6}
_Unit = Literal["s", "ms", "us", "ns"]
_Shares = tuple[float, float]
_Days = tuple[int, int]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class LogColumns(_Strict):
    """Names of the columns; `context` may be left out."""

    user: str
    item: str
    time: str
    context: str | None = None


class SplitDates(_Strict):
    """First and last day of each split, yyyymmdd in UTC."""

    train: _Days
    valid: _Days
    test: _Days


class SplitDescription(_Strict):
    """Exactly one of the kinds of `splits`."""

    time: _Shares | None = None
    dates: SplitDates | None = None
    users: _Shares | None = None
    tail: tuple[int, int] | None = None
    seed: int = 42

    @model_validator(mode="after")
    def _one(self) -> Self:
        given = [name for name in ("time", "dates", "users", "tail") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"split has {given or 'nothing'}, expected one of time, dates, users, tail")
        if "seed" in self.model_fields_set and given != ["users"]:
            raise ValueError(f"split has a seed with {given[0]}, expected it with users only: leave it out")
        return self

    def split(self) -> Split:
        """The split described."""
        if self.time is not None:
            return TimeSplit(*self.time)
        if self.users is not None:
            return UserSplit(*self.users, seed=self.seed)
        if self.tail is not None:
            return TailSplit(*self.tail)
        assert self.dates is not None
        return DateSplit(self.dates.train, self.dates.valid, self.dates.test)


class LogDescription(_Strict):
    """The YAML file; see the module."""

    name: str
    files: Annotated[list[str], Field(min_length=1)]
    columns: LogColumns
    polarity: str
    label: str | None = None
    time_unit: _Unit | None = None
    split: SplitDescription = SplitDescription(time=(0.8, 0.1))
    drop_incomplete: bool = False
    types: dict[str, Kind] = Field(default_factory=dict)
    separator: Annotated[str, Field(min_length=1, max_length=1)] = ","
    missing: list[str] = Field(default_factory=list)

    @model_validator(mode="before")
    @classmethod
    def _one_pattern(cls, values: object) -> object:
        if isinstance(values, dict) and isinstance(values.get("files"), str):
            return values | {"files": [values["files"]]}
        return values


def scan_described(path: str | Path) -> LogScan:
    """Describes the log of a YAML file.

    Args:
        path: the file; its patterns are relative to its folder.

    Raises:
        ValueError: the file, its rule or its columns do not fit; the message says where.
    """
    description, files = find_described(path)
    path = Path(path)
    columns = description.columns
    table = read_table(
        files,
        name=description.name,
        described=str(path),
        roles={role: name for role, name in columns.model_dump().items() if name is not None},
        types=description.types,
        separator=description.separator,
        missing=description.missing,
    )
    schema = table.schema
    split = description.split.split()
    time, unit = _time(path, columns.time, table, description.time_unit)
    roles: dict[str, pl.Expr] = {
        "user": _id(columns.user, schema),
        "item": _id(columns.item, schema),
        "time": time,
        "polarity": _rule(description.polarity, table, f"{path}: polarity"),
        "label": _rule(description.label or description.polarity, table, f"{path}: label"),
    }
    if isinstance(split, DateSplit):
        if unit is None:
            raise ValueError(f"{path}: split has dates, but time_unit is not given: say what {columns.time!r} counts")
        roles["date"] = day_of(time, unit)
    renumber = ["user", "item"]
    if columns.context is not None:
        roles["context"] = _id(columns.context, schema)
        renumber.append("context")
    # The raw columns tell duplicates; their own names must not meet those of the log.
    frame = table.rows.select(pl.all().name.prefix("raw "), **roles)
    drop = {}
    if description.drop_incomplete:
        needed = ["user", "item", "time", "polarity", "label", *(["context"] if "context" in roles else [])]
        drop = {f"without {name}": pl.col(name).is_null() for name in needed}
    return LogScan(
        (frame,),
        split,
        name=description.name,
        polarity_rule=description.polarity,
        source=f"{path.name}: {len(files)} file{'s' if len(files) > 1 else ''}",
        drop=drop,
        renumber=tuple(renumber),
        columns=table.kinds(),
    )


def find_described(path: str | Path) -> tuple[LogDescription, list[Path]]:
    """Description of a log from a YAML file, with the files that it names. Their rows are not read.

    Raises:
        ValueError: the YAML file does not describe a log, or there are no such files.
    """
    path = Path(path)
    description = _read(path)
    files = sorted({file for pattern in description.files for file in _matches(path.parent, pattern)})
    if not files:
        raise ValueError(
            f"{path}: files is {description.files}, expected patterns that match something: mend the paths"
        )
    kinds = {file.suffix for file in files}
    if kinds not in ({".parquet"}, {".csv"}):
        raise ValueError(f"{path}: files end with {sorted(kinds)}, expected all .parquet or all .csv: name one kind")
    return description, files


def load_described(path: str | Path) -> InteractionLog:
    """Reads the log that a YAML file describes; see `scan_described`."""
    return scan_described(path).load()


def _read(path: Path) -> LogDescription:
    try:
        return LogDescription.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{path} is not a readable YAML file ({error}): mend it") from error
    except ValidationError as error:
        lines = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'the file'}: {e['msg']}" for e in error.errors())
        raise ValueError(f"{path} does not describe a log: {lines}") from error


def _matches(folder: Path, pattern: str) -> list[Path]:
    path = Path(pattern).expanduser()
    if path.is_absolute():
        return [file for file in Path(path.anchor).glob(str(path.relative_to(path.anchor))) if file.is_file()]
    return [file for file in folder.glob(pattern) if file.is_file()]


def _id(name: str, schema: Mapping[str, pl.DataType]) -> pl.Expr:
    return finite(pl.col(name)) if schema[name].is_float() else pl.col(name)


def _rule(text: str, table: Table, argument: str) -> pl.Expr:
    """The expression of a rule over columns that every file with rows has."""
    try:
        rule = parse_rule(text, table.schema, argument=argument)
    except ValueError as error:
        named = [name for name in table.schema if re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text)]
        raise ValueError(str(error) + "".join(map(table.hint, named))) from None
    for column in rule.meta.root_names():
        table.check_everywhere(column)
    return rule


def _time(path: Path, name: str, table: Table, unit: _Unit | None) -> tuple[pl.Expr, _Unit | None]:
    """The time of a row, int64, and what it counts."""
    time, dtype = pl.col(name), table.schema[name]
    if isinstance(dtype, pl.Date | pl.Datetime):
        return time.cast(pl.Datetime("ms")).cast(pl.Int64), "ms"
    if dtype.is_integer():
        return time.cast(pl.Int64), unit
    if dtype.is_float() and unit is not None:
        return (finite(time) * _PER_MS[unit]).round().cast(pl.Int64), "ms"
    raise ValueError(
        f"{path}: columns.time is {name!r}, which is {dtype}; expected whole numbers, dates, or fractions with a "
        f"time_unit: mend it, give time_unit, or say types: {{{name}: time}} (dates) or {{{name}: integer}}"
        f"{table.hint(name)}"
    )
