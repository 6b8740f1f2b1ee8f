"""`mixpol tune`: the fastest launch configuration of each Triton kernel on the GPU at hand.

A candidate is held to the error budget before it is timed. What is written is what the package reads where
MIXPOL_TRITON_CONFIGS names the folder; nothing is tuned unless it is asked for. Compiling is most of the time: several
processes compile and check, then one times, alone.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch

from mixpol_kernels.ops.triton import devices
from mixpol_kernels.ops.triton.devices import Config
from mixpol_models.bench.gpu_problems import Size
from mixpol_models.bench.tune_trial import FOLDERS, Entry, Trial, configuration, refusal, write
from mixpol_models.bench.tune_workers import Preparing

_TILES, _WARPS, _STAGES, _FLUSHES = (16, 32, 64, 128), (4, 8), (1, 2, 3), (0, 1, 2)


@dataclass(frozen=True)
class Found:
    """Result of tuning one entry.

    Attributes:
        entry: what was tuned.
        shipped_ms: of the present configuration; None where there is none that runs.
        best, best_ms: the fastest candidate; None if none ran and was right.
        tried, refused: candidates, and those that did not compile, did not fit on the chip or were wrong.
        reason: the last refusal.
        milliseconds: of every candidate that ran and was right.
    """

    entry: Entry
    shipped_ms: float | None
    best: Config | None
    best_ms: float | None
    tried: int
    refused: int
    reason: str = ""
    milliseconds: dict[Config, float] = field(default_factory=dict)


def entries(architecture: str, pattern: str = "") -> list[Entry]:
    """Every configuration that kernels have on an architecture, those with `pattern` in "OP/NAME"."""
    every = [Entry(op, name) for op, folder in FOLDERS.items() for name in devices.names(folder, architecture)]
    found = [entry for entry in every if pattern in f"{entry.op}/{entry.name}"]
    if not found:
        raise ValueError(f"only is {pattern!r}, in none of: {', '.join(f'{e.op}/{e.name}' for e in every)}")
    return found


def candidates(entry: Entry) -> list[Config]:
    """To try, in order."""
    flushes = _FLUSHES if entry.units and entry.direction == "backward" else (0,)
    return [Config(*values) for values in itertools.product(_TILES, _WARPS, _STAGES, flushes)]


def tune(
    entry: Entry,
    architecture: str,
    trial: Trial,
    tick: Callable[[], None] = lambda: None,
    among: Sequence[Config] | None = None,
    prepare: Callable[[Sequence[Config]], list[str]] | None = None,
) -> Found:
    """Tries the candidates of an entry, the present configuration among them.

    Args:
        entry: what to tune.
        architecture: of the GPU, one of devices.ARCHITECTURES.
        trial: checks and times the present configuration.
        tick: called after each candidate.
        among: the candidates; default `candidates(entry)`.
        prepare: checks candidates elsewhere, which then are timed only: why each is refused, in order, empty if it is
            right (`Preparing`). By default each is checked here, right before it is timed.
    """
    present = devices.configured(FOLDERS[entry.op], architecture).get(entry.name)
    every = list(candidates(entry) if among is None else among)
    if present is not None and present not in every:
        every.insert(0, present)
    times: dict[Config, float] = {}
    reason = ""
    refusals = [""] * len(every) if prepare is None else prepare(every)
    for config, refused in zip(every, refusals, strict=True):
        if refused:
            reason = refused
        else:
            with configuration(entry, architecture, config):
                try:
                    if prepare is None:
                        trial.check()
                    times[config] = trial.seconds()
                except Exception as error:  # the compiler and the driver have many kinds
                    reason = refusal(error)
        tick()
    best = min(times, key=times.__getitem__, default=None)
    return Found(
        entry=entry,
        shipped_ms=None if present not in times else 1e3 * times[present],
        best=best,
        best_ms=None if best is None else 1e3 * times[best],
        tried=len(every),
        refused=len(every) - len(times),
        reason=reason,
        milliseconds={config: 1e3 * seconds for config, seconds in times.items()},
    )


def written(folder: Path, architecture: str) -> set[Entry]:
    """Entries that a folder has, from this or an earlier call."""
    paths = {op: devices.tuned_file(configs, architecture, folder) for op, configs in FOLDERS.items()}
    return {Entry(op, name) for op, path in paths.items() if path.exists() for name in json.loads(path.read_text())}


def run(
    folder: Path,
    device: torch.device,
    size: Size,
    only: str = "",
    tick: Callable[[str, float], None] = lambda line, done: None,
    workers: int = 1,
) -> tuple[list[Found], int]:
    """Tunes every entry that the folder does not have, and writes each one as soon as it is known.

    Args:
        folder: for MIXPOL_TRITON_CONFIGS.
        device: a GPU.
        size: of the timed problems.
        only: part of the names "OP/NAME" to tune.
        tick: told (what is tried, share done).
        workers: processes that compile and check; 1: this one does.

    Returns:
        What was found, and how many entries were in the folder before.

    Raises:
        ValueError: no entry has `only` in its name, or a GPU without configurations.
    """
    architecture = devices.architecture(device.index or 0)
    if architecture not in devices.ARCHITECTURES:
        raise ValueError(f"the GPU is of none of {', '.join(devices.ARCHITECTURES)}, nor newer: no kernel runs on it")
    wanted = entries(architecture, only)
    there = written(folder, architecture)
    todo = [entry for entry in wanted if entry not in there]
    steps, done, found = sum(len(candidates(entry)) for entry in todo), 0, []

    with Preparing(workers) if workers > 1 else nullcontext() as preparing:
        for entry in todo:

            def told(entry: Entry = entry) -> None:
                nonlocal done
                done += 1
                tick(f"{entry.op} {entry.name}", min(1.0, done / steps))

            prepare = None if preparing is None else partial(preparing, entry, architecture, size, device)
            result = tune(entry, architecture, Trial(entry, size, device), told, prepare=prepare)
            found.append(result)
            if result.best is not None:
                write({entry.name: result.best}, devices.tuned_file(FOLDERS[entry.op], architecture, folder))
    return found, len(wanted) - len(todo)
