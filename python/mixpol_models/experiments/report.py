"""`mixpol experiment report`: a store told in tables and pictures, as Markdown and as one HTML file."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from mixpol_models.experiments.grid.runner import expected_keys, read_experiment
from mixpol_models.experiments.grid.store import ResultStore, of_keys
from mixpol_models.experiments.report_plots import plot_budget
from mixpol_models.experiments.rows import Cell, Report, cells
from mixpol_models.experiments.tables import NONE, ResultTable, count
from mixpol_models.experiments.variants import BASELINE
from mixpol_models.files import check_output_folder, write_atomically

_COLUMNS = (
    *("model", "AUC", "AUC per tab", "gAUC", "gAUC frozen", "logloss", "RelaImpr, %", "ratio, %"),
    *("AUC − positive-only", "p, seeds", "AUC − rates", "s / run"),
)
_NOTES = (
    "AUC per tab: within each context, weighted by rows (no difference where the log has one context). gAUC: within "
    "each user, weighted by impressions; frozen: histories that stop where the test days begin, so that a row's "
    "history does not hold the outcomes of the same day.",
    "± half of the range over seeds. RelaImpr = ((AUC − 0.5) / (AUC₀ − 0.5) − 1) · 100 %, ratio = (AUC / AUC₀ − 1) · "
    f"100 %; AUC₀: {BASELINE.name} of the same backbone, budget and seed.",
    "[95 % interval]: paired bootstrap over users, AUCs averaged over seeds; an interval that holds 0 is no result.",
    "p, seeds: paired Student t-test over seeds, two-sided. all backbones: the mean over backbones, its p from a "
    "sign-flip permutation test over the pairs of backbone and seed.",
    "rates: product of smoothed rates of the history and training days, the hardest of them for the difference. A "
    "model below it has learned nothing from sequences.",
)


def write_report(store: Path, output: Path) -> list[Path]:
    """Writes report.md, report.html (which needs no other file) and one picture per budget.

    Args:
        store: folder of a `ResultStore`; its grid need not be finished.
        output: folder, made if it is not there.

    Returns:
        The two reports.

    Raises:
        ValueError: no store, or no finished run in it.
    """
    check_output_folder(output)
    report = read_report(store)
    output.mkdir(parents=True, exist_ok=True)
    title = f"Experiment {report.experiment.name}"
    blocks: list[tuple[str, Any]] = [("text", line) for line in _about(report)]
    for budget in sorted(report.runs["budget"].unique()):
        found = cells(report, report.runs.filter(pl.col("budget") == budget))
        picture = output / f"budget_{budget}.png"
        plot_budget(found, report, picture, f"{report.runs['data'][0]}, budget {budget}")
        blocks += [("table", _table(report, found, budget)), ("picture", picture)]
    if report.failed.height:
        blocks.append(("table", _failures(report.failed)))
    markdown, page = output / "report.md", output / "report.html"
    write_atomically(markdown, _render(title, blocks, _MARKDOWN))
    write_atomically(page, _PAGE.format(title=html.escape(title), body=_render(title, blocks, _HTML)))
    return [markdown, page]


def read_report(store: Path) -> Report:
    """The rows of a store's own grid.

    Raises:
        ValueError: no store, or no finished run in it.
    """
    experiment, mark = read_experiment(store)
    frame = ResultStore.read(store)
    keys = expected_keys(experiment, mark)
    runs = of_keys(frame, keys)
    if runs.is_empty():
        raise ValueError(f"store is {str(store)!r}, which holds no finished run: see `mixpol experiment run`")
    failed = frame.filter(pl.col("key").is_in(keys) & (pl.col("status") == "failed"))
    rates = frame.filter((pl.col("kind") == "floor") & (pl.col("fingerprint") == mark))
    return Report(experiment, runs, rates, failed, len(keys))


def _about(report: Report) -> list[str]:
    runs = report.runs
    first = runs.row(0, named=True)
    versions = ", ".join(f"{name} {version}" for name, version in json.loads(first["versions"]).items())
    missing = report.expected - runs.height
    state = "The grid is complete" if not missing else f"**{missing} of {report.expected} runs are missing**"
    lines = [
        f"{state}: {runs.height} of {report.expected} runs finished, {report.failed.height} failed.",
        f"{first['data']}: {first['train_examples']:,} training and {first['test_examples']:,} test examples of "
        f"{first['test_users']:,} test users. Kept of a run: {', '.join(sorted(runs['kept'].unique()))}. "
        f"{count(runs['seed'].n_unique(), 'seed')}, {report.experiment.resamples} resamples.",
        f"{runs['seconds'].sum() / 60:.0f} min of training in all, {first['threads']} thread a run; {versions}.",
    ]
    days = report.experiment.days
    if days is not None:
        lines.insert(2, f"Days: train {days.train}, validation {days.valid or 'none'}, test {days.test}.")
    return lines


def _table(report: Report, found: Sequence[Cell], budget: int) -> ResultTable:
    rows = [
        (
            cell.label,
            _spread(cell.mean("auc"), cell.half_range("auc")),
            *(_number(cell.mean(name)) for name in ("tab_auc", "gauc", "gauc_frozen", "logloss")),
            *(_number(value, "+.2f") for value in cell.relative or (None, None)),
            cell.gap.text if cell.gap else NONE,
            _number(cell.gap.p if cell.gap else None, ".3f"),
            cell.to_rates.text if cell.to_rates else NONE,
            _number(cell.mean("seconds"), ".0f"),
        )
        for cell in found
    ]
    rows += [
        (f"rates: {row['variant']}", *(_number(row[name]) for name in ("auc", "tab_auc", "gauc")), *[NONE] * 8)
        for row in report.rates.iter_rows(named=True)
    ]
    return ResultTable(f"Budget {budget}", _COLUMNS, tuple(rows), _NOTES)


def _failures(failed: pl.DataFrame) -> ResultTable:
    rows = tuple(
        (
            f"{row['backbone']}, {row['variant']}, budget {row['budget']}, seed {row['seed']}",
            row["error"].split("\n")[-2] if row["error"].count("\n") else row["error"],
        )
        for row in failed.iter_rows(named=True)
    )
    return ResultTable("Failed runs", ("run", "error"), rows, ("They are tried again by the next run.",))


def _number(value: float | None, form: str = ".4f") -> str:
    return NONE if value is None or value != value else f"{value:{form}}"


def _spread(mean: float | None, half_range: float) -> str:
    return _number(mean) + (f" ±{half_range:.4f}".replace("±0.", "±.") if half_range else "")


_SHORT = 30  # a cell of the tables of runs; errors are longer
Render = dict[str, Callable[[Any], str]]


def _render(title: str, blocks: Sequence[tuple[str, Any]], render: Render) -> str:
    return "\n".join([render["title"](title), *(render[kind](value) for kind, value in blocks)])


def _html_table(table: ResultTable) -> str:
    def line(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{_lines(cell, tag)}</{tag}>" for cell in cells) + "</tr>"

    notes = "".join(f"<p class='note'>{html.escape(note)}</p>" for note in table.notes)
    body = "".join(line(row, "td") for row in table.rows)
    rows = f"<table>{line(table.columns, 'th')}{body}</table>"
    return f"<h2>{html.escape(table.title)}</h2><div class='table'>{rows}</div>{notes}"


def _lines(cell: str, tag: str) -> str:
    """A cell that breaks before an interval only; headings and long texts break anywhere."""
    value, bracket, interval = cell.partition(" [")
    parts = [
        part if tag == "th" or len(part) > _SHORT else part.replace(" ", "\N{NO-BREAK SPACE}")
        for part in (value, interval)
    ]
    return html.escape(parts[0] + bracket + parts[1])


def _html_picture(file: Path) -> str:
    return f"<img alt='{file.stem}' src='data:image/png;base64,{base64.b64encode(file.read_bytes()).decode()}'>"


_MARKDOWN: Render = {
    "title": lambda text: f"# {text}\n",
    "text": lambda text: f"{text}\n",
    "table": ResultTable.markdown,
    "picture": lambda file: f"![{file.stem}]({file.name})\n",
}
_HTML: Render = {
    "title": lambda text: f"<h1>{html.escape(text)}</h1>",
    "text": lambda text: f"<p>{html.escape(text).replace('**', '')}</p>",
    "table": _html_table,
    "picture": _html_picture,
}
_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 1500px; margin: 2em auto; padding: 0 1em; color: #222; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; }}
.table {{ overflow-x: auto; }}
th, td {{ padding: .25em .5em; text-align: right; vertical-align: bottom; border-bottom: 1px solid #ddd; }}
th:first-child, td:first-child {{ text-align: left; }}
@media (max-width: 1500px) {{ table {{ font-size: 13px; }} }}
.note {{ color: #666; font-size: 13px; margin: .3em 0; max-width: 100ch; }}
img {{ max-width: 100%; }}
</style>
<body>
{body}
</body></html>
"""
