"""Pictures of a report and of the analyses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mixpol_models.bench.figure import new_figure, save_figure
from mixpol_models.experiments.plots import COLORS
from mixpol_models.experiments.rows import ALL, Cell, Report
from mixpol_models.experiments.variants import BASELINE

_ACROSS = 5  # panels of a row at most: the paper's backbones
_MARKERS, _PLAIN = "os^Dv<>P", ("#12805c", "#5a7fb5", "#d9824a", "#8a8a8a", "#7b5ea7")


@dataclass(frozen=True)
class Series:
    """One line of a picture.

    Attributes:
        label: in the legend.
        variant: gives the color; None takes the next free one.
        x: numbers or names.
        y, low, high: as long as `x`.
        panel: what it is drawn with.
    """

    label: str
    variant: str | None
    x: Sequence[float] | Sequence[str]
    y: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]
    panel: str = ""


def plot_series(series: Sequence[Series], path: Path, title: str, x_label: str, y_label: str) -> None:
    """Writes a PNG: points with intervals, joined by lines; 1100 pixels wide, more with more than two panels."""
    panels = list(dict.fromkeys(one.panel for one in series))
    columns = min(len(panels), _ACROSS)
    rows = -(-len(panels) // columns)
    size = (max(11.0, 4.2 * columns), 5.5 if rows == 1 else 3.6 * rows)
    figure, every = new_figure(*size, columns, rows, share_y=True)
    for axes, panel in zip(every, panels, strict=False):
        _draw_panel(axes, [one for one in series if one.panel == panel], "minus" in y_label)
        axes.set_title(panel, loc="left", fontsize=11)
        if every[0] is axes:
            handles, labels = axes.get_legend_handles_labels()
    for axes in every[len(panels) :]:
        axes.set_visible(False)
    figure.supxlabel(x_label, fontsize=12)
    figure.supylabel(y_label, fontsize=12)
    figure.legend(handles, labels, fontsize=9, loc="outside right center", frameon=False)
    save_figure(figure, path, title)


def _draw_panel(axes: Any, series: Sequence[Series], zero: bool) -> None:
    names: list[str] = list(dict.fromkeys(x for one in series for x in one.x if isinstance(x, str)))
    seen: dict[str | None, int] = {}
    for i, one in enumerate(series):
        number = seen[one.variant] = seen.get(one.variant, -1) + 1
        color = _PLAIN[i % len(_PLAIN)] if one.variant is None else COLORS[one.variant]
        places = [names.index(x) for x in one.x] if names else list(one.x)
        shift = 0.6 * (i / (len(series) - 1) - 0.5) if names and len(series) > 1 else 0.0
        places = [x + shift for x in places]
        errors = [[max(y - low, 0) for y, low in zip(one.y, one.low, strict=True)]]
        errors.append([max(high - y, 0) for y, high in zip(one.y, one.high, strict=True)])
        axes.errorbar(
            places, one.y, yerr=errors, color=color, label=one.label, capsize=2, elinewidth=1, alpha=0.9,
            marker=_MARKERS[number % len(_MARKERS)], markersize=6, linewidth=0 if names else 1.5,
        )  # fmt: skip
    if names:
        axes.set_xticks(range(len(names)), [name.replace(" ", "\n") for name in names], fontsize=10)  # narrow
    elif max(x for one in series for x in one.x) >= 20:
        axes.set_xscale("log")
        ticks = sorted({x for one in series for x in one.x})
        axes.set_xticks(ticks, [f"{x:g}" for x in ticks])
        axes.minorticks_off()
    if zero:
        axes.axhline(0, color=COLORS[BASELINE.name], linewidth=1.2)
    axes.grid(alpha=0.25)


def plot_budget(found: Sequence[Cell], report: Report, path: Path, title: str) -> None:
    """Writes a PNG, 1400 pixels wide: left a dot per seed and a bar at the mean, right the bootstrap intervals."""
    figure, (left, right) = new_figure(14.0, 1.6 + 0.27 * len(found), 2)
    for y, cell in enumerate(found):
        color = COLORS[cell.variant]
        values = cell.runs["auc"].to_list()
        if cell.backbone != ALL:
            left.plot(values, [y] * len(values), "o", color=color, markersize=5, alpha=0.55, markeredgewidth=0)
        mean = sum(values) / len(values)
        left.plot([mean, mean], [y - 0.35, y + 0.35], color=color, linewidth=2.5)
        if cell.gap is not None:
            right.plot(
                [cell.gap.low, cell.gap.high], [y, y], color=color, linewidth=4, alpha=0.5, solid_capstyle="butt"
            )
            right.plot(cell.gap.mean, y, "o", color=color, markersize=6)
    for row in report.rates.iter_rows(named=True):
        left.axvline(row["auc"], color="#000000", linestyle=":", linewidth=1.2)
        left.annotate(
            f"rates: {row['variant']}", (row["auc"], 1), xycoords=("data", "axes fraction"), rotation=90, fontsize=8,
            ha="right", va="top", xytext=(-2, -4), textcoords="offset points",
        )  # fmt: skip
    right.axvline(0, color=COLORS[BASELINE.name], linewidth=1.2)
    for axes in (left, right):
        axes.locator_params(axis="x", nbins=6)
        axes.set_ylim(len(found) - 0.4, -0.6)
        axes.set_yticks(range(len(found)), [cell.label for cell in found] if axes is left else [""] * len(found))
        axes.tick_params(axis="y", length=0, labelsize=9)
        axes.grid(axis="x", alpha=0.25)
    left.set_title("AUC on the test rows (dots: seeds, bar: mean)", loc="left", fontsize=11)
    right.set_title("AUC minus positive-only, 95 % bootstrap over users", loc="left", fontsize=11)
    save_figure(figure, path, title)
