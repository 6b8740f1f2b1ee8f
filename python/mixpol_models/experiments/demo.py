"""`mixpol demo`: accuracy, kernels and whole steps on this machine, in tables and pictures."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from mixpol_models.bench import (
    GateError,
    ladder_markdown,
    ladder_table,
    machine_facts,
    plot_ladder,
    run_ladder,
    sentences,
    summary_table,
)
from mixpol_models.commands import wide_console
from mixpol_models.data import Examples, InteractionLog, resolve
from mixpol_models.experiments.compare import Comparison, compare
from mixpol_models.experiments.plots import plot_auc, plot_step
from mixpol_models.experiments.step_time import StepMismatch, step_time
from mixpol_models.experiments.subset import some_users
from mixpol_models.experiments.tables import ResultTable, accuracy_table, count, relative_table, step_table
from mixpol_models.experiments.variants import BASELINE, VARIANTS
from mixpol_models.files import results_folder, write_atomically
from mixpol_models.progress import TimeLeft
from mixpol_models.training.config import TrainConfig, load_config
from mixpol_models.training.preparation import prepare


@dataclass(frozen=True)
class DemoSize:
    """Effort of the demo.

    Attributes:
        seeds: how many, from 0.
        events: of the log that are used; None for all.
        batch_size: of training; None for the configuration's. Little data needs small steps.
        resamples: of the bootstrap.
        lengths: of the ladder.
        compiled: time the torch.compile forms too, which takes a minute to compile.
        rounds, seconds: of timing: at most so many rounds, seconds per form.
    """

    seeds: int = 2
    events: int | None = None
    batch_size: int | None = None
    resamples: int = 400
    lengths: tuple[int, ...] = (10, 50, 200)
    compiled: bool = True
    rounds: int = 15
    seconds: float = 2.0


FULL = DemoSize()
QUICK = DemoSize(
    seeds=1,
    events=30_000,
    batch_size=256,
    resamples=200,
    lengths=(10, 50),
    compiled=False,
    rounds=5,
    seconds=0.5,
)


def run_demo(
    data: str | None = None,
    output: str | Path | None = None,
    *,
    seeds: int | None = None,
    quick: bool = False,
    skip_bench: bool = False,
    force: bool = False,
    console: Console | None = None,
) -> Path:
    """Trains DIN four ways, measures layer and step, prints and saves it all, whatever the numbers are.

    Writes results.md and metrics.json, auc.png, and where the compiled kernels are there ladder.png and step.png.

    Args:
        data: as in `mixpol_models.data.resolve`.
        output: folder for the files, without earlier results; None is demo_output, or the first of demo_output-2,
            demo_output-3, ... that is free.
        seeds: how many, instead of 2 (1 with `quick`).
        quick: a part of the data, one seed, few points: under a minute, and no evidence for anything.
        skip_bench: accuracy only.
        force: replace earlier results in `output`.
        console: where to print.

    Returns:
        The folder.

    Raises:
        ValueError: no seeds, no data, or a folder with earlier results.
    """
    console = console or wide_console()
    size = QUICK if quick else FULL
    n_seeds = size.seeds if seeds is None else seeds
    if n_seeds < 1:
        raise ValueError(f"seeds is {n_seeds}, expected at least 1: 2 shows the spread")
    folder = results_folder(output, "demo_output", ("metrics.json", "results.md"), force)
    config = load_config("din", {"batch_size": size.batch_size})
    log = resolve(data, say=lambda line: console.print(line, style="dim", highlight=False, markup=False))
    if size.events is not None:
        log = some_users(log, size.events)
    demo = _Demo(console, folder, size, log, config, prepare(log, config))
    with _whole(folder):
        demo.setting(quick)
        with demo.timed("accuracy"):
            demo.accuracy(range(n_seeds))
        if not skip_bench:
            with demo.timed("ladder"):
                demo.ladder()
            with demo.timed("step"):
                demo.step()
        demo.save()
    return folder


@dataclass
class _Demo:
    """One run: its settings, and the texts, numbers and times for the files."""

    console: Console
    folder: Path
    size: DemoSize
    log: InteractionLog
    config: TrainConfig
    examples: Examples
    texts: list[str] = field(default_factory=list)
    numbers: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def setting(self, quick: bool) -> None:
        """Describes data and settings."""
        config = self.config
        lines = [
            self.log.describe(),
            f"{len(self.examples.train):,} training examples (impressions of the history are among them, each with the "
            f"past strictly before it), budget {config.budget} events, D = {config.embedding_dim}, "
            f"at most {count(config.epochs, 'epoch')}, batch {config.batch_size}.",
            "Histories hold every event strictly before the target, so those of the test rows reach into the test "
            "days.",
        ]
        if quick:
            lines.append("Quick form: too little data for conclusions.")
        self.texts += lines
        for line in lines[1:]:
            self._say(line)

    def accuracy(self, seeds: Sequence[int]) -> None:
        """Trains and compares the variants."""
        said = ""
        with tempfile.TemporaryDirectory() as runs, _bar(self.console) as bar:
            task = bar.add_task("training", total=None)

            def tick(label: str, done: int, total: int) -> None:
                nonlocal said
                if not self.console.is_terminal and label != said:  # no bar there: a line a model
                    said = label
                    self.console.print(f"training {label}, {done / total:.0%} done", highlight=False)
                bar.update(task, description=f"training {label}", completed=done, total=total)

            resamples = self.size.resamples
            comparison = compare(self.log, self.config, seeds, Path(runs), resamples=resamples, tick=tick)
        self._show(accuracy_table(comparison), relative_table(comparison))
        plot_auc(comparison, self.folder / "auc.png", self.log.name)
        self.numbers["accuracy"] = _accuracy_numbers(comparison)

    def ladder(self) -> None:
        """Times the layer alone."""
        size = self.size
        forms = None if size.compiled else ("concat", "refactored", "fused", "mean pool")
        try:
            with self._told("ladder", "ladder, ") as say:
                rows = run_ladder(
                    size.lengths,
                    rounds=size.rounds,
                    seconds_per_form=size.seconds,
                    implementations=forms,
                    progress=say,
                )
        except GateError as error:
            self._missing("layer", f"a form failed the correctness check, so nothing was timed: {error}")
            return
        except RuntimeError as error:
            self._missing("layer", str(error))
            return
        self.console.print(ladder_table(rows), summary_table(rows))
        for sentence in sentences(rows):
            self.console.print(sentence, highlight=False)
        self.console.print()
        plot_ladder(rows, self.folder / "ladder.png")
        self.numbers["ladder"] = [asdict(row) for row in rows]
        self.texts.append("### The layer alone, up the ladder\n\n" + ladder_markdown(rows))

    def step(self) -> None:
        """Times whole training steps."""
        config, size = self.config, self.size
        sizes = {name: getattr(self.examples.log, name) for name in ("n_items", "n_users", "n_contexts")}
        # The newest examples have the longest histories, as in production.
        batch = next(iter(self.examples.test.loader(config.batch_size, shuffle=True, seed=config.seed)))
        try:
            with self._told("whole step") as say:
                rows = step_time(batch, sizes, config, rounds=size.rounds, seconds=size.seconds, progress=say)
        except StepMismatch as error:
            self._missing("step", f"the two layers disagree, so nothing was timed: {error}")
            return
        except ValueError as error:
            self._missing("step", str(error))
            return
        self._show(step_table(rows, "cpu"))
        plot_step(rows, self.folder / "step.png")
        self.numbers["step"] = [asdict(row) for row in rows]

    def save(self) -> None:
        """Writes metrics.json and results.md."""
        facts, log = machine_facts(), self.log
        numbers = {
            "machine": facts,
            "data": {"name": log.name, "events": log.frame.height, "source": log.source},
            "config": self.config.model_dump(mode="json"),
            "seconds": {name: round(value, 1) for name, value in self.seconds.items()},
            **self.numbers,
        }
        write_atomically(self.folder / "metrics.json", json.dumps(numbers, indent=2) + "\n")
        times = ", ".join(f"{name} {value:.0f} s" for name, value in self.seconds.items())
        about = ", ".join(f"{name} {value}" for name, value in facts.items())
        report = ["# `mixpol demo`", *self.texts, f"Time: {times}.", f"Measured on: {about}."]
        write_atomically(self.folder / "results.md", "\n\n".join(report) + "\n")
        names = ", ".join(sorted(path.name for path in self.folder.iterdir() if path.is_file()))
        self.console.print(f"Time: {times}. Saved in {self.folder}/: {names}.", highlight=False, markup=False)

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Keeps the time of a part."""
        started = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - started

    @contextmanager
    def _told(self, name: str, prefix: str = "") -> Iterator[Callable[[str], None]]:
        """Takes lines of progress: into a bar, or one after the other where there is no terminal."""
        with _bar(self.console) as bar:
            task = bar.add_task(name, total=None)

            def say(line: str) -> None:
                bar.update(task, description=f"{prefix}{line}")
                if not self.console.is_terminal:
                    self._say(f"{prefix}{line}")

            yield say

    def _say(self, line: str) -> None:
        self.console.print(line, style="dim", highlight=False, markup=False)

    def _missing(self, what: str, why: str) -> None:
        text = f"No {what} times: {why}"
        self.console.print(text, style="bold red", highlight=False, markup=False)
        self.texts.append(text)

    def _show(self, *tables: ResultTable) -> None:
        for table in tables:
            self.console.print(table.rich())
            self.texts.append(table.markdown())


def _accuracy_numbers(found: Comparison) -> dict[str, Any]:
    return {
        "seeds": list(found.seeds),
        "test_rows": found.test_rows,
        "test_users": found.test_users,
        "models": {
            variant.name: {
                "runs": [
                    {
                        "seed": run.config.seed,
                        "seconds": run.seconds,
                        "valid": run.valid and asdict(run.valid),
                        "test": asdict(run.test),
                        "test_frozen": asdict(frozen),
                    }
                    for run, frozen in zip(found.runs[variant], found.frozen[variant], strict=True)
                ],
                "rela_impr_percent": found.relative(variant)[0].mean,
                "auc_ratio_percent": found.relative(variant)[1].mean,
                "auc_minus_positive_only": None if variant == BASELINE else asdict(found.to_baseline[variant.name]),
                "auc_minus_floor": asdict(found.to_rates[variant.name]),
            }
            for variant in VARIANTS
        },
        "floors": {rate.name: {"auc": rate.auc, "gauc": rate.gauc} for rate in found.rates},
        "bootstrap_resamples": found.resamples,
    }


def _bar(console: Console) -> Progress:
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TimeElapsedColumn(),
        TimeLeft(),
        console=console,
        transient=True,
    )


@contextmanager
def _whole(folder: Path) -> Iterator[None]:
    """Makes the folder; a demo that ends early takes it away again."""
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        if made:
            shutil.rmtree(folder, ignore_errors=True)
        raise
