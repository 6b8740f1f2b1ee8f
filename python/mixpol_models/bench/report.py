"""Tables of a ladder, its summary and a comparison, for the terminal and in Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table

from mixpol_models.bench.case import CONTROL
from mixpol_models.bench.compare import Change
from mixpol_models.bench.ladder import LadderRow
from mixpol_models.bench.roofline import Peaks
from mixpol_models.bench.summary import caption, name, noise, sentences, summarize


def ladder_table(rows: Sequence[LadderRow]) -> Table:
    """Every implementation at every length, 80 columns wide, one section a length."""
    table = _table(
        ["", "fwd\nms", "f+b\nms", "fwd\n×fused", "f+b\n×fused", "kept\nMiB", "peak\nMiB", "comp.\ns"],
        f"{caption(rows)}. ×fused: how many times the fused form's time; above 1, fused is faster.",
    )
    table.columns[0].min_width = 30
    length = None
    for row in rows:
        if row.length != length:
            table.add_section()
            table.add_row(f"L = {row.length}", style="bold")
            length = row.length
        style = "bold green" if row.implementation == "fused" else "dim" if row.implementation == CONTROL else ""
        numbers = (
            row.forward_ms,
            row.total_ms,
            row.forward_ratio,
            row.total_ratio,
            row.saved_mib,
            row.peak_mib,
        )
        table.add_row(name(row), *map(number, numbers), _seconds(row), style=style)
    return table


def summary_table(rows: Sequence[LadderRow]) -> Table:
    """One line a length: fused against the eager form and against the strongest baseline."""
    table = _table(
        ["", "f+b\n×eager", "f+b\n×best", "fwd\n×eager", "kept\n×eager", "best is"],
        "How many times the fused form's cost the others have; above 1, fused is better.\n"
        "best: the strongest baseline, the fastest of the other forms.",
    )
    table.columns[-1].justify = "left"
    for line in summarize(rows):
        ratios = (line.total_eager, line.total_strongest, line.forward_eager, line.saved_eager)
        table.add_row(f"L = {line.length}", *map(number, ratios), line.strongest or "–")
    return table


def changes_table(changes: Sequence[Change], tolerance: float) -> Table:
    """One line a shape and direction of a comparison of two revisions."""
    table = _table(
        ["", "before\nms", "now\nms", "ratio", "95 %", ""],
        f"Time now over time before; slower: above {1 + tolerance:.2f} with the whole interval.",
    )
    for change in changes:
        slower = change.slower(tolerance)
        table.add_row(
            f"{change.name}, {change.direction}",
            *map(number, (change.before_ms, change.now_ms)),
            f"{change.ratio:.3f}",
            f"{change.low:.3f} to {change.high:.3f}",
            "slower" if slower else "",
            style="bold red" if slower else "",
        )
    return table


_ROOFLINE = ("tokens/s", "GFLOP/s", "GB/s", "of the roof")
_COLUMNS = (
    "L",
    "form",
    "forward, ms",
    "fwd+bwd, ms",
    "forward, × fused",
    "fwd+bwd, × fused",
    "quartiles",
    "kept, MiB",
    "peak, MiB",
    "compile, s",
)


def ladder_markdown(rows: Sequence[LadderRow], peaks: Peaks | None = None) -> str:
    """`ladder_table` as Markdown, below a caption and above the ratios in words.

    With `peaks` there are rates of the minimal work too, and the share of what the machine allows for it.
    """
    columns = [*_COLUMNS, *(_ROOFLINE if peaks else ())]
    rule = ["---:", "---", *["---:"] * (len(columns) - 2)]
    lines = [f"{caption(rows)}.", "", markdown_row(columns), markdown_row(rule)]
    for row in rows:
        low, high = row.total_ratio_low, row.total_ratio_high
        cells = [
            str(row.length),
            name(row),
            *map(number, (row.forward_ms, row.total_ms, row.forward_ratio, row.total_ratio)),
            "–" if low is None or high is None else f"{number(low)} to {number(high)}",
            *map(number, (row.saved_mib, row.peak_mib)),
            _seconds(row),
        ]
        if peaks:
            cells += _roofline(row, peaks)
        lines.append(markdown_row([f"**{cell}**" for cell in cells] if row.implementation == "fused" else cells))
    said = [*sentences(rows), *filter(None, [noise(rows)])]
    if said:
        lines += ["", *(f"- {sentence}" for sentence in said)]
    return "\n".join(lines) + "\n"


def _roofline(row: LadderRow, peaks: Peaks) -> list[str]:
    rate = f"{1e-6 * row.tokens_per_s:.2f} M"
    if row.implementation == CONTROL:  # not the same function: it does not do the op's work
        return [rate, "–", "–", "–"]
    share = peaks.share(row.total_work, row.total_ms)
    return [rate, number(row.gflops), number(row.gbytes), f"{100 * share:.0f} %"]


def _table(columns: Sequence[str], title: str) -> Table:
    """Names on the left, numbers on the right."""
    table = Table(
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        title=title,
        title_justify="left",
        title_style="",
    )
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left", no_wrap=True)
    return table


def markdown_row(cells: Sequence[str]) -> str:
    """A line of a Markdown table."""
    return "| " + " | ".join(cells) + " |"


def number(value: float | None) -> str:
    """Three digits, none behind the point from 100 on."""
    if value is None:
        return "–"
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _seconds(row: LadderRow) -> str:
    return f"{row.compile_s:.1f}" if row.compile_s else "–"
