"""The files of a store, `mixpol_store.json`, and their checks."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from mixpol_models.data.log import SPLITS

META = "mixpol_store.json"
VERSION = 2  # version 1 has no checksums
COLUMNS = ("user", "item", "time", "label", "polarity", "split", "context")
HISTORY = ("offsets", "before", "positives", "negatives")
_BYTES = ("label", "polarity", "split")
SLICE = 4_000_000
_Count = Field(ge=0)


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class LogMeta(_Strict):
    n_users: int = _Count
    n_items: int = _Count
    n_contexts: int = _Count
    name: str
    polarity_rule: str
    source: str
    n_duplicates: int = _Count
    dropped: dict[str, int]


class Meta(_Strict):
    """Content of `mixpol_store.json`; `checksums` are CRC-32 of the whole files, by array, and of `log`."""

    version: Literal[1, 2]
    events: int = _Count
    log: LogMeta
    checksums: dict[str, int] | None = None


def check_sums(folder: Path, meta: Meta, checksums: Mapping[str, int]) -> None:
    names = (*COLUMNS, *HISTORY)
    if set(checksums) != {*names, "log"}:
        raise ValueError(f"{META} has checksums of {sorted(checksums)}, expected {sorted((*names, 'log'))}")
    if sum_of(meta.log) != checksums["log"]:
        raise ValueError(f"{META} was changed: its checksum does not fit its log")
    with ThreadPoolExecutor(min(len(names), os.cpu_count() or 1)) as threads:
        found = threads.map(lambda name: checksum(folder / f"{name}.npy"), names)
        for name, value in zip(names, found, strict=True):
            if value != checksums[name]:
                raise ValueError(f"{name}.npy was changed: its checksum is {value:08x}, expected {checksums[name]:08x}")


def sum_of(log: LogMeta) -> int:
    return zlib.crc32(json.dumps(log.model_dump()).encode())


def checksum(path: Path) -> int:
    total = 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            total = zlib.crc32(block, total)
    return total


def check_kinds(arrays: Mapping[str, NDArray], meta: Meta) -> None:
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


def check_values(arrays: Mapping[str, NDArray], meta: Meta) -> None:
    """Every value, a slice at a time: what `write_store` promises of a log."""
    log = meta.log
    limits = {"user": log.n_users, "item": log.n_items, "context": log.n_contexts}
    limits |= {"label": 2, "polarity": 2, "split": len(SPLITS)}
    offsets = arrays["offsets"]
    if offsets[0] != 0 or offsets[-1] != meta.events or (np.diff(offsets) < 0).any():
        raise ValueError(f"offsets.npy does not ascend from 0 to {meta.events}")
    n_listed = {"positives": 0, "negatives": 0}
    for start in range(0, meta.events, SLICE):
        # One row more, so that neighbours across slices are compared.
        part = {name: arrays[name][max(start - 1, 0) : start + SLICE] for name in (*COLUMNS, "before")}
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
