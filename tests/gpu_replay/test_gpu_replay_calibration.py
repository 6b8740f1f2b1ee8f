"""The replay predicts what was measured on an H200, within the error that the documentation states."""

from __future__ import annotations

import json

import pytest
from gpu_replay import calibration, gate


@pytest.mark.slow
def test_what_was_measured() -> None:
    """Some of the rows; `make gpu-replay` has all."""
    rows = [row for row in calibration.measurements() if row.length == 50 and row.element != "tf32x3"]
    assert len(rows) == 4
    ratios = {(row.direction, row.element): row.ratio() for row in rows}
    assert all(0.85 < ratio < 1.15 for ratio in ratios.values()), ratios
    assert calibration.error(list(ratios.values())) < calibration.BOUND


def test_the_record_of_it() -> None:
    """GPU_MODEL.md takes the error from the record: it has every row, and the error that the bound allows."""
    recorded = json.loads(gate.RECORD.read_text())["measured"]
    measured = {
        f"{row.direction} {row.element}, {row.length:4}": row.microseconds for row in calibration.measurements()
    }
    assert {name: row["measured"] for name, row in recorded.items()} == measured
    assert calibration.error([row["predicted"] / row["measured"] for row in recorded.values()]) < calibration.BOUND
