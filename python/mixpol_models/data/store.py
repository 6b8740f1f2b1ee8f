"""A log on disk: built piece by piece in bounded memory, mapped when it is used.

    write_store(scan, folder)        # scan: what a source describes, see `scan`
    log = open_store(folder)         # the same log as scan.load(), bit for bit

The folder holds one .npy file per column of the sorted log (user, item, time, label, polarity, split, context) and what
histories need: `offsets` (a user's rows are offsets[u] : offsets[u+1]), `before`, and the rows of either polarity, as
`HistoryStore` describes them. `mixpol_store.json` comes last and makes it whole; it has the checksums of the files.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
from pydantic import ValidationError

from mixpol_models.data import store_format
from mixpol_models.data.histories import HistoryStore
from mixpol_models.data.locks import building, put_in_place, target_of
from mixpol_models.data.log import SPLITS, InteractionLog
from mixpol_models.data.scan import LogScan
from mixpol_models.data.store_build import Build
from mixpol_models.data.store_format import COLUMNS, HISTORY, META, Meta, check_kinds, check_sums, check_values

_WRITER = "mixpol data prepare"


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
        put_in_place(Build(scan, part, chunk_events, say).run(), target, part / "old")
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
        meta = Meta.model_validate(json.loads((folder / META).read_text(encoding="utf-8")))
        if check and meta.checksums is not None:
            check_sums(folder, meta, meta.checksums)
        arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in (*COLUMNS, *HISTORY)}
        check_kinds(arrays, meta)
        if check and meta.checksums is None:
            check_values(arrays, meta)
    except ValidationError as error:
        lines = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'the file'}: {e['msg']}" for e in error.errors())
        raise _unreadable(folder, f"{META}: {lines}") from error
    except (OSError, EOFError, KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise _unreadable(folder, error) from error
    # Polars takes the arrays as they are; only the split, one byte a row, is copied.
    frame = pl.DataFrame({name: pl.Series(name, arrays[name]) for name in COLUMNS})
    names = pl.Series(SPLITS, dtype=pl.Enum(SPLITS))
    # In slices: the indices are widened.
    splits = [
        names.gather(frame["split"][start : start + store_format.SLICE])
        for start in range(0, max(meta.events, 1), store_format.SLICE)
    ]
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
