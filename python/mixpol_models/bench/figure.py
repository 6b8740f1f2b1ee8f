"""Figures of matplotlib without a display: made in one style, written whole or not at all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

from mixpol_models.files import replacing

_DPI = 100


def new_figure(
    width: float, height: float, panels: int, rows: int = 1, share_y: bool = False
) -> tuple[Any, Sequence[Any]]:
    """A figure of inches and its panels, row by row: `panels` in each of `rows`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"font.size": 12, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(width, height), dpi=_DPI, layout="constrained")
        FigureCanvasAgg(figure)
        return figure, figure.subplots(rows, panels, squeeze=False, sharey=share_y).flatten()


def save_figure(figure: Any, path: str | Path, title: str) -> None:
    """Writes the picture under a title."""
    figure.suptitle(title, x=0.01, ha="left", fontsize=12)
    with replacing(Path(path)) as fresh:
        figure.savefig(fresh)
