"""The log of an experiment, its fingerprint, and its way to the worker processes."""

from __future__ import annotations

import hashlib
import os
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import polars as pl

from mixpol_models.choices import KUAIRAND_PURE
from mixpol_models.data import DateSplit, InteractionLog, load_kuairand, resolve
from mixpol_models.data.cache import cache_dir
from mixpol_models.data.kuairand import find_kuairand
from mixpol_models.data.planted import planted_log
from mixpol_models.experiments.grid.config import ExperimentConfig


def experiment_log(config: ExperimentConfig, *, say: Callable[[str], None] = print) -> InteractionLog:
    """The data that an experiment asks for.

    Args:
        config: `planted` draws a log, `days` takes KuaiRand-Pure with that split, else `data` is resolved.
        say: gets a line about the data.

    Raises:
        ValueError: the data are not there, or `days` is given for data without days.
    """
    if config.planted is not None:
        log = planted_log(**config.planted.model_dump())
        say(f"data: {log.describe()}")
        return log
    if config.days is None:
        return resolve(config.data, say=say)
    days = config.days
    split = DateSplit(days.train, days.valid, days.test)
    log = load_kuairand(_kuairand_folder(config.data), split)
    say(f"data: {log.describe()}")
    return log


def _kuairand_folder(data: str | None) -> Path:
    named = data not in (None, "", KUAIRAND_PURE)
    places = [data] if named else [os.environ.get("MIXPOL_DATA") or None, cache_dir() / KUAIRAND_PURE]
    folders = [Path(place).expanduser() for place in places if place is not None]
    for folder in folders:
        if find_kuairand(folder):
            return folder
    looked = " and ".join(str(folder) for folder in folders)
    raise ValueError(
        f"days are given, which only KuaiRand-Pure has, and there is none in {looked}: run `mixpol data get "
        f"{KUAIRAND_PURE}`, or name its folder with --data or MIXPOL_DATA"
    )


def fingerprint(log: InteractionLog) -> str:
    """16 hexadecimal digits that change with any row, split or table size."""
    digest = hashlib.sha256(f"{log.n_users} {log.n_items} {log.n_contexts}".encode())
    for name in sorted(log.frame.columns):
        column = log.frame[name]
        values = column.to_physical() if column.dtype == pl.Enum else column
        digest.update(name.encode())
        digest.update(values.to_numpy().tobytes())
    return digest.hexdigest()[:16]


def share(log: InteractionLog, folder: Path) -> Path:
    """Writes a log so that `shared` maps its table into memory: all workers read the same pages."""
    log.frame.write_ipc(folder / "log.arrow", compression="uncompressed")
    (folder / "log.pickle").write_bytes(pickle.dumps(replace(log, frame=log.frame.clear())))
    return folder


def shared(folder: Path) -> InteractionLog:
    """The log that `share` wrote. For files of this process's parent only: it unpickles."""
    log = pickle.loads((folder / "log.pickle").read_bytes())
    return replace(log, frame=pl.read_ipc(folder / "log.arrow"))
