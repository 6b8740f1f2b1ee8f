"""Gathering of rows that are made up, two backbones among them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from mixpol_models.experiments.grid import ExperimentConfig, ResultStore
from mixpol_models.experiments.grid.outcome import about
from mixpol_models.experiments.rows import ALL, Report, cells

GAIN = {"positive-only": 0.0, "mixed + TAPF": 0.02}


def report(folder: Path, without: tuple[str, int] | None = None) -> Report:
    """Two backbones by three seeds; seed s adds s / 100 to all AUCs, and the second backbone gains twice as much."""
    experiment = ExperimentConfig(name="made up", planted={}, grid={"variant": list(GAIN), "seed": [0, 1, 2]})
    users = 0.01 * np.random.default_rng(0).normal(size=40)
    store = ResultStore(folder)
    for factor, backbone in ((1, "din"), (2, "other")):
        for run in experiment.runs():
            if backbone == "din" and (run.variant, run.config.seed) == without:
                continue
            row = about(run, f"{backbone}{run.label}", "data", "mark", experiment)
            row["backbone"], row["settings"] = backbone, row["settings"].replace('"din"', f'"{backbone}"')
            auc = 0.7 + run.config.seed / 100 + factor * GAIN[run.variant] * (1 + run.config.seed / 10)
            store.put(row | {"status": "done", "auc": auc, "auc_resamples": (auc + users).tolist()})
    floor = pl.DataFrame({"variant": ["rates"], "auc": [0.72], "auc_resamples": [(0.72 - users).tolist()]})
    return Report(experiment, store.frame, floor, store.frame.clear(), 12)


def test_seeds_are_paired_and_backbones_averaged(tmp_path: Path) -> None:
    whole = report(tmp_path)
    found = {(cell.backbone, cell.variant): cell for cell in cells(whole, whole.runs)}
    assert list(found) == [(b, v) for b in ("din", "other", ALL) for v in GAIN]
    assert found["din", "positive-only"].gap is None
    tapf = found["din", "mixed + TAPF"]
    assert tapf.gap.mean == pytest.approx(0.022)
    # The users' chance is common to both and cancels; the seeds' spread is not in the interval.
    assert (tapf.gap.low, tapf.gap.high) == (pytest.approx(0.022), pytest.approx(0.022))
    assert tapf.gap.p < 0.01
    base = [0.7, 0.71, 0.72]
    ratio = np.mean([100 * 0.02 * (1 + s / 10) / b for s, b in enumerate(base)])
    impr = np.mean([100 * 0.02 * (1 + s / 10) / (b - 0.5) for s, b in enumerate(base)])
    assert tapf.relative == (pytest.approx(impr), pytest.approx(ratio))
    assert tapf.to_rates.mean == pytest.approx(0.7 + 0.01 + 0.022 - 0.72)
    assert tapf.to_rates.high - tapf.to_rates.low > 0.03
    together = found[ALL, "mixed + TAPF"].gap
    assert together.mean == pytest.approx(0.033)
    assert together.seeds == 6
    assert together.p == 2 / 2**6


def test_a_seed_that_one_lacks_is_left_out(tmp_path: Path) -> None:
    part = report(tmp_path, without=("positive-only", 1))
    (tapf,) = [c for c in cells(part, part.runs) if (c.backbone, c.variant) == ("din", "mixed + TAPF")]
    assert tapf.gap.seeds == 2
    assert tapf.gap.mean == pytest.approx(0.022)
    assert tapf.runs.height == 3
