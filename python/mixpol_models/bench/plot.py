"""The ladder as a picture: time, kept memory and share of the roof against the length."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from mixpol_models.bench.case import COMPILED, CONTROL, FUSED
from mixpol_models.bench.figure import new_figure, save_figure
from mixpol_models.bench.ladder import REFACTORED, LadderRow
from mixpol_models.bench.roofline import Peaks
from mixpol_models.bench.summary import caption

_EAGER, _REFACTORED = ("#9c2f2f", "#d9824a"), ("#5a7fb5", "#1f3f77")  # eager, compiled
_FUSED, _CONTROL = "#12805c", "#8a8a8a"
# Distance of two labels, in parts of the axis height.
_LABEL_GAP = 0.055


def plot_ladder(rows: Sequence[LadderRow], path: str | Path, peaks: Peaks | None = None) -> None:
    """Writes a picture of one case: time of forward and backward, and what is kept between the two.

    Both axes of both panels are logarithmic; every line has its name at its end. A panel is 700 by 600 pixels. With
    `peaks` there is a third one: the least time that the machine allows for the op's work over the time taken.
    """
    panels: list[tuple[str, Callable[[LadderRow], float]]] = [
        ("Forward and backward, ms", lambda row: row.total_ms),
        ("Kept for the backward pass beyond the inputs, MiB", lambda row: row.saved_mib),
    ]
    if peaks:

        def share(row: LadderRow) -> float:
            return 0.0 if row.implementation == CONTROL else 100 * peaks.share(row.total_work, row.total_ms)

        panels.append((f"Share of {peaks.gflops:.0f} GFLOP/s and {peaks.gbytes:.0f} GB/s, %", share))
    figure, every = new_figure(7.0 * len(panels), 6.0, len(panels))
    for axes, (title, value) in zip(every, panels, strict=True):
        _panel(axes, rows, value, title)
    save_figure(figure, path, caption(rows).partition("; medians")[0])


def _color(implementation: str) -> str:
    if implementation in (FUSED, CONTROL):
        return _FUSED if implementation == FUSED else _CONTROL
    return (_REFACTORED if implementation.startswith(REFACTORED) else _EAGER)[implementation.endswith(COMPILED)]


def _panel(axes: Any, rows: Sequence[LadderRow], value: Callable[[LadderRow], float], title: str) -> None:
    from matplotlib.ticker import LogFormatter

    ends = []
    lengths = sorted({row.length for row in rows})
    for implementation in dict.fromkeys(row.implementation for row in rows):
        points = sorted(
            (row.length, value(row)) for row in rows if row.implementation == implementation and value(row) > 0
        )
        if not points:
            continue
        color = _color(implementation)
        axes.plot(
            *zip(*points, strict=True),
            color=color,
            marker="o",
            markersize=5,
            linewidth=3 if implementation == "fused" else 1.8,
            linestyle="--" if implementation == CONTROL else "-",
        )
        ends.append((points[-1], implementation, color))
    axes.set(xscale="log", yscale="log", xlabel="padded length L", xticks=lengths)
    axes.set_xticks([], minor=True)
    axes.set_xticklabels([str(length) for length in lengths])
    axes.set_title(title, loc="left", fontsize=12)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_minor_formatter(LogFormatter())
    axes.grid(axis="y", alpha=0.25)
    low, high = (math.log(bound) for bound in axes.get_ylim())
    heights = _spread([(math.log(point[1]) - low) / (high - low) for point, _, _ in ends])
    for ((length, last), implementation, color), height in zip(ends, heights, strict=True):
        axes.annotate(
            f"{implementation}  {last:.3g}",
            xy=(length, last),
            xytext=(1.03, height),
            textcoords="axes fraction",
            va="center",
            color=color,
            fontweight="bold" if implementation == "fused" else "normal",
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
