"""The command `mixpol bench`. Heavy imports wait until it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mixpol_models.commands import plainly, wide_console
from mixpol_models.files import check_output_file, results_folder


def bench(
    quick: Annotated[
        bool, typer.Option("--quick", help="Four cases at two lengths, under three minutes; else every shape and form.")
    ] = False,
    only: Annotated[
        str | None,
        typer.Option(metavar="PART", help="Instead: the shapes with this in their name, as 'L=200', in every form."),
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Folder for bench.json, bench.md and pictures.")] = None,
    readme: Annotated[
        Path | None, typer.Option(help="Markdown file whose table between the bench markers is rewritten.")
    ] = None,
    compare: Annotated[
        str | None, typer.Option(metavar="REF", help="Instead: time the kernels against those of a git revision.")
    ] = None,
    tolerance: Annotated[
        float | None, typer.Option(help="Of --compare: by how much a case may be slower. Default: 0.05.", min=0.0)
    ] = None,
    rounds: Annotated[int | None, typer.Option(help="Of --compare: turns of either side. Default: 9.", min=2)] = None,
    seed: Annotated[int, typer.Option(help="Of inputs, weights and order.", min=0)] = 0,
    force: Annotated[bool, typer.Option("--force", help="Replace earlier results in --output.")] = False,
) -> None:
    """Measure the fused kernels against their PyTorch forms on this machine, each checked against float64 first.

    With --compare, exit status 1 if a case is slower by more than the tolerance, with its whole interval.
    """
    with plainly():
        if compare and (output or readme or force):
            raise ValueError("compare came with output, readme or force; expected it alone: it writes no report")
        if only is not None and (quick or compare):
            raise ValueError("only came with quick or compare, which have shapes of their own; expected it alone")
        for name, value in (("tolerance", tolerance), ("rounds", rounds)):
            if value is not None and not compare:
                raise ValueError(f"{name} was {value} without compare, whose it is; expected both: add --compare REF")
        if force and output is None:
            raise ValueError("force was given without output; expected both")
        if output is not None:
            results_folder(output, output, ("bench.json", "bench.md"), force)
        if readme is not None:
            check_output_file(readme, "readme")

        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        from mixpol_models.bench import compare as revisions
        from mixpol_models.bench import suite
        from mixpol_models.bench.report import changes_table, ladder_table, summary_table
        from mixpol_models.bench.shapes import LENGTHS, QUICK_LENGTHS, main_shapes

        if readme is not None:
            suite.readme_parts(readme)
        plan = None if compare else suite.quick() if quick else suite.full(only or "")
        tolerance = revisions.TOLERANCE if tolerance is None else tolerance
        console = wide_console()
        columns = (BarColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task("", total=1.0)

            def progress(line: str, done: float) -> None:
                bar.update(task, description=line, completed=done)
                # No bar there: a line a shape, or a turn.
                if not console.is_terminal and (compare or line.endswith(": inputs")):
                    console.print(f"{done:4.0%}  {line.removesuffix(': inputs')}", highlight=False)

            if compare:
                lengths = QUICK_LENGTHS if quick else LENGTHS
                turns = revisions.ROUNDS if rounds is None else rounds
                changes = revisions.compare(compare, main_shapes(lengths), turns, progress=progress, seed=seed)
            elif plan is not None:
                results = suite.run(plan, progress, seed)
        if compare:
            console.print(changes_table(changes, tolerance))
            if any(change.slower(tolerance) for change in changes):
                raise typer.Exit(1)
            return
        for _, rows in results.by_case():
            console.print(ladder_table(rows), summary_table(rows))
        for warning in suite.warnings(results):
            console.print(warning, style="yellow", highlight=False)
        if output:
            for path in suite.save(results, output):
                typer.echo(f"Saved {path}")
        if readme:
            suite.write_readme(results, readme)
            typer.echo(f"Rewrote the table in {readme}")
