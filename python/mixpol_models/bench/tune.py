"""`mixpol tune`: the fastest launch configuration of each Triton kernel on the GPU at hand.

A candidate is held to the error budget before it is timed. What is written is what the package reads where
MIXPOL_TRITON_CONFIGS names the folder; nothing is tuned unless it is asked for. Compiling is most of the time: several
processes compile and check, then one times, alone.
"""

from __future__ import annotations

import functools
import itertools
import json
import multiprocessing
import os
import signal
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

import torch

from mixpol_kernels.ops.dot_target_attention.triton import configs as dot
from mixpol_kernels.ops.polarity_fusion.triton import configs as fusion
from mixpol_kernels.ops.target_attention.triton import configs as attention
from mixpol_kernels.ops.triton import devices
from mixpol_kernels.ops.triton.devices import Config
from mixpol_models.bench.gate import GateError
from mixpol_models.bench.gpu_problems import Problem, Size, dot_problem, fusion_problem, unit_problem
from mixpol_models.bench.kernel_time import kernel_seconds, seconds_of
from mixpol_models.files import write_atomically
from mixpol_models.stopping import end_with_parent

FOLDERS = {"target_attention": attention.FOLDER, "polarity_fusion": fusion.FOLDER, "dot_target_attention": dot.FOLDER}
_TILES, _WARPS, _STAGES, _FLUSHES = (16, 32, 64, 128), (4, 8), (1, 2, 3), (0, 1, 2)
_PRECISION = {"half": "high", "tf32x3": "high", "float32": "highest"}


@dataclass(frozen=True)
class Entry:
    """A configuration to find: of an op, by its name in the op's file ("backward/half/64:64")."""

    op: str
    name: str

    @property
    def direction(self) -> str:
        """One of devices.DIRECTIONS."""
        return self.name.split("/")[0]

    @property
    def element(self) -> str:
        """One of devices.ELEMENTS."""
        return self.name.split("/")[1]

    @property
    def width(self) -> int:
        """D."""
        return int(self.name.split("/")[2].partition(":")[0])

    @property
    def units(self) -> tuple[int, ...]:
        """Sizes of the hidden layers; () unless the op is the activation unit."""
        _, _, units = self.name.partition(":")
        return tuple(map(int, units.split("x"))) if units else ()

    @property
    def dtype(self) -> torch.dtype:
        """dtype of the inputs on which the element is timed."""
        return torch.bfloat16 if self.element == "half" else torch.float32


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


@contextmanager
def configuration(entry: Entry, architecture: str, config: Config) -> Iterator[None]:
    """Inside, the entry's kernel is launched so. Its other direction stays, or is the same where it has none."""
    folder = FOLDERS[entry.op]
    other = entry.name.replace(entry.direction, next(d for d in devices.DIRECTIONS if d != entry.direction), 1)
    present = devices.configured(folder, architecture)
    chosen = {entry.name: config, other: present.get(other, replace(config, flush=0))}
    before = os.environ.get(devices.TUNED)
    with tempfile.TemporaryDirectory(prefix="mixpol-tune-") as scratch:
        os.environ[devices.TUNED] = scratch
        write(chosen, devices.tuned_file(folder, architecture, Path(scratch)))
        try:
            yield
        finally:
            os.environ.pop(devices.TUNED)
            if before is not None:
                os.environ[devices.TUNED] = before
            devices.configured.cache_clear()


class Trial:
    """An entry's kernel on inputs of its size, on the backend under test.

    Args:
        entry: what is tuned.
        size: of the timed problem; the checked one has 48 users at most.
        device: where.
        backend: "triton".
    """

    def __init__(self, entry: Entry, size: Size, device: torch.device, backend: str = "triton") -> None:
        self.entry, self.device, self.backend = entry, device, backend
        self.timed = _problem(entry, size)
        # Multiples of 16 and 8, as most sizes that are timed: Triton compiles anew for other ones.
        self.checked = _problem(entry, Size(min(size.users, 48), min(size.length, 136)))

    def check(self) -> None:
        """The present configuration is within the error budget (contract 1).

        Raises:
            GateError: it is not.
        """
        with self._precision():
            shares = self.checked.shares(self.backend, self.device, self.entry.dtype)
        worst = max(shares, key=shares.__getitem__)
        if not shares[worst] <= 1:
            raise GateError(f"the error of {worst} is {shares[worst]:.3g} times what is allowed")

    def run(self) -> None:
        """One launch of the timed problem, which compiles what the check did not."""
        with self._precision():
            self._make()()

    def seconds(self) -> float:
        """Median device time of one launch of the entry's direction."""
        with self._precision():
            if self.device.type == "cuda":
                return kernel_seconds(self._make)
            return seconds_of(self._make(), self.device, budget=0.2)

    @functools.cached_property
    def _inputs(self) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        return self.timed.on(self.device, self.entry.dtype)

    def _make(self) -> Callable[[], object]:
        leaves, others = self._inputs
        if self.entry.direction == "forward":
            return torch.no_grad()(lambda: self.timed.call(leaves, others, self.backend))
        output = self.timed.call(leaves, others, self.backend)
        inputs, upstream = list(leaves.values()), torch.ones_like(output)
        return partial(torch.autograd.grad, output, inputs, upstream, retain_graph=True)

    @contextmanager
    def _precision(self) -> Iterator[None]:
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision(_PRECISION[self.entry.element])
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before)


def _problem(entry: Entry, size: Size) -> Problem:
    if entry.op == "dot_target_attention":
        return dot_problem(size, entry.width)
    if entry.op == "polarity_fusion":
        return fusion_problem(size, entry.width)
    return unit_problem(size, entry.width, entry.units)


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
    for config, refusal in zip(every, refusals, strict=True):
        if refusal:
            reason = refusal
        else:
            with configuration(entry, architecture, config):
                try:
                    if prepare is None:
                        trial.check()
                    times[config] = trial.seconds()
                except Exception as error:  # the compiler and the driver have many kinds
                    reason = _short(error)
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


def _short(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]


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
            return _short(error)
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


def write(found: dict[str, Config], path: Path) -> None:
    """Adds configurations to a file of `devices.tuned_file`, which is replaced whole."""
    kept = json.loads(path.read_text()) if path.exists() else {}
    kept |= {name: asdict(config) for name, config in found.items()}
    write_atomically(path, json.dumps(dict(sorted(kept.items())), indent=1) + "\n")
    devices.configured.cache_clear()


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
