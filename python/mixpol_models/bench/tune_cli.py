"""Progress bar and result table of `mixpol tune`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from mixpol_kernels.ops.triton.devices import TUNED
from mixpol_models.bench.gpu_problems import Size
from mixpol_models.bench.tune import Found, run
from mixpol_models.commands import wide_console


def run_tune(output: Path, only: str, users: int, length: int, workers: int) -> None:
    """`tune.run` with a progress bar, and a table of what it found."""
    console = wide_console(120)
    columns = (BarColumn(), TimeElapsedColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=1.0)
        said = ""

        def progress(line: str, done: float) -> None:
            nonlocal said
            bar.update(task, description=line, completed=done)
            if not console.is_terminal and line != said:  # no bar there: a line an entry
                said = line
                console.print(f"{done:4.0%}  {line}", highlight=False)

        found, there = run(
            output,
            torch.device("cuda", torch.cuda.current_device()),
            Size(users, length),
            only,
            progress,
            workers,
        )
    if there:
        console.print(f"{there} were in {output}/ before; take another folder, or delete its files, to tune them again")
    if found:
        console.print(table(found))
    console.print(f"To use them: export {TUNED}={output.resolve()}", soft_wrap=True)


def table(found: Sequence[Found]) -> Table:
    """One row an entry."""
    shown = Table("kernel", title="Launch configurations", title_justify="left")
    for column in ("before, ms", "best, ms", "×", "tile", "warps", "stages", "flush", "refused"):
        shown.add_column(column, justify="right")
    for one in found:
        times = [f"{t:.3f}" if t else "–" for t in (one.shipped_ms, one.best_ms)]
        ratio = f"{one.shipped_ms / one.best_ms:.2f}" if one.shipped_ms and one.best_ms else "–"
        best = one.best
        values = ["–"] * 4 if best is None else [str(v) for v in (best.tile, best.warps, best.stages, best.flush)]
        refused = f"{one.refused} of {one.tried}"
        shown.add_row(f"{one.entry.op} {one.entry.name}", *times, ratio, *values, refused)
        if best is None:
            shown.add_row(f"  {one.reason}")
    return shown
