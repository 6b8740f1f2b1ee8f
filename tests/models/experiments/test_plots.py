"""Coordinates of points in plots, and the width of report tables."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from mixpol_models.experiments import report_plots
from mixpol_models.experiments.report import _COLUMNS, _PAGE, _html_table
from mixpol_models.experiments.report_plots import Series, plot_series
from mixpol_models.experiments.tables import ResultTable

NAMES = ["mixed", "mixed + bias", "mixed + TAPF"]


@pytest.mark.parametrize("n", [1, 2, 3])
def test_points_stand_around_their_ticks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n: int) -> None:
    drawn = []
    monkeypatch.setattr(report_plots, "save_figure", lambda figure, path, title: drawn.append(figure))
    y = [0.1, 0.2, 0.3]
    plot_series([Series(str(i), None, NAMES, y, y, y) for i in range(n)], tmp_path / "x.png", "", "", "")
    (axes,) = drawn[0].axes
    assert axes.get_xticks().tolist() == [0, 1, 2]
    places = [container.lines[0].get_xdata() for container in axes.containers]
    for tick in range(3):
        around = [place[tick] for place in places]
        assert len(set(around)) == n
        assert sum(around) / n == pytest.approx(tick)
        assert max(around) - min(around) < 0.7


def test_a_table_of_a_report_fits_into_1200_pixels() -> None:
    interval = "+0.0104 [+0.0104, +0.0104]"
    row = ("transformer, mixed + TAPF", "0.6994 ±.0016", *["0.7100"] * 3, "0.5123", "+14.58", "+4.16")
    table = ResultTable("Budget 50", _COLUMNS, ((*row, interval, "0.001", interval, "1234"),), ())
    cells = _Cells()
    cells.feed(_html_table(table))
    widest = [
        max(len(part) for cell in column for part in re.split("[ \n]", cell))
        for column in zip(*cells.rows, strict=True)
    ]
    # 7.5 pixels a character of 13 pixels, 13 of padding a cell, 30 of the page's margins.
    assert 7.5 * sum(widest) + 13 * len(widest) + 30 < 1200
    assert cells.rows[1][8] == "+0.0104 [+0.0104,\N{NO-BREAK SPACE}+0.0104]"
    assert "nowrap" not in _PAGE
    assert re.search(r"max-width: 1500px\) \{\{ table \{\{ font-size: 13px", _PAGE)


def test_a_long_text_breaks() -> None:
    error = "ValueError: hidden_units was 8; expected a sequence of widths such as [8]"
    assert f"<td>{error}</td>" in _html_table(ResultTable("Failed runs", ("error",), ((error,),), ()))


class _Cells(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.inside = False

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag == "tr":
            self.rows.append([])
        self.inside = tag in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.rows[-1].append(data)
