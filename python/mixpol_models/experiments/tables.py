"""The demo's tables, once for the terminal and once for Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from mixpol_models.experiments.compare import Comparison, Spread
from mixpol_models.experiments.step_time import StepRow
from mixpol_models.experiments.variants import BASELINE, VARIANTS
from mixpol_models.training import TrainResult

NONE = "–"


@dataclass(frozen=True)
class ResultTable:
    """A titled table of text with notes below it.

    Attributes:
        title: what it shows.
        columns: headers; the first column is set left, the others right.
        rows: cells.
        notes: what the numbers mean, one sentence or formula each.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()

    def rich(self) -> RenderableType:
        """For the terminal."""
        table = Table(title=self.title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
        for i, column in enumerate(self.columns):
            table.add_column(column, justify="left" if i == 0 else "right", overflow="fold")
        for row in self.rows:
            table.add_row(*(Text(cell) for cell in row))
        return Group(table, *(Text(note, style="dim") for note in self.notes), Text(""))

    def markdown(self) -> str:
        """For a file."""
        lines = [f"### {self.title}", ""]
        lines += [_line(self.columns), _line(["---", *["---:"] * (len(self.columns) - 1)])]
        lines += [_line(row) for row in self.rows]
        return "\n".join([*lines, "", *(f"{note}  " for note in self.notes)]).rstrip() + "\n"


def accuracy_table(found: Comparison) -> ResultTable:
    """AUC, gAUC and logloss per variant, with the rate baselines below."""
    rows = []
    for variant in VARIANTS:
        runs = found.runs[variant]
        rows.append(
            (
                variant.name,
                _spread(found.metric(variant, "auc")),
                _spread(found.metric(variant, "gauc")),
                _spread(Spread.of([metrics.gauc for metrics in found.frozen[variant]])),
                _spread(found.metric(variant, "logloss")),
                f"{Spread.of([run.seconds for run in runs]).mean:.0f}",
            )
        )
    rows += [(f"rates: {f.name}", f"{f.auc:.4f}", NONE, f"{f.gauc:.4f}", NONE, NONE) for f in found.rates]
    seeds = len(found.seeds)
    spread = "mean ± half of the range over" if seeds > 1 else "from"
    notes = [
        f"{found.test_rows:,} test rows of {found.test_users:,} users; {spread} {count(seeds, 'seed')}; "
        "all models have the same budget, settings and context feature.",
        "gAUC: AUC within each user, weighted by impressions; users with one class are left out. Histories go on "
        "during the test days: within a user, a row that follows positives is more often negative (as in drawing "
        "without replacement), so live gAUC sinks for a model that follows outcomes. frozen: the same models, with "
        "histories that stop where the test days begin.",
        "rates: product of smoothed rates of the history and training days. A model below it has learned nothing from "
        "sequences.",
    ]
    columns = ("model", "AUC", "gAUC", "gAUC frozen", "logloss", "fit, s")
    return ResultTable("DIN four ways: the test rows", columns, tuple(rows), tuple(notes))


def relative_table(found: Comparison) -> ResultTable:
    """Both conventions of relative AUC, and the bootstrap intervals."""
    rows = []
    for variant in VARIANTS:
        impr, ratio = found.relative(variant)
        gap, to_rates = found.to_baseline.get(variant.name), found.to_rates[variant.name]
        percent = (NONE, NONE) if variant == BASELINE else (_spread(impr, 2, "+"), _spread(ratio, 2, "+"))
        rows.append((variant.name, *percent, gap.text if gap else NONE, to_rates.text))
    columns = ("model", "RelaImpr, %", "ratio, %", "AUC − positive-only", "AUC − rates")
    seeds = " averaged over seeds" if len(found.seeds) > 1 else ""
    notes = (
        "RelaImpr = ((AUC − 0.5) / (AUC₀ − 0.5) − 1) · 100 %, ratio = (AUC / AUC₀ − 1) · 100 %; "
        f"AUC₀: {BASELINE.name}.",
        f"[95 % interval]: paired bootstrap over users, {found.resamples} resamples, AUCs{seeds}.",
        f"rates: {found.rates[-1].name}. An interval that holds 0 is no result.",
    )
    return ResultTable("The same, relative", columns, tuple(rows), notes)


def step_table(rows: Sequence[StepRow], backend: str) -> ResultTable:
    """A whole training step, eager over fused."""
    cells = tuple(
        (
            f"{row.fusion}, {'sparse' if row.sparse_tables else 'dense'} tables",
            f"{row.eager_ms:.1f}",
            f"{row.fused_ms:.1f}",
            f"{row.ratio:.2f}",
            f"{row.ratio_low:.2f} to {row.ratio_high:.2f}",
        )
        for row in rows
    )
    first = rows[0]
    notes = (
        f"Forward, loss, backward, clipping and optimizer; {first.batch} examples, {first.events:,} history events, "
        f"padded to {first.length}.",
        f"eager: plain PyTorch, padded, 4 D wide concat; fused: backend {backend!r}; checked in this run: equal "
        "loss to 1e-4, every gradient to 1e-3.",
        f"Medians over interleaved rounds ({min(r.rounds for r in rows)} or more), {count(first.threads, 'thread')}; "
        "above 1 fused is faster.",
    )
    columns = ("fusion, tables", "eager, ms", "fused, ms", "eager / fused", "quartiles")
    return ResultTable("One whole training step of DIN", columns, cells, notes)


def metrics_table(result: TrainResult) -> ResultTable:
    """The outcome of one run."""
    rows = tuple(
        (name, f"{m.auc:.4f}", f"{m.gauc:.4f}", f"{m.logloss:.4f}", f"{m.examples:,}", f"{100 * m.positives:.1f}")
        for name, m in (("validation", result.valid), ("test", result.test))
        if m is not None
    )
    choice = "the best" if result.valid else "no validation rows, the last"
    columns = ("rows", "AUC", "gAUC", "logloss", "examples", "positive, %")
    notes = (
        f"{result.train_examples:,} training examples, {choice} of {count(result.epochs, 'epoch')}: "
        f"{result.best_epoch}, {result.seconds:.0f} s.",
    )
    return ResultTable(result.config.name, columns, rows, notes)


def count(number: int, thing: str) -> str:
    """ "1 seed", "2 seeds"."""
    return f"{number:,} {thing}" + "s" * (number != 1)


def _spread(value: Spread, digits: int = 4, sign: str = "") -> str:
    text = f"{value.mean:{sign}.{digits}f}"
    return text if value.half_range == 0 else f"{text} ±{value.half_range:.{digits}f}".replace("±0.", "±.")


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
