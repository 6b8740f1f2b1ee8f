"""`mixpol experiment run`: what of a grid is not yet in the store is trained and put there."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from pydantic import ValidationError
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)

from mixpol_models import stopping
from mixpol_models.data import InteractionLog
from mixpol_models.data.locks import locked
from mixpol_models.experiments.baselines import rate_baselines
from mixpol_models.experiments.grid.config import ExperimentConfig, Run, digest
from mixpol_models.experiments.grid.outcome import about, rate_row
from mixpol_models.experiments.grid.pool import Done, attempt, in_workers
from mixpol_models.experiments.grid.source import experiment_log, fingerprint, share
from mixpol_models.experiments.grid.store import ResultStore
from mixpol_models.files import check_output_folder, write_atomically
from mixpol_models.progress import TimeLeft, clock
from mixpol_models.training import prepare
from mixpol_models.training.run import check_device

CONFIG = "experiment.yaml"
_OWN = "fingerprint"
_LOG = ".log-"


@dataclass(frozen=True)
class Summary:
    """Result of `run_experiment`: numbers of runs.

    Attributes:
        folder: of the store.
        total: runs of the grid.
        skipped: were there before.
        trained, failed: now.
        left: not reached, after a KeyboardInterrupt.
    """

    folder: Path
    total: int
    skipped: int
    trained: int
    failed: int

    @property
    def left(self) -> int:
        return self.total - self.skipped - self.trained - self.failed


def run_experiment(
    experiment: ExperimentConfig,
    output: str | Path,
    *,
    workers: int | None = None,
    only: ExperimentConfig | None = None,
    console: Console | None = None,
) -> Summary:
    """Trains the runs that the store does not hold yet; those that failed before are tried again.

    Every run is put into the store as it ends, so a kill loses what is under way and nothing else. Ctrl-C ends the
    workers and returns.

    Args:
        experiment: the whole grid; a report counts what is missing of it.
        output: folder of the store.
        workers: processes, each with an equal part of the cores; None is one per core, 0 trains in this process.
        only: the part of the grid to train, from `experiment.only`.
        console: where to print.

    Raises:
        ValueError: a run is no valid configuration, or the folder holds another experiment's results.
        RuntimeError: another process writes to the folder.
    """
    console = console or Console(width=None if sys.stdout.isatty() else 110)
    _check_workers(workers)
    check_output_folder(output)
    whole = experiment.runs()
    runs = whole if only is None else only.runs()
    for run in runs:
        check_device(run.config)
    store = ResultStore(output)
    _check_name(store.folder, experiment)
    if store.frame.height:
        stopping.note(f"{store.folder}/ has what was finished")
    log = experiment_log(experiment, say=lambda line: console.print(line, style="dim", highlight=False, markup=False))
    mark = fingerprint(log)
    with locked(store.folder, "mixpol experiment run"):
        _write_config(store.folder, experiment, mark)
        _put_rates(store, log, mark, experiment)
        keys = [run.key(mark, experiment) for run in runs]
        known = store.done()
        todo = [(run, key) for run, key in zip(runs, keys, strict=True) if key not in known]
        trained = failed = 0
        ends = _ends([run for run, _ in todo], log, experiment, _workers(workers, len(todo)), store.folder)
        _note(store.folder, len(runs) - len(todo), len(runs))
        started = time.perf_counter()
        with _bar(console) as bar:
            task = bar.add_task(experiment.name, total=len(todo))
            try:
                for done in ends:
                    run, key = todo[done.index]
                    row = about(run, key, log.name, mark, experiment) | (done.row or {"seconds": done.seconds})
                    store.put(row | {"status": "failed" if done.error else "done", "error": done.error})
                    trained, failed = trained + (done.error is None), failed + (done.error is not None)
                    if done.error is not None:
                        last = done.error.strip().splitlines()[-1]
                        bar.console.print(f"failed: {run.label}: {last}", style="red", highlight=False, markup=False)
                    bar.update(task, advance=1, description=run.label)
                    _note(store.folder, len(runs) - len(todo) + trained, len(runs))
                    if not console.is_terminal:
                        line = _line(trained + failed, len(todo), run, done, time.perf_counter() - started)
                        console.print(line, highlight=False, markup=False, soft_wrap=True)
            except KeyboardInterrupt:
                console.print("Stopped; what was finished is in the store.", style="bold")
            finally:
                ends.close()
    return Summary(store.folder, len(runs), len(runs) - len(todo), trained, failed)


def read_experiment(folder: Path) -> tuple[ExperimentConfig, str]:
    """The experiment of a store, and the fingerprint of its data.

    Raises:
        ValueError: the folder holds none, or it is damaged.
    """
    file = folder / CONFIG
    if not file.is_file():
        raise ValueError(f"store is {str(folder)!r}, where there is no {CONFIG}: run `mixpol experiment run` first")
    try:
        settings = yaml.safe_load(file.read_text(encoding="utf-8"))
        mark = settings.pop(_OWN)
        return ExperimentConfig(**settings), str(mark)
    except (yaml.YAMLError, UnicodeDecodeError, AttributeError, TypeError, KeyError, ValidationError) as error:
        raise ValueError(
            f"{file} is not readable as the experiment of a store ({type(error).__name__}): delete it and run "
            "`mixpol experiment run` again, which keeps the results"
        ) from None


def expected_keys(experiment: ExperimentConfig, mark: str) -> list[str]:
    """Keys of the whole grid."""
    return [run.key(mark, experiment) for run in experiment.runs()]


def _check_name(folder: Path, experiment: ExperimentConfig) -> None:
    """A grid may grow later; its name may not change."""
    if (folder / CONFIG).is_file():
        before, _ = read_experiment(folder)
        if before.name != experiment.name:
            raise ValueError(
                f"output is {str(folder)!r}, which holds the results of {before.name!r}, expected a new folder or that "
                f"of {experiment.name!r}: take another --output"
            )


def _write_config(folder: Path, experiment: ExperimentConfig, mark: str) -> None:
    """Keeps the experiment beside its results."""
    text = yaml.safe_dump(experiment.model_dump(mode="json") | {_OWN: mark}, sort_keys=False, default_flow_style=None)
    write_atomically(folder / CONFIG, text)


def _put_rates(store: ResultStore, log: InteractionLog, mark: str, experiment: ExperimentConfig) -> None:
    resamples = [experiment.resamples, experiment.strata_resamples]
    rates = None
    for name in ("item × user", "item × user × tab"):
        key = digest({"floor": name, "data": mark, "resamples": resamples})
        if key in store.done():
            continue
        rates = rates or {rate.name: rate for rate in rate_baselines(log)}
        if name in rates:
            examples = prepare(log, experiment.runs()[0].config)
            row = {"key": key, "kind": "floor", "status": "done", "experiment": experiment.name, "data": log.name}
            row |= {"fingerprint": mark, "variant": name}
            store.put(row | rate_row(log, examples, rates[name], experiment))


def _check_workers(asked: int | None) -> None:
    if asked is not None and asked < 0:
        raise ValueError(f"workers is {asked}, expected 0 or more: 0 trains in this process")


def _workers(asked: int | None, runs: int) -> int:
    return min(_cores() if asked is None else asked, max(runs, 1))


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _ends(
    runs: Sequence[Run], log: InteractionLog, experiment: ExperimentConfig, workers: int, store: Path
) -> Iterator[Done]:
    for left in store.glob(f"{_LOG}*"):  # by a run that was killed: the store is locked
        shutil.rmtree(left, ignore_errors=True)
    if not runs:
        return
    if workers == 0:
        for index, run in enumerate(runs):
            started = time.perf_counter()
            row, error = attempt(log, run, experiment)
            yield Done(index, row, error, time.perf_counter() - started)
        return
    with tempfile.TemporaryDirectory(prefix=_LOG, dir=store) as folder:
        yield from in_workers(runs, experiment, share(log, Path(folder)), workers, max(1, _cores() // workers))


def _note(folder: Path, done: int, total: int) -> None:
    stopping.note(f"{folder}/ has {done} of {total} runs")


def _line(ended: int, total: int, run: Run, done: Done, elapsed: float) -> str:
    """The line for a finished run, where there is no terminal for a bar."""
    found = "failed" if done.row is None else f"AUC {done.row['auc']:.4f}"
    left = f", about {clock(elapsed / ended * (total - ended))} left" if ended < total else ""
    return f"{ended} of {total}: {run.label}: {found}, {clock(done.seconds)}; {clock(elapsed)} so far{left}"


def _bar(console: Console) -> Progress:
    return Progress(
        SpinnerColumn(),
        MofNCompleteColumn(),
        TextColumn("runs"),
        BarColumn(bar_width=24),
        TimeElapsedColumn(),
        TimeLeft(),
        TextColumn("last: {task.description}"),
        console=console,
        disable=not console.is_terminal,  # a line a run there
    )
