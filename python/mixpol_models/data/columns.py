"""CSV or parquet files as one table: columns by name, in any order, of one type in all files.

CSV files say no types: all values of a column decide, or `types` does. Users, items and contexts are numbers only where
that keeps apart what is written apart: a column with 7 and 007 is text.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import polars as pl

from mixpol_models.data.scan import readable, without_nan

Kind = Literal["string", "integer", "float", "bool", "time"]

_TRUE, _FALSE = ("true", "True", "TRUE"), ("false", "False", "FALSE")
_EXACT = 2**53  # below it, every whole number is a float of its own
# A sign or a zero that a number would lose.
_PADDED = r"^(\+|-?0\d|-0$)"
_DATES = ("%Y-%m-%d", *(f"%Y-%m-%d{sep}%H:%M{seconds}" for sep in " T" for seconds in ("", ":%S%.f")))
_ZONED = ("%Y-%m-%d %H:%M:%S%.f%#z", "%Y-%m-%dT%H:%M:%S%.f%#z")


@dataclass(frozen=True, eq=False)
class Table:
    """The rows of all files.

    Attributes:
        rows: the columns in their types, null where a value is missing. Numbers that are written with leading zeros are
            there as text too, under `as_written`.
        schema: of the columns that the files have.
        source: the files, for messages.
    """

    rows: pl.LazyFrame
    schema: Mapping[str, pl.DataType]
    source: _Source

    def kinds(self) -> str:
        """The types, in the words of `types`."""
        return ", ".join(f"{name} {_word(dtype)}" for name, dtype in self.schema.items())

    def check_everywhere(self, column: str) -> None:
        """Raises ValueError if a file with rows lacks the column."""
        self.source.check_everywhere(column)

    def hint(self, column: str) -> str:
        """Why a column is text, and how it could be something else; empty for one that is not text."""
        return self.source.hint(column) if self.schema.get(column) == pl.String else ""


def as_written(column: str) -> str:
    """The name of the text of a column of numbers."""
    return f"{column} (as written)"


def read_table(
    files: Sequence[Path],
    *,
    name: str,
    described: str,
    roles: Mapping[str, str],
    types: Mapping[str, Kind],
    separator: str = ",",
    missing: Sequence[str] = (),
) -> Table:
    """Describes the files.

    CSV files are read once here, to see what their columns hold.

    Args:
        files: all .csv or all .parquet. Files without rows count for nothing, but those of 0 bytes are refused.
        name: of the log.
        described: by what, for messages.
        roles: the columns of user, item, time and maybe context. Dates are recognised in that of time.
        types: of columns, where they are to be other than what the files say.
        separator, missing: of CSV files; texts that mean "no value" beside the empty one.

    Raises:
        ValueError: a file is not readable, or has a column of a type that does not go with the others or with `types`.
    """
    csv = files[0].suffix == ".csv"
    source = _Source(name, described, csv, types, missing)
    for file in files:
        with source.readable(file):
            if not file.stat().st_size:
                raise ValueError(f"{file} is empty (0 bytes), expected {_EXPECTED[csv]}: delete it, or fetch it again")
            if csv:
                rows = pl.scan_csv(file, separator=separator, infer_schema=False, null_values=list(missing) or None)
                # A quoted empty text is as empty as one without quotes.
                rows = rows.with_columns(pl.when(pl.all() != "").then(pl.all()))
            else:
                rows = pl.scan_parquet(file)
            source.parts.append(_Part(file, rows, rows.collect_schema(), rows.select(pl.len()).collect().item()))
    columns = list(dict.fromkeys(name for part in source.parts for name in part.schema))
    for column in types:
        if column not in columns:
            raise ValueError(f"{described}: types has {column!r}, expected some of {columns}: mend the name")
    for role, column in roles.items():
        if column not in columns:
            raise ValueError(
                f"{described}: columns.{role} is {column!r}, expected one of {columns}: mend the name"
                + ("" if csv and len(columns) > 1 else ", or the separator" if csv else "")
            )
        source.check_everywhere(column)
    ids, time = {column for role, column in roles.items() if role != "time"}, roles["time"]
    source.parts = [part for part in source.parts if part.n_rows]
    if not source.parts:
        raise ValueError(f"{described}: no rows in {', '.join(file.name for file in files)}, expected some: mend files")
    targets, padded = (_of_csv if csv else _of_parquet)(source, ids, time)
    for column, kind in types.items():
        targets[column] = source.declared(column, kind, targets.get(column))
    tables = []
    for part in source.parts:
        typed = [_as(column, part.schema[column], targets[column]) for column in part.schema]
        texts = [pl.col(column).alias(as_written(column)) for column in part.schema if column in padded]
        tables.append(part.rows.select(*typed, *texts))
    rows = without_nan(pl.concat(tables, how="diagonal"))
    return Table(rows, {column: targets[column] for column in columns if column in targets}, source)


@dataclass(frozen=True)
class _Part:
    file: Path
    rows: pl.LazyFrame
    schema: Mapping[str, pl.DataType]
    n_rows: int


_EXPECTED = {True: "a line of column names and rows", False: "a parquet file"}


@dataclass
class _Source:
    name: str
    described: str
    csv: bool
    types: Mapping[str, Kind]
    missing: Sequence[str]
    parts: list[_Part] = field(default_factory=list)

    def readable(self, file: Path) -> AbstractContextManager[None]:
        mend = "mend the file, or the separator" if self.csv else "mend the file"
        return readable(self.name, str(file), mend=mend)

    def check_everywhere(self, column: str) -> None:
        for part in self.parts:
            if column not in part.schema and part.n_rows:
                raise ValueError(
                    f"{self.described}: {part.file.name} has no column {column!r}, only {list(part.schema)}; expected "
                    "it in every file with rows: mend the name or the file"
                )

    def collect(self, part: _Part, *columns: pl.Expr) -> dict[str, Any]:
        with self.readable(part.file):
            return part.rows.select(*columns).collect(engine="streaming").row(0, named=True)

    def declared(self, column: str, kind: Kind, found: pl.DataType | None) -> pl.DataType:
        """The type of a column that `types` names, if all values can be had in it."""
        target = _DECLARED[kind]
        if kind == "integer" and found == pl.UInt64:
            target = pl.UInt64()
        if kind == "time" and found is not None and found.is_temporal():
            return found
        for part in self.parts:
            if part.schema.get(column) in (None, target):
                continue
            bad = self.first(part, column, lambda given, dtype: _converted(given, dtype, target).is_null())
            if bad is not None:
                raise ValueError(
                    f"{self.described}: types has {column}: {kind}, but {bad}; expected {_MEANING[kind]}: mend the "
                    "row, say another type, or (in CSV files) list what means 'no value' under missing"
                )
        return target

    def first(self, part: _Part, column: str, wrong: Callable[[pl.Expr, pl.DataType], pl.Expr]) -> str | None:
        """The first value that is wrong, and where it stands, in words."""
        dtype = part.schema[column]
        given = pl.col(column)
        bad = given.is_not_null() & wrong(given, dtype)
        if dtype.is_float():
            bad &= given.is_not_nan()
        with self.readable(part.file):
            row = part.rows.select(column).with_row_index("row").filter(bad).head(1).collect()
        return None if row.is_empty() else f"{part.file.name} has {row[column][0]!r} in row {row['row'][0] + 1:,}"

    def hint(self, column: str) -> str:
        if column in self.types:
            return ""
        if not self.csv:
            return f" (column {column!r} is text in the files; types: {{{column}: ...}} reads it as something else)"
        checks: list[Callable[[pl.Expr, pl.DataType], pl.Expr]] = [
            lambda given, dtype: given.cast(pl.Float64, strict=False).is_null(),
            lambda given, dtype: given.str.contains(_PADDED),
        ]
        for wrong in checks:
            for part in self.parts:
                bad = self.first(part, column, wrong) if column in part.schema else None
                if bad is not None:
                    return (
                        f" (column {column!r} is text, since {bad}: mend it, list it under missing, or say "
                        f"types: {{{column}: ...}})"
                    )
        return ""


_Types = tuple[dict[str, pl.DataType], set[str]]


def _of_csv(source: _Source, ids: Collection[str], time: str) -> _Types:
    """The type of every column by all of its values, and which have padded numbers."""
    seen: dict[str, dict[str, int]] = {}
    for part in source.parts:
        found = source.collect(part, *(count for column in part.schema for count in _counts(column, column == time)))
        for key, value in found.items():
            column, _, what = key.rpartition(" ")
            of_column = seen.setdefault(column, {})
            of_column[what] = of_column.get(what, 0) + value
    padded = {column for column, n in seen.items() if n["padded"] and column not in source.types}
    targets = {column: _kind_of(n, column in ids) for column, n in seen.items()}
    return targets, {column for column in padded if targets[column] != pl.String}


def _counts(column: str, is_time: bool) -> list[pl.Expr]:
    given = pl.col(column)
    number = given.cast(pl.Float64, strict=False)
    counts = {
        "given": given.is_not_null(),
        "nan": number.is_nan(),
        "float": number.is_not_null(),
        "integer": given.cast(pl.Int64, strict=False).is_not_null(),
        "unsigned": given.cast(pl.UInt64, strict=False).is_not_null(),
        "padded": given.str.contains(_PADDED),
        "inexact": number.is_finite() & (number.abs() >= _EXACT),
        "bool": given.is_in([*_TRUE, *_FALSE]),
        "time": _parsed(given).is_not_null() if is_time else pl.lit(False),
    }
    # A column's name may hold anything; the last blank parts it from what is counted.
    return [of.sum().cast(pl.Int64).alias(f"{column} {what}") for what, of in counts.items()]


def _kind_of(n: Mapping[str, int], is_id: bool) -> pl.DataType:
    values, numbers = n["given"], n["given"] - n["nan"]
    if not values or (is_id and n["padded"]):
        return pl.String()
    if n["bool"] == values and not is_id:
        return pl.Boolean()
    if numbers and n["integer"] == numbers:
        return pl.Int64()
    if numbers and n["unsigned"] == numbers:
        return pl.UInt64()
    if n["float"] == values and not (is_id and n["inexact"]):
        return pl.Float64()
    if n["time"] == values:
        return pl.Datetime("ms")
    return pl.String()


def _of_parquet(source: _Source, ids: Collection[str], time: str) -> _Types:
    targets: dict[str, pl.DataType] = {}
    for column in dict.fromkeys(name for part in source.parts for name in part.schema):
        types = {part.schema[column]: part for part in source.parts if column in part.schema}
        targets[column] = _common(source, column, types, column in ids, time)
    return targets, set()


def _common(source: _Source, column: str, types: Mapping[pl.DataType, _Part], is_id: bool, time: str) -> pl.DataType:
    """The type that holds the values of all files."""
    kinds = {pl.String() if isinstance(t, pl.Categorical | pl.Enum) else t for t in types if t != pl.Null}
    if not kinds or (len(kinds) > 1 and column in source.types):
        return pl.String()
    if len(kinds) == 1:
        return kinds.pop()
    if all(kind.is_integer() or kind == pl.Boolean for kind in kinds) and pl.UInt64 not in kinds:
        return pl.Int64()
    if all(kind.is_numeric() for kind in kinds) and not is_id:
        return pl.Float64()
    if all(kind.is_integer() or kind.is_float() for kind in kinds) and pl.UInt64 not in kinds:
        # Identifiers that pandas has made floats, as it does where some are missing.
        whole = pl.Int64()
        for part in source.parts:
            if column in part.schema:
                bad = source.first(part, column, lambda given, dtype: _converted(given, dtype, whole).is_null())
                if bad is not None:
                    raise ValueError(
                        f"{source.described}: {column!r} is {' and '.join(map(str, types))} in the files, and {bad}; "
                        "expected whole numbers: write it alike, or say types"
                    )
        return whole
    zones = {kind.time_zone for kind in kinds if isinstance(kind, pl.Datetime)} | {
        None for kind in kinds if kind == pl.Date
    }
    if all(isinstance(kind, pl.Date | pl.Datetime) for kind in kinds) and len(zones) == 1:
        return pl.Datetime("us", zones.pop())
    told = ", ".join(f"{dtype} in {part.file.name}" for dtype, part in types.items())
    raise ValueError(
        f"{source.described}: {column!r} is {told}; expected one type: write it alike, or say types: "
        f"{{{column}: {'time' if column == time else 'string'}}} (string, integer, float, bool or time)"
    )


def _as(column: str, dtype: pl.DataType, target: pl.DataType) -> pl.Expr:
    return _converted(pl.col(column), dtype, target).alias(column)


def _converted(given: pl.Expr, dtype: pl.DataType, target: pl.DataType) -> pl.Expr:
    """The values in the type, null where that cannot be."""
    if isinstance(dtype, pl.Datetime) and dtype.time_zone is not None and target == pl.Datetime("ms"):
        given = given.dt.convert_time_zone("UTC").dt.replace_time_zone(None)
    if dtype == target or (dtype.is_temporal() and target.is_temporal()):
        return given.cast(target)
    if target.is_integer() and (dtype.is_float() or dtype == pl.String):
        number = given.cast(pl.Float64, strict=False)
        whole = pl.when((number == number.floor()) & (number.abs() < _EXACT)).then(number).cast(target, strict=False)
        return whole if dtype.is_float() else pl.coalesce(given.cast(target, strict=False), whole)
    if target == pl.Boolean and dtype == pl.String:
        true, false = given.is_in([*_TRUE, "1"]), given.is_in([*_FALSE, "0"])
        return pl.when(true).then(pl.lit(True)).when(false).then(pl.lit(False))
    if target == pl.Boolean and dtype.is_numeric():
        return pl.when(given.is_in([0, 1])).then(given == 1)
    if target.is_temporal():
        return _parsed(given) if dtype == pl.String else pl.when(given.is_null()).then(pl.lit(None, target))
    return given.cast(target, strict=False)


def _parsed(given: pl.Expr) -> pl.Expr:
    """Dates and times as ISO 8601 writes them, in UTC where no other zone is given."""
    plain = [given.str.to_datetime(form, time_unit="ms", strict=False) for form in _DATES]
    zoned = [given.str.to_datetime(form, time_unit="ms", strict=False).dt.replace_time_zone(None) for form in _ZONED]
    return pl.coalesce(*plain, *zoned)


_DECLARED: dict[Kind, pl.DataType] = {
    "string": pl.String(),
    "integer": pl.Int64(),
    "float": pl.Float64(),
    "bool": pl.Boolean(),
    "time": pl.Datetime("ms"),
}
_MEANING: dict[Kind, str] = {
    "string": "texts",
    "integer": "whole numbers",
    "float": "numbers",
    "bool": "true and false, or 1 and 0",
    "time": "dates such as 2022-04-15 or 2022-04-15T10:00:00Z",
}


def _word(dtype: pl.DataType) -> str:
    if dtype.is_integer():
        return "integer"
    if dtype.is_float():
        return "float"
    words = {pl.Boolean: "bool", pl.String: "string", pl.Date: "time", pl.Datetime: "time"}
    return next((word for kind, word in words.items() if isinstance(dtype, kind)), str(dtype))
