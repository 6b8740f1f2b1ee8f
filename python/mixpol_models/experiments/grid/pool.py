"""Worker processes that train: each takes one run after another and sends back its row."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from mixpol_models.experiments.grid.config import ExperimentConfig, Run
from mixpol_models.stopping import end_with_parent

_STOP_SECONDS = 5.0


@dataclass(frozen=True)
class Done:
    """A run that ended.

    Attributes:
        index: of the run, among those given.
        row: what `run_row` found; None if it failed.
        error: why it failed.
        seconds: from its start to its end.
    """

    index: int
    row: dict[str, Any] | None
    error: str | None
    seconds: float


@dataclass
class _Worker:
    process: Any
    pipe: Connection
    index: int | None = None
    started: float = 0.0


def in_workers(
    runs: Sequence[Run], experiment: ExperimentConfig, log_folder: Path, workers: int, threads: int
) -> Iterator[Done]:
    """Trains runs in processes of their own and yields them as they end, in whatever order.

    The processes are started afresh ("spawn"), read the log that `source.share` wrote and stay for many runs. A run
    that raises is told as failed; a process that dies fails its run alone, and another one takes its place.

    Args:
        runs: what to train.
        experiment: theirs.
        log_folder: of the shared log.
        workers: processes.
        threads: of each.
    """
    start = multiprocessing.get_context("spawn")

    def make() -> _Worker:
        here, there = start.Pipe()
        process = start.Process(target=_work, args=(there, experiment, log_folder, threads), daemon=True)
        process.start()
        there.close()
        return _Worker(process, here)

    waiting = list(enumerate(runs))[::-1]
    crew: list[_Worker] = []
    try:
        while waiting or any(worker.index is not None for worker in crew):
            while waiting and len(crew) < workers:
                crew.append(make())
            for worker in crew:
                if worker.index is None and waiting:
                    index, run = waiting.pop()
                    worker.index, worker.started = index, time.perf_counter()
                    _send(worker, run)
            ready = wait([worker.pipe for worker in crew if worker.index is not None])
            for worker in [worker for worker in crew if worker.pipe in ready]:
                done = _receive(worker)
                if done.error is not None and not worker.process.is_alive():
                    crew.remove(worker)
                worker.index = None
                yield done
    finally:
        _dismiss(crew)


def _send(worker: _Worker, run: Run) -> None:
    # A worker may have died while it was idle: its pipe is at its end then, which `_receive` tells.
    with contextlib.suppress(OSError):
        worker.pipe.send(run)


def _receive(worker: _Worker) -> Done:
    assert worker.index is not None
    try:
        row, error = worker.pipe.recv()
    except (EOFError, OSError):
        worker.process.join(_STOP_SECONDS)
        row, error = None, f"its process died (exit code {worker.process.exitcode}); out of memory?"
    return Done(worker.index, row, error, time.perf_counter() - worker.started)


def _dismiss(crew: Sequence[_Worker]) -> None:
    for worker in crew:
        worker.pipe.close()
        if worker.index is not None:  # SIGTERM would wait for the end of a step
            worker.process.kill()
    for worker in crew:
        worker.process.join(_STOP_SECONDS)
        if worker.process.is_alive():
            worker.process.kill()
            worker.process.join()


def _work(pipe: Connection, experiment: ExperimentConfig, log_folder: Path, threads: int) -> None:
    # Ctrl-C goes to the whole group of processes; the parent decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()
    import torch

    from mixpol_models.experiments.grid.source import shared

    torch.set_num_threads(threads)
    # Folders of runs, so that the parent clears away those of a worker that it had to stop.
    tempfile.tempdir = str(log_folder)
    log = shared(log_folder)
    while True:
        try:
            run = pipe.recv()
        except EOFError:  # the parent has finished, or is gone
            return
        pipe.send(attempt(log, run, experiment))


def attempt(log: Any, run: Run, experiment: ExperimentConfig) -> tuple[dict[str, Any] | None, str | None]:
    """The run's row, or why there is none."""
    from mixpol_models.experiments.grid.outcome import run_row

    try:
        return run_row(log, run, experiment), None
    except Exception:
        return None, traceback.format_exc()
