"""`Preparing`: processes that compile and check candidates of `tune`."""

from __future__ import annotations

import functools
import multiprocessing
import os
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial

import torch

from mixpol_kernels.ops.triton.devices import Config
from mixpol_models.bench.gpu_problems import Size
from mixpol_models.bench.tune_trial import Entry, Trial, configuration, refusal
from mixpol_models.stopping import end_with_parent

_trial = functools.lru_cache(maxsize=1)(Trial)


def _prepare(entry: Entry, architecture: str, size: Size, device: torch.device, config: Config) -> str:
    """In a process of its own: compiles a candidate into Triton's cache and checks it. Why it is refused, or empty."""
    with configuration(entry, architecture, config):
        try:
            trial = _trial(entry, size, device)
            trial.check()
            trial.run()
        except torch.AcceleratorError:
            os._exit(1)  # the GPU's context is lost: every other candidate would fail in this process too
        except Exception as error:
            return refusal(error)
    return ""


def _begin() -> None:
    # Ctrl-C goes to the whole group of processes; the parent decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()


class Preparing:
    """Processes that compile and check candidates at once. One that dies refuses its candidate alone.

    Args:
        workers: how many; each has its own copy of the problem on the GPU.
    """

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self.pool = self._start()

    def _start(self) -> ProcessPoolExecutor:
        spawn = multiprocessing.get_context("spawn")
        return ProcessPoolExecutor(self.workers, mp_context=spawn, initializer=_begin)

    def __enter__(self) -> Preparing:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:  # nobody waits for what is under way
            for process in list((self.pool._processes or {}).values()):
                process.kill()
        self.pool.shutdown(cancel_futures=True)

    def __call__(
        self, entry: Entry, architecture: str, size: Size, device: torch.device, every: Sequence[Config]
    ) -> list[str]:
        """The reason each candidate is refused, in order; "" if it is accepted. The GPU is idle afterwards."""
        job = partial(_prepare, entry, architecture, size, device)
        found = [_result(future) for future in [self._submit(job, config) for config in every]]
        if None in found:  # the death of one process ends the whole pool: one candidate at a time, its own shows
            self._restart()
        reasons = []
        for config, reason in zip(every, found, strict=True):
            again = _result(self._submit(job, config)) if reason is None else reason
            if again is None:
                self._restart()
            reasons.append("its process died" if again is None else again)
        return reasons

    def _restart(self) -> None:
        self.pool.shutdown()
        self.pool = self._start()

    def _submit(self, job: Callable[[Config], str], config: Config) -> Future[str] | None:
        try:
            return self.pool.submit(job, config)
        except BrokenProcessPool:
            return None


def _result(future: Future[str] | None) -> str | None:
    """None: the process died."""
    try:
        return None if future is None else future.result()
    except BrokenProcessPool:
        return None
