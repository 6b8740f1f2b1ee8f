"""The ladder as a picture: time and kept memory against the length."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import matplotlib

from mixpol_models.bench.ladder import LadderRow

_COLORS = {
    "concat": "#9c2f2f",
    "concat+compile": "#d9824a",
    "refactored": "#5a7fb5",
    "refactored+compile": "#1f3f77",
    "fused": "#12805c",
    "mean pool": "#8a8a8a",
}
# Distance of two labels, in parts of the axis height.
_LABEL_GAP = 0.055
_SIZE_INCHES, _DPI = (14.0, 6.0), 100


def plot_ladder(rows: Sequence[LadderRow], path: str | Path) -> None:
    """Writes a picture, 1400 by 600 pixels: time of forward and backward, and what is kept between the two.

    Both axes of both panels are logarithmic; every line has its name at its end.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"font.size": 12, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=_SIZE_INCHES, dpi=_DPI, layout="constrained")
        FigureCanvasAgg(figure)
        time_axes, memory_axes = figure.subplots(1, 2)
        _panel(time_axes, rows, "total_ms", "Forward and backward, ms")
        _panel(memory_axes, rows, "saved_mib", "Kept for the backward pass beyond the inputs, MiB")
        row = rows[0]
        units = ", ".join(map(str, row.hidden))
        figure.suptitle(
            f"DIN activation unit on a CPU: B = {row.batch}, D = {row.width}, units [{units}], "
            f"{row.activation}, lengths uniform in 1..L, {row.threads} threads",
            x=0.01,
            ha="left",
            fontsize=12,
        )
        figure.savefig(path)


def _panel(axes: object, rows: Sequence[LadderRow], field: str, title: str) -> None:
    ends = []
    lengths = sorted({row.length for row in rows})
    for rung in dict.fromkeys(row.rung for row in rows):
        points = sorted(
            (row.length, getattr(row, field)) for row in rows if row.rung == rung and getattr(row, field) > 0
        )
        if not points:
            continue
        color = _COLORS.get(rung, "#000000")
        axes.plot(
            *zip(*points, strict=True),
            color=color,
            marker="o",
            markersize=5,
            linewidth=3 if rung == "fused" else 1.8,
            linestyle="--" if rung == "mean pool" else "-",
        )
        ends.append((points[-1], rung, color))
    axes.set(xscale="log", yscale="log", xlabel="padded length L", xticks=lengths)
    axes.set_xticks([], minor=True)
    axes.set_xticklabels([str(length) for length in lengths])
    axes.set_title(title, loc="left", fontsize=12)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.grid(axis="y", alpha=0.25)
    low, high = (math.log(bound) for bound in axes.get_ylim())
    heights = _spread([(math.log(point[1]) - low) / (high - low) for point, _, _ in ends])
    for ((length, value), rung, color), height in zip(ends, heights, strict=True):
        axes.annotate(
            f"{rung}  {value:.3g}",
            xy=(length, value),
            xytext=(1.03, height),
            textcoords="axes fraction",
            va="center",
            color=color,
            fontweight="bold" if rung == "fused" else "normal",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": color, "alpha": 0.4, "shrinkA": 0, "shrinkB": 4},
        )


def _spread(heights: list[float]) -> list[float]:
    """Moves label heights apart, upwards from the lowest, and then back down if the top one left the axes."""
    order = sorted(range(len(heights)), key=heights.__getitem__)
    placed = list(heights)
    for below, above in pairwise(order):
        placed[above] = max(placed[above], placed[below] + _LABEL_GAP)
    top = 0.97
    for i in reversed(order):
        placed[i] = min(placed[i], top)
        top = placed[i] - _LABEL_GAP
    return placed
