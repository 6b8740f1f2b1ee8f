"""Building of a store from a described log, in bounded memory."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from mixpol_models.data.log import InteractionLog
from mixpol_models.data.scan import LogScan, id_table, place_of, readable, renumbered
from mixpol_models.data.splits import Totals
from mixpol_models.data.store_format import COLUMNS, HISTORY, META, VERSION, LogMeta, Meta, checksum, sum_of

_BINS = 1 << 16


@dataclass
class Build:
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
        names = (*COLUMNS, *HISTORY)
        files = {name: NpyWriter(store / f"{name}.npy") for name in names}
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
        described = LogMeta(
            **sizes,
            name=self.scan.name,
            polarity_rule=self.scan.polarity_rule,
            source=self.scan.source,
            n_duplicates=n_duplicates,
            dropped=dropped,
        )
        meta = Meta(
            version=VERSION,
            events=events,
            log=described,
            checksums={name: checksum(store / f"{name}.npy") for name in names} | {"log": sum_of(described)},
        )
        (store / META).write_text(json.dumps(meta.model_dump(), indent=1) + "\n", encoding="utf-8")
        return store


class NpyWriter:
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
