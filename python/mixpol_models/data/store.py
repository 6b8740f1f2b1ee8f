"""A log on disk: built piece by piece in bounded memory, mapped when it is used.

    write_store(scan, folder)        # scan: what a source describes, see `scan`
    log = open_store(folder)         # the same log as scan.load(), bit for bit

The folder holds one .npy file per column of the sorted log (user, item, time, label, polarity, split, context) and what
histories need: `offsets` (a user's rows are offsets[u] : offsets[u+1]), `before`, and the rows of either polarity, as
`HistoryStore` describes them. `mixpol_store.json` comes last and makes it whole; it has the checksums of the files.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mixpol_models.data.histories import HistoryStore
from mixpol_models.data.locks import building, put_in_place, target_of
from mixpol_models.data.log import SPLITS, InteractionLog
from mixpol_models.data.scan import LogScan, id_table, place_of, readable, renumbered
from mixpol_models.data.splits import Totals

META = "mixpol_store.json"
VERSION = 2  # version 1 has no checksums
COLUMNS = ("user", "item", "time", "label", "polarity", "split", "context")
_HISTORY = ("offsets", "before", "positives", "negatives")
_BYTES = ("label", "polarity", "split")
_BINS = 1 << 16
_WRITER = "mixpol data prepare"
_SLICE = 4_000_000
_Count = Field(ge=0)


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class _LogMeta(_Strict):
    n_users: int = _Count
    n_items: int = _Count
    n_contexts: int = _Count
    name: str
    polarity_rule: str
    source: str
    n_duplicates: int = _Count
    dropped: dict[str, int]


class _Meta(_Strict):
    """Content of `mixpol_store.json`; `checksums` are CRC-32 of the whole files, by array, and of `log`."""

    version: Literal[1, 2]
    events: int = _Count
    log: _LogMeta
    checksums: dict[str, int] | None = None


def write_store(
    scan: LogScan,
    folder: str | Path,
    *,
    chunk_events: int = 2_000_000,
    force: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> Path:
    """Builds the store of a log.

    Memory is bounded by a few times `chunk_events` rows, the events of the most active user, and tables of the
    distinct users and renumbered ids. The source is read once; a compressed copy of its rows lies beside `folder`
    meanwhile, in a hidden folder that goes with the call (what a killed process left, with the next call).

    Args:
        scan: the log.
        folder: the store, which appears only whole. Where it is a link, the folder that it names.
        chunk_events: rows that are sorted at a time, at least 1.
        force: replace a store that is there already.
        say: gets a line per step.

    Raises:
        ValueError: a row breaks the rules of `InteractionLog`, or an argument its own.
        FileExistsError: there is something in `folder` already.
        OSError: `folder` cannot be made or replaced.
        RuntimeError: another process builds it.
    """
    if chunk_events < 1:
        raise ValueError(f"chunk_events is {chunk_events}, expected at least 1: 2_000_000 is a good start")
    target = check_place(folder, force=force)
    if scan.columns:
        say(f"columns: {scan.columns}")
    with building(target, _WRITER) as part:
        # Another process may have finished it between the check and the lock.
        _check_free(target, force)
        put_in_place(_Build(scan, part, chunk_events, say).run(), target, part / "old")
    return Path(folder)


def check_place(folder: str | Path, *, force: bool = False) -> Path:
    """The folder that `write_store` would make or replace, links followed.

    The arguments and errors are those of `write_store`: sources that are read to be described need not be for nothing.
    """
    target = target_of(Path(folder))
    _check_free(target, force)
    with building(target, _WRITER):
        return target


def _check_free(folder: Path, force: bool) -> None:
    if not folder.exists() or (force and is_store(folder)) or (folder.is_dir() and not any(folder.iterdir())):
        return
    mend = "delete it, or give another folder" + (", or use --force" if is_store(folder) else "")
    raise FileExistsError(f"{folder} is there already, expected no such folder or an empty one: {mend}")


def is_store(folder: Path) -> bool:
    """Whether a store lies there."""
    return (folder / META).is_file()


def open_store(folder: str | Path, *, check: bool = True) -> InteractionLog:
    """The log of a store. Its columns are mapped.

    Args:
        folder: what `write_store` has made.
        check: read every file once and compare its checksum (1 to 3 GB/s a core); of a store of version 1, which has
            none, every value is checked. Without, only types and lengths are.

    Raises:
        ValueError: the store is of another version, or damaged.
    """
    folder = Path(folder)
    try:
        meta = _Meta.model_validate(json.loads((folder / META).read_text(encoding="utf-8")))
        if check and meta.checksums is not None:
            _check_sums(folder, meta, meta.checksums)
        arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in (*COLUMNS, *_HISTORY)}
        _check_kinds(arrays, meta)
        if check and meta.checksums is None:
            _check_values(arrays, meta)
    except ValidationError as error:
        lines = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'the file'}: {e['msg']}" for e in error.errors())
        raise _unreadable(folder, f"{META}: {lines}") from error
    except (OSError, EOFError, KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise _unreadable(folder, error) from error
    # Polars takes the arrays as they are; only the split, one byte a row, is copied.
    frame = pl.DataFrame({name: pl.Series(name, arrays[name]) for name in COLUMNS})
    names = pl.Series(SPLITS, dtype=pl.Enum(SPLITS))
    # In slices: the indices are widened.
    splits = [names.gather(frame["split"][start : start + _SLICE]) for start in range(0, max(meta.events, 1), _SLICE)]
    frame = frame.with_columns(split=pl.concat(splits, rechunk=True))
    stored = HistoryStore(*(arrays[name] for name in ("user", "time", "item", "polarity", "offsets", "before")))
    # Fill the cached properties: these lists are on disk.
    stored.__dict__.update({name: arrays[name] for name in ("positives", "negatives")})
    return InteractionLog(
        frame=frame.select("user", "item", "time", "label", "polarity", "split", "context"),
        **meta.log.model_dump(),
        stored=stored,
    )


def _unreadable(folder: Path, why: object) -> ValueError:
    return ValueError(f"{folder} is no readable store ({why}): build it anew with `mixpol data prepare ... --force`")


def _check_sums(folder: Path, meta: _Meta, checksums: Mapping[str, int]) -> None:
    names = (*COLUMNS, *_HISTORY)
    if set(checksums) != {*names, "log"}:
        raise ValueError(f"{META} has checksums of {sorted(checksums)}, expected {sorted((*names, 'log'))}")
    if _sum_of(meta.log) != checksums["log"]:
        raise ValueError(f"{META} was changed: its checksum does not fit its log")
    with ThreadPoolExecutor(min(len(names), os.cpu_count() or 1)) as threads:
        found = threads.map(lambda name: _checksum(folder / f"{name}.npy"), names)
        for name, value in zip(names, found, strict=True):
            if value != checksums[name]:
                raise ValueError(f"{name}.npy was changed: its checksum is {value:08x}, expected {checksums[name]:08x}")


def _sum_of(log: _LogMeta) -> int:
    return zlib.crc32(json.dumps(log.model_dump()).encode())


def _checksum(path: Path) -> int:
    total = 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            total = zlib.crc32(block, total)
    return total


def _check_kinds(arrays: Mapping[str, NDArray], meta: _Meta) -> None:
    """Types and lengths."""
    lengths = dict.fromkeys((*COLUMNS, "before"), meta.events) | {"offsets": meta.log.n_users + 1}
    for name, array in arrays.items():
        dtype = np.dtype(np.uint8 if name in _BYTES else np.int64)
        if array.dtype != dtype:
            raise ValueError(f"{name}.npy is {array.dtype}, expected {dtype}")
        if array.ndim != 1 or len(array) != lengths.get(name, len(array)):
            raise ValueError(f"{name}.npy has shape {list(array.shape)}, expected [{lengths.get(name, 'n')}]")
    listed = len(arrays["positives"]) + len(arrays["negatives"])
    if listed != meta.events:
        raise ValueError(f"positives.npy and negatives.npy have {listed} rows, expected {meta.events}")


def _check_values(arrays: Mapping[str, NDArray], meta: _Meta) -> None:
    """Every value, a slice at a time: what `write_store` promises of a log."""
    log = meta.log
    limits = {"user": log.n_users, "item": log.n_items, "context": log.n_contexts}
    limits |= {"label": 2, "polarity": 2, "split": len(SPLITS)}
    offsets = arrays["offsets"]
    if offsets[0] != 0 or offsets[-1] != meta.events or (np.diff(offsets) < 0).any():
        raise ValueError(f"offsets.npy does not ascend from 0 to {meta.events}")
    n_listed = {"positives": 0, "negatives": 0}
    for start in range(0, meta.events, _SLICE):
        # One row more, so that neighbours across slices are compared.
        part = {name: arrays[name][max(start - 1, 0) : start + _SLICE] for name in (*COLUMNS, "before")}
        rows = np.arange(max(start - 1, 0), max(start - 1, 0) + len(part["user"]))
        for name, limit in limits.items():
            low, high = int(part[name].min()), int(part[name].max())
            if low < 0 or high >= limit:
                raise ValueError(f"{name}.npy holds {low if low < 0 else high}, expected values from 0 below {limit}")
        user, time, before = part["user"], part["time"], part["before"]
        if (offsets[user] > rows).any() or (offsets[user + 1] <= rows).any():
            raise ValueError("user.npy and offsets.npy do not fit")
        same = user[1:] == user[:-1]
        if (same & (time[1:] < time[:-1])).any():
            raise ValueError("time.npy does not ascend within a user")
        fresh = np.append(rows[:1] == 0, ~same | (time[1:] != time[:-1]))
        if not np.array_equal(before[1:], np.where(fresh, rows, np.append(before[:1], before[:-1]))[1:]):
            raise ValueError("before.npy does not fit user.npy and time.npy")
        of_slice = slice(int(start > 0), None)
        for name, polarity in (("positives", 1), ("negatives", 0)):
            expected = rows[of_slice][part["polarity"][of_slice] == polarity]
            listed = arrays[name][n_listed[name] : n_listed[name] + len(expected)]
            if not np.array_equal(listed, expected):
                raise ValueError(f"{name}.npy does not fit polarity.npy")
            n_listed[name] += len(expected)
    if meta.events and arrays["before"][0] != 0:
        raise ValueError("before.npy does not fit user.npy and time.npy")


@dataclass
class _Build:
    scan: LogScan
    temporary: Path
    chunk_events: int
    say: Callable[[str], None]

    def run(self) -> Path:
        spool, dropped = self._spool()
        rows = [[pl.scan_ipc(file) for file in files] for files in spool]
        tables = {name: id_table([file for files in rows for file in files], name) for name in self.scan.renumber}
        self.say(
            f"read {sum(1 for files in spool for _ in files):,} chunks; distinct: "
            + (", ".join(f"{len(table):,} {name}s" for name, table in tables.items()) or "ids as they are")
        )
        counts = self._count(rows, tables)
        ends = self._partition_ends(counts)
        totals = Totals(len(counts), self._quantiles(rows))
        split = self.scan.split.column(totals) if any("split" not in _columns(files) for files in rows) else None
        self._scatter(spool, tables, ends)
        shutil.rmtree(self.temporary / "spool")
        self.say(f"sorting {int(counts.sum()):,} events of {np.count_nonzero(counts):,} users in {len(ends):,} parts")
        return self._write(len(ends), len(spool), split, dropped)

    def _spool(self) -> tuple[list[list[Path]], dict[str, int]]:
        """The rows to keep, in chunks on disk, and how many are dropped."""
        dropped = dict.fromkeys(self.scan.drops, 0)
        (self.temporary / "spool").mkdir()
        spool: list[list[Path]] = []
        for f, frame in enumerate(self.scan.frames):
            files: list[Path] = []
            chunks = _chunks(frame, self.chunk_events)
            for k in count():
                with readable(self.scan.name, self.scan.source):
                    batch = next(chunks, None)
                if batch is None:
                    break
                rows, gone = self.scan.keep(batch)
                for reason, n in gone.items():
                    dropped[reason] += n
                files.append(self.temporary / "spool" / f"{f}-{k}.arrow")
                rows.write_ipc(files[-1], compression="lz4")
            spool.append(files)
        return spool, dropped

    def _count(self, rows: list[list[pl.LazyFrame]], tables: dict[str, pl.Series]) -> np.ndarray:
        """[n_users] events per user."""
        counts = np.zeros(len(tables.get("user", ())), dtype=np.int64)
        for file in (file for files in rows for file in files):
            users = renumbered(file.select("user").collect(), {k: v for k, v in tables.items() if k == "user"})["user"]
            if not users.dtype.is_integer() or users.has_nulls() or (len(users) and users.min() < 0):
                # The log's own check says it best.
                InteractionLog.from_frame(
                    pl.DataFrame({"user": users}).with_columns(
                        item=0, time=0, label=0, polarity=0, split=pl.lit("train")
                    ),
                    name=self.scan.name,
                    polarity_rule="",
                    source="",
                )
            n = np.bincount(users.to_numpy(), minlength=len(counts))
            n[: len(counts)] += counts
            counts = n
        return counts

    def _partition_ends(self, counts: np.ndarray) -> np.ndarray:
        """One past the last user of each partition of about `chunk_events` events."""
        total = np.cumsum(counts)
        n_parts = max(1, -(-int(counts.sum()) // self.chunk_events))
        ends = np.searchsorted(total, np.arange(1, n_parts) * self.chunk_events, side="left") + 1
        return np.unique(np.concatenate([np.minimum(ends, len(counts)), [len(counts)]]))

    def _quantiles(self, rows: list[list[pl.LazyFrame]]) -> Callable[[float], int]:
        files = [file.select("time").drop_nulls() for files in rows for file in files if "split" not in _columns(files)]
        cached: list[tuple[int, int, np.ndarray]] = []

        def time_at(share: float) -> int:
            if not cached:
                cached.append(_histogram(files))
            low, width, counts = cached[0]
            n = int(counts.sum())
            if not n:
                return 0
            k, total = place_of(share, n), np.cumsum(counts)
            bucket = int(np.searchsorted(total, k, side="right"))
            first = low + bucket * width
            inside = [
                file.filter(pl.col("time").is_between(first, first + width - 1)).collect()["time"] for file in files
            ]
            return int(pl.concat(inside).sort()[k - (int(total[bucket - 1]) if bucket else 0)])

        return time_at

    def _scatter(self, spool: list[list[Path]], tables: dict[str, pl.Series], ends: np.ndarray) -> None:
        """Each chunk's rows into files by part, in the order they came."""
        (self.temporary / "parts").mkdir()
        for f, files in enumerate(spool):
            for k, file in enumerate(files):
                rows = renumbered(pl.read_ipc(file), tables)
                part = np.searchsorted(ends, rows["user"].to_numpy(), side="right")
                # Few bits: a stable radix sort.
                order = np.argsort(part.astype(np.uint16 if len(ends) < 1 << 16 else np.int64), kind="stable")
                start = np.searchsorted(part[order], np.arange(len(ends) + 1))
                for p in range(len(ends)):
                    if k == 0 or start[p] < start[p + 1]:
                        piece = rows[order[start[p] : start[p + 1]]]
                        piece.write_ipc(self.temporary / "parts" / f"{p}-{f}-{k}.arrow", compression="lz4")
                file.unlink()

    def _write(self, n_parts: int, n_frames: int, split: pl.Expr | None, dropped: dict[str, int]) -> Path:
        store = self.temporary / "store"
        store.mkdir()
        names = (*COLUMNS, *_HISTORY)
        files = {name: _Npy(store / f"{name}.npy") for name in names}
        sizes = dict.fromkeys(("n_users", "n_items", "n_contexts"), 0)
        events = n_duplicates = n_users = 0
        parts = self.temporary / "parts"
        for p in range(n_parts):
            frames = []
            for f in range(n_frames):
                pieces = sorted(parts.glob(f"{p}-{f}-*.arrow"), key=lambda path: int(path.stem.rpartition("-")[2]))
                frames.append(pl.concat([pl.read_ipc(piece) for piece in pieces], rechunk=True))
                for piece in pieces:
                    piece.unlink()
            log = InteractionLog.from_frame(
                *frames,
                name=self.scan.name,
                polarity_rule=self.scan.polarity_rule,
                source=self.scan.source,
                split=split,
            )
            del frames
            history = log.history_store()
            for name in COLUMNS:
                column = log.frame[name]
                files[name].append((column.to_physical() if name == "split" else column).to_numpy())
            files["before"].append(history.before + events)
            # offsets[u] for the users from the last one written on.
            files["offsets"].append(history.offsets[n_users : len(history.offsets) - 1] + events)
            n_users = max(n_users, len(history.offsets) - 1)
            files["positives"].append(history.positives + events)
            files["negatives"].append(history.negatives + events)
            events += log.frame.height
            n_duplicates += log.n_duplicates
            sizes = {name: max(size, getattr(log, name)) for name, size in sizes.items()}
        files["offsets"].append(np.array([events]))
        for file in files.values():
            file.close()
        described = _LogMeta(
            **sizes,
            name=self.scan.name,
            polarity_rule=self.scan.polarity_rule,
            source=self.scan.source,
            n_duplicates=n_duplicates,
            dropped=dropped,
        )
        meta = _Meta(
            version=VERSION,
            events=events,
            log=described,
            checksums={name: _checksum(store / f"{name}.npy") for name in names} | {"log": _sum_of(described)},
        )
        (store / META).write_text(json.dumps(meta.model_dump(), indent=1) + "\n", encoding="utf-8")
        return store


class _Npy:
    """A one-dimensional .npy file of unknown length: written from front to back, the header last."""

    def __init__(self, path: Path) -> None:
        self.file = path.open("wb")
        self.length, self.dtype = 0, np.dtype(np.int64)
        self.file.write(b"\0" * len(self._header()))

    def append(self, values: np.ndarray) -> None:
        if self.length and values.dtype != self.dtype:
            raise TypeError(f"{self.file.name}: {values.dtype} after {self.dtype}")
        self.dtype = values.dtype
        self.length += len(values)
        np.ascontiguousarray(values).tofile(self.file)

    def close(self) -> None:
        self.file.seek(0)
        self.file.write(self._header())
        self.file.close()

    def _header(self) -> bytes:
        # Numpy leaves room for the length to grow, so that the header's size does not depend on it.
        text = io.BytesIO()
        description: dict[str, Any] = {"descr": self.dtype.str, "fortran_order": False, "shape": (self.length,)}
        np.lib.format.write_array_header_1_0(text, description)
        return text.getvalue()


def _chunks(frame: pl.LazyFrame, size: int) -> Iterator[pl.DataFrame]:
    """The rows of a lazy table, in order, about `size` at a time; at least one table, maybe empty."""
    waiting: list[pl.DataFrame] = []
    n = 0
    for batch in frame.collect_batches(chunk_size=size, maintain_order=True, engine="streaming"):
        waiting.append(batch)
        n += batch.height
        if n >= size:
            yield pl.concat(waiting)
            waiting, n = [], 0
    yield pl.concat(waiting) if waiting else pl.DataFrame(schema=frame.collect_schema())


def _columns(files: list[pl.LazyFrame]) -> list[str]:
    return files[0].collect_schema().names()


def _histogram(files: list[pl.LazyFrame]) -> tuple[int, int, np.ndarray]:
    """Lowest time, width of a bucket, events per bucket."""
    bounds = [file.select(low=pl.col("time").min(), high=pl.col("time").max()).collect().row(0) for file in files]
    bounds = [(low, high) for low, high in bounds if low is not None]
    if not bounds:
        return 0, 1, np.zeros(1, dtype=np.int64)
    low, high = min(low for low, _ in bounds), max(high for _, high in bounds)
    width = (high - low) // _BINS + 1
    counts = np.zeros(_BINS, dtype=np.int64)
    for file in files:
        times = file.collect()["time"].to_numpy()
        counts += np.bincount((times - low) // width, minlength=_BINS)
    return low, width, counts
