"""`mixpol demo`: accuracy, kernels and whole steps on this machine, in tables and pictures."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from mixpol_models.bench import (
    GateError,
    LadderRow,
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
from mixpol_models.experiments.variants import VARIANTS
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


@dataclass
class _Findings:
    """Results so far: tables, texts, numbers for metrics.json and times of the parts."""

    tables: list[ResultTable] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    numbers: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)


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
    found = _Findings()
    config = load_config("din", {"batch_size": size.batch_size})
    log = resolve(data, say=lambda line: console.print(line, style="dim", highlight=False, markup=False))
    if size.events is not None:
        log = some_users(log, size.events)
    examples = prepare(log, config)
    with _whole(folder):
        _say_setting(console, found, log, examples, config, quick)
        with _timed(found, "accuracy"):
            _accuracy(console, found, log, config, range(n_seeds), size.resamples, folder)
        if not skip_bench:
            with _timed(found, "ladder"):
                _ladder(console, found, size, folder)
            with _timed(found, "step"):
                _step(console, found, examples, config, size, folder)
        _save(console, found, log, config, folder)
    return folder


def _say_setting(
    console: Console, found: _Findings, log: InteractionLog, examples: Examples, config: TrainConfig, quick: bool
) -> None:
    lines = [
        log.describe(),
        f"{len(examples.train):,} training examples (impressions of the history are among them, each with the past "
        f"strictly before it), budget {config.budget} events, D = {config.embedding_dim}, "
        f"at most {count(config.epochs, 'epoch')}, batch {config.batch_size}.",
        "Histories hold every event strictly before the target, so those of the test rows reach into the test days.",
    ]
    if quick:
        lines.append("Quick form: too little data for conclusions.")
    found.texts += lines
    for line in lines[1:]:
        console.print(line, style="dim", highlight=False, markup=False)


def _accuracy(
    console: Console,
    found: _Findings,
    log: InteractionLog,
    config: TrainConfig,
    seeds: Sequence[int],
    resamples: int,
    folder: Path,
) -> None:
    with tempfile.TemporaryDirectory() as runs, _bar(console) as bar:
        task = bar.add_task("training", total=None)

        said = ""

        def tick(label: str, done: int, total: int) -> None:
            nonlocal said
            if not console.is_terminal and label != said:  # no bar there: a line a model
                said = label
                console.print(f"training {label}, {done / total:.0%} done", highlight=False)
            bar.update(task, description=f"training {label}", completed=done, total=total)

        comparison = compare(log, config, seeds, Path(runs), resamples=resamples, tick=tick)
    _show(console, found, accuracy_table(comparison), relative_table(comparison))
    plot_auc(comparison, folder / "auc.png", log.name)
    found.numbers["accuracy"] = _accuracy_numbers(comparison)


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
                "auc_minus_positive_only": _numbers(found.to_baseline.get(variant.name)),
                "auc_minus_floor": _numbers(found.to_rates[variant.name]),
            }
            for variant in VARIANTS
        },
        "floors": {rate.name: {"auc": rate.auc, "gauc": rate.gauc} for rate in found.rates},
        "bootstrap_resamples": found.resamples,
    }


def _numbers(value: Any) -> dict[str, float] | None:
    return None if value is None else asdict(value)


def _ladder(console: Console, found: _Findings, size: DemoSize, folder: Path) -> None:
    implementations = None if size.compiled else ("concat", "refactored", "fused", "mean pool")
    try:
        rows = _run_ladder(console, size, implementations)
    except GateError as error:
        _missing(console, found, "layer", f"a form failed the correctness check, so nothing was timed: {error}")
        return
    except RuntimeError as error:
        _missing(console, found, "layer", str(error))
        return
    console.print(ladder_table(rows), summary_table(rows))
    for sentence in sentences(rows):
        console.print(sentence, highlight=False)
    console.print()
    plot_ladder(rows, folder / "ladder.png")
    found.numbers["ladder"] = [asdict(row) for row in rows]
    found.texts.append("### The layer alone, up the ladder\n\n" + ladder_markdown(rows))


def _run_ladder(console: Console, size: DemoSize, implementations: Sequence[str] | None) -> list[LadderRow]:
    with _bar(console) as bar:
        task = bar.add_task("ladder", total=None)
        return run_ladder(
            size.lengths,
            rounds=size.rounds,
            seconds_per_form=size.seconds,
            implementations=implementations,
            progress=lambda line: _told(console, bar, task, f"ladder, {line}"),
        )


def _step(
    console: Console, found: _Findings, examples: Examples, config: TrainConfig, size: DemoSize, folder: Path
) -> None:
    sizes = {name: getattr(examples.log, name) for name in ("n_items", "n_users", "n_contexts")}
    # The newest examples have the longest histories, as in production.
    batch = next(iter(examples.test.loader(config.batch_size, shuffle=True, seed=config.seed)))
    try:
        with _bar(console) as bar:
            task = bar.add_task("whole step", total=None)
            rows = step_time(
                batch, sizes, config, rounds=size.rounds, seconds=size.seconds,
                progress=lambda line: _told(console, bar, task, line),
            )  # fmt: skip
    except StepMismatch as error:
        _missing(console, found, "step", f"the two layers disagree, so nothing was timed: {error}")
        return
    except ValueError as error:
        _missing(console, found, "step", str(error))
        return
    _show(console, found, step_table(rows, "cpu"))
    plot_step(rows, folder / "step.png")
    found.numbers["step"] = [asdict(row) for row in rows]


def _missing(console: Console, found: _Findings, what: str, why: str) -> None:
    text = f"No {what} times: {why}"
    console.print(text, style="bold red", highlight=False, markup=False)
    found.texts.append(text)


def _show(console: Console, found: _Findings, *tables: ResultTable) -> None:
    for table in tables:
        console.print(table.rich())
        found.texts.append(table.markdown())


def _save(console: Console, found: _Findings, log: InteractionLog, config: TrainConfig, folder: Path) -> None:
    facts = machine_facts()
    numbers = {
        "machine": facts,
        "data": {"name": log.name, "events": log.frame.height, "source": log.source},
        "config": config.model_dump(mode="json"),
        "seconds": {name: round(value, 1) for name, value in found.seconds.items()},
        **found.numbers,
    }
    write_atomically(folder / "metrics.json", json.dumps(numbers, indent=2) + "\n")
    times = ", ".join(f"{name} {value:.0f} s" for name, value in found.seconds.items())
    about = ", ".join(f"{name} {value}" for name, value in facts.items())
    report = ["# `mixpol demo`", *found.texts, f"Time: {times}.", f"Measured on: {about}."]
    write_atomically(folder / "results.md", "\n\n".join(report) + "\n")
    names = ", ".join(sorted(path.name for path in folder.iterdir() if path.is_file()))
    console.print(f"Time: {times}. Saved in {folder}/: {names}.", highlight=False, markup=False)


def _told(console: Console, bar: Progress, task: TaskID, line: str) -> None:
    bar.update(task, description=line)
    if not console.is_terminal:
        console.print(line, style="dim", highlight=False, markup=False)


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


@contextmanager
def _timed(found: _Findings, name: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    found.seconds[name] = time.perf_counter() - started
