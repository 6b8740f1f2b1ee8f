"""`mixpol pnfrec`: PNFRec and its relatives, trained, compared and timed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from mixpol_models.commands import plainly, wide_console

_CONFIG = "YAML file, or the name of a shipped one: ml1m_cpu, ml1m_published."
_DATA = "The data's file or folder. Default: ml_1m in MIXPOL_DATA."


app = typer.Typer(help="PNFRec (arXiv 2508.14786): next-item models of both polarities.", no_args_is_help=True)


@app.command()
def run(
    config: Annotated[str, typer.Argument(help=_CONFIG)],
    models: Annotated[str, typer.Option(help="Names with commas between, or 'all'.")] = "all",
    seeds: Annotated[str, typer.Option(help="Numbers with commas between.")] = "0",
    output: Annotated[Path, typer.Option(help="Folder of the results; what it has is not run again.")] = Path(
        "pnfrec_results"
    ),
    data: Annotated[str | None, typer.Option(help=_DATA)] = None,
) -> None:
    """Train models, seed by seed, and keep the ranks of the test users."""
    with plainly():
        from mixpol_models.pnfrec.comparison import run_all
        from mixpol_models.pnfrec.config import load_config
        from mixpol_models.pnfrec.variants import VARIANTS

        names = list(VARIANTS) if models == "all" else _listed(models)
        run_all(load_config(config, data=data), names, _numbers(seeds), output, typer.echo)
        typer.echo(f"Results are in {output}/; `mixpol pnfrec report {output}` shows them")


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="Folder of the results.")],
    output: Annotated[Path | None, typer.Option(help="Markdown file. Default: report.md in the folder.")] = None,
    resamples: Annotated[int, typer.Option(help="Of the bootstrap over users.", min=20)] = 2000,
) -> None:
    """Show the results beside the published ones, and write them as Markdown."""
    with plainly():
        from mixpol_models.pnfrec.report import write_report

        path, tables = write_report(folder, output, resamples)
        console = wide_console(240)
        for table in tables:
            console.print(table.rich())
        typer.echo(f"Saved as {path}")


@app.command()
def speed(
    config: Annotated[str, typer.Argument(help=_CONFIG)],
    model: Annotated[str, typer.Option(help="A model over positives.")] = "pnfrec",
    steps: Annotated[int | None, typer.Option(help="Of an epoch. Default: all.", min=1)] = None,
    rounds: Annotated[int, typer.Option(help="Interleaved rounds.", min=1)] = 3,
    clock: Annotated[Literal["wall", "cpu"], typer.Option(help="CPU time where the machine is busy.")] = "wall",
    data: Annotated[str | None, typer.Option(help=_DATA)] = None,
) -> None:
    """Time training steps against the same model with padded batches and full logits."""
    with plainly():
        from mixpol_models.pnfrec.config import load_config
        from mixpol_models.pnfrec.sources import load_split
        from mixpol_models.pnfrec.speed import compare_speed

        settings = load_config(config, data=data)
        split = load_split(settings.dataset, settings.data)
        typer.echo(compare_speed(split, settings, model, steps=steps, rounds=rounds, clock=clock).describe())


@app.command()
def memory(
    items: Annotated[int, typer.Option(help="Catalogue.", min=1)] = 1_000_000,
    tokens: Annotated[int, typer.Option(help="Positions of the batch.", min=1)] = 3200,
    width: Annotated[int, typer.Option(help="Of the states.", min=1)] = 64,
) -> None:
    """Measure the memory of the cross entropy over a catalogue, forward and backward."""
    with plainly():
        from mixpol_models.pnfrec.speed import head_memory

        found = head_memory(items, tokens, width)
        peak = "not known here" if found.peak is None else f"{found.peak:,.0f} MiB"
        typer.echo(
            f"{items:,} items, {tokens:,} tokens, width {width}: peak {peak}, of which gradients "
            f"{found.gradients:,.0f} MiB and a chunk of logits {found.chunk:,.0f} MiB; full logits alone would be "
            f"{found.full:,.0f} MiB"
        )


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in _listed(text)]
    except ValueError:
        raise ValueError(f"seeds is {text!r}, expected whole numbers with commas between, as 0,1,2") from None
