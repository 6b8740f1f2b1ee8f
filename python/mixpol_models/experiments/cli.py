"""`mixpol experiment`: grids of training runs, their reports and analyses."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mixpol_models.commands import plainly
from mixpol_models.files import check_output_file, write_atomically

app = typer.Typer(help="Grids of runs: train, report, analyse.", no_args_is_help=True)

_STORE = "Folder that `mixpol experiment run` wrote."


@app.command()
def run(
    config: Annotated[str, typer.Argument(help="YAML file, or the name of a shipped experiment.")],
    workers: Annotated[int | None, typer.Option(help="Processes. Default: one per core; 0 is this one.")] = None,
    output: Annotated[
        Path | None, typer.Option(help="Folder of the results. Default: mixpol_experiments/NAME.")
    ] = None,
    data: Annotated[str | None, typer.Option(help="Instead of the configuration's data.")] = None,
    only: Annotated[
        list[str] | None, typer.Option(help="Part of the grid: AXIS=VALUE, more than once if need be.")
    ] = None,
) -> None:
    """Train what of a grid is not in its store yet. Can be stopped and started again at any time."""
    with plainly():
        from mixpol_models.experiments.grid import load_experiment, run_experiment

        experiment = load_experiment(config)
        if data is not None:
            experiment = experiment.with_data(data)
        folder = output or Path("mixpol_experiments") / experiment.name
        part = experiment.only(_choices(only)) if only else None
        done = run_experiment(experiment, folder, workers=workers, only=part)
        typer.echo(
            f"{done.trained} runs trained, {done.failed} failed, {done.skipped} were there, {done.left} left. "
            f"Results in {folder}/; `mixpol experiment report {folder}` tells them."
        )
        if done.left or done.failed:
            raise typer.Exit(130 if done.left else 1)


@app.command()
def report(
    store: Annotated[Path, typer.Argument(help=_STORE)],
    output: Annotated[Path | None, typer.Option(help="Folder of the report. Default: STORE/report.")] = None,
) -> None:
    """Tables and pictures of a store, as Markdown and as one HTML file."""
    with plainly():
        from mixpol_models.experiments.report import write_report

        for file in write_report(store, output or store / "report"):
            typer.echo(f"Saved {file}")


@app.command()
def analyse(
    name: Annotated[str, typer.Argument(help="negative-share, length, attention, activity, cold-items or ablations.")],
    store: Annotated[Path, typer.Argument(help=_STORE)],
    output: Annotated[Path | None, typer.Option(help="Folder. Default: STORE/report.")] = None,
) -> None:
    """One question to a store, answered by a table and a picture."""
    with plainly():
        from mixpol_models.experiments.analyses import analyse as answer

        for file in answer(name, store, output or store / "report"):
            typer.echo(f"Saved {file}")


@app.command()
def throughput(
    config: Annotated[str, typer.Argument(help="YAML file, or the name of a shipped experiment.")] = "kuairand_pure",
    data: Annotated[str | None, typer.Option(help="Instead of the configuration's data.")] = None,
    only: Annotated[list[str] | None, typer.Option(help="Part of the grid: AXIS=VALUE.")] = None,
    output: Annotated[Path | None, typer.Option(help="Markdown file to write.")] = None,
    threads: Annotated[int | None, typer.Option(help="Of torch. Default: its own choice.")] = None,
) -> None:
    """Time training steps of an experiment's backbones, fused against the reference."""
    with plainly():
        if output is not None:
            check_output_file(output)
        if threads is not None and threads < 1:
            raise ValueError(f"threads is {threads}, expected at least 1: leave it out for torch's own choice")
        import torch

        from mixpol_models.experiments.grid import load_experiment
        from mixpol_models.experiments.grid.source import experiment_log
        from mixpol_models.experiments.throughput import throughput as measure
        from mixpol_models.experiments.throughput import throughput_table

        if threads is not None:
            torch.set_num_threads(threads)
        experiment = load_experiment(config)
        if data is not None:
            experiment = experiment.with_data(data)
        part = experiment.only(_choices(only)) if only else experiment
        log = experiment_log(part, say=lambda line: typer.echo(line, err=True))
        table = throughput_table(measure(log, part, progress=lambda line: typer.echo(line, err=True))).markdown()
        typer.echo(table)
        if output is not None:
            write_atomically(output, table)


@app.command("list")
def list_experiments() -> None:
    """Names of the experiments that come with the package."""
    with plainly():
        from mixpol_models.experiments.grid.config import load_experiment, shipped_experiments

        for name in shipped_experiments():
            experiment = load_experiment(name)
            size = " × ".join(f"{len(values)} {axis}" for axis, values in experiment.grid.items())
            typer.echo(f"{name}: {size}")


def _choices(only: list[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for text in only:
        axis, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"--only is {text!r}, expected AXIS=VALUE: e.g. --only backbone=din")
        found.setdefault(axis.strip(), []).append(value.strip())
    return found
