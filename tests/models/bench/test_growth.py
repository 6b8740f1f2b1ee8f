"""The curve runs, counts what it says, and draws; its figures are for people to read."""

from __future__ import annotations

from pathlib import Path

import pytest

from mixpol_kernels.nn import TargetAttention
from mixpol_models.bench import growth


def test_rows_and_picture(tmp_path: Path) -> None:
    rows = growth.measure(lengths=(10, 1000), tokens=2000, rounds=1, seconds=0.01)
    assert [(r.length, r.padded, r.users) for r in rows] == [
        (10, 10, 200), (1000, 1000, 2), (500, 500, 4), (500, 1000, 4)
    ]  # fmt: skip
    assert all(0 < row.forward_ns < row.total_ns for row in rows)
    growth.plot(rows, tmp_path / "growth.png")
    assert (tmp_path / "growth.png").stat().st_size > 1000


def test_a_wrong_kernel_stops_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    right = TargetAttention.forward
    monkeypatch.setattr(
        TargetAttention, "forward", lambda self, *a, **k: right(self, *a, **k) * (1.001 if self.backend == "cpu" else 1)
    )
    with pytest.raises(RuntimeError, match="L = 10: error"):
        growth.measure(lengths=(10,), tokens=100, rounds=1, seconds=0.01)
