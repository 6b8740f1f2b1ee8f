"""The ladder as tables, as Markdown and as a picture. `machine_facts` says what it was measured on."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table

from mixpol_models.bench.headline import headlines, name, noise, sentences
from mixpol_models.bench.ladder import LadderRow
from mixpol_models.bench.machine import machine_facts
from mixpol_models.bench.plot import plot_ladder

__all__ = [
    "caption",
    "headline_table",
    "ladder_markdown",
    "ladder_table",
    "machine_facts",
    "noise",
    "plot_ladder",
    "sentences",
]


def ladder_table(rows: Sequence[LadderRow]) -> Table:
    """Every rung at every length, 80 columns wide, one section a length."""
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
        style = "bold green" if row.rung == "fused" else "dim" if row.rung == "mean pool" else ""
        numbers = (
            row.forward_ms,
            row.total_ms,
            row.forward_ratio,
            row.total_ratio,
            row.saved_mib,
            row.peak_mib,
        )
        table.add_row(name(row), *map(_number, numbers), _seconds(row), style=style)
    return table


def headline_table(rows: Sequence[LadderRow]) -> Table:
    """One line a length: fused against concat eager and against the strongest baseline."""
    table = _table(
        ["", "f+b\n×concat", "f+b\n×best", "fwd\n×concat", "kept\n×concat", "best is"],
        "How many times the fused form's cost the others have; above 1, fused is better.\n"
        "best: the strongest baseline, the fastest refactored form.",
    )
    table.columns[-1].justify = "left"
    for line in headlines(rows):
        ratios = (line.total_concat, line.total_strongest, line.forward_concat, line.saved_concat)
        table.add_row(f"L = {line.length}", *map(_number, ratios), line.strongest or "–")
    return table


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


def ladder_markdown(rows: Sequence[LadderRow]) -> str:
    """The same as a Markdown table, under a line that says how it was measured, over the ratios in words."""
    rule = ["---:", "---", *["---:"] * (len(_COLUMNS) - 2)]
    lines = [f"{caption(rows)}.", "", _line(_COLUMNS), _line(rule)]
    for row in rows:
        low, high = row.total_ratio_low, row.total_ratio_high
        cells = [
            str(row.length),
            name(row),
            *map(_number, (row.forward_ms, row.total_ms, row.forward_ratio, row.total_ratio)),
            "–" if low is None or high is None else f"{_number(low)} to {_number(high)}",
            *map(_number, (row.saved_mib, row.peak_mib)),
            _seconds(row),
        ]
        lines.append(_line([f"**{cell}**" for cell in cells] if row.rung == "fused" else cells))
    said = [*sentences(rows), *filter(None, [noise(rows)])]
    if said:
        lines += ["", *(f"- {sentence}" for sentence in said)]
    return "\n".join(lines) + "\n"


def caption(rows: Sequence[LadderRow]) -> str:
    """Shape, law of the lengths, protocol."""
    if not rows:
        return "No rows"
    row = rows[0]
    units = ", ".join(map(str, row.hidden))
    rounds = sorted({row.rounds for row in rows})
    count = str(rounds[0]) if len(rounds) == 1 else f"{rounds[0]} to {rounds[-1]}"
    return (
        f"DIN activation unit, B = {row.batch}, D = {row.width}, units [{units}], {row.activation}, float32, "
        f"lengths uniform in 1..L, {row.threads} threads; medians over {count} interleaved rounds; every "
        "form checked against float64 in this run"
    )


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


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _number(value: float | None) -> str:
    """Three digits, none behind the point from 100 on."""
    if value is None:
        return "–"
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _seconds(row: LadderRow) -> str:
    return f"{row.compile_s:.1f}" if row.compile_s else "–"
