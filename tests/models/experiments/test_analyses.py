"""Analyses of stores that are made up, so that the answers are known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mixpol_models.experiments import report_plots
from mixpol_models.experiments.analyses import ANALYSES, analyse
from mixpol_models.experiments.grid import ExperimentConfig, ResultStore
from mixpol_models.experiments.grid.outcome import about
from mixpol_models.experiments.grid.runner import _write_config
from mixpol_models.experiments.grid.strata import ACTIVITY, COLD

GAIN = {"positive-only": 0.0, "mixed": 0.01, "mixed + bias": 0.02, "mixed + TAPF": 0.03}


def store(folder: Path, grid: dict[str, Any], effect: Any) -> Path:
    """A store whose AUCs are 0.7 + effect(run); the users' chance is the same for all runs."""
    experiment = ExperimentConfig(name="made up", planted={}, grid=grid)
    results = ResultStore(folder)
    folder.mkdir()
    _write_config(folder, experiment, "mark")
    users = 0.01 * np.random.default_rng(0).normal(size=50)
    for run in experiment.runs():
        auc = 0.7 + effect(run)
        strata = [
            {"kind": kind, "name": name, "rows": 100, "positives": 30, "auc": auc, "resamples": (auc + users).tolist()}
            for kind in (ACTIVITY, COLD)
            for name in ("0–1", "2+")
        ]
        results.put(
            about(run, run.key("mark", experiment), "data", "mark", experiment)
            | {"status": "done", "auc": auc, "auc_resamples": (auc + users).tolist(), "strata": strata}
            | {"attention_on_negatives": 0.3 + effect(run), "negatives_in_history": 0.6, "versions": json.dumps({})}
        )
    return folder


def answer(name: str, folder: Path) -> str:
    text, picture = analyse(name, folder, folder / "report")
    assert picture.read_bytes().startswith(b"\x89PNG")
    return text.read_text()


def by_variant(run: Any) -> float:
    return GAIN[run.variant]


def test_gains_within_strata(tmp_path: Path) -> None:
    folder = store(tmp_path / "s", {"variant": list(GAIN), "seed": [0, 1]}, by_variant)
    for name in ("activity", "cold-items"):
        text = answer(name, folder)
        assert "| din, mixed + TAPF, budget 50 | 0–1 | 100 | 0.300 | 0.7000 | +0.0300 [+0.0300, +0.0300] |" in text
    assert "| din, budget 50 | 60.0 % | 31.0 % | 32.0 % | 33.0 % |" in answer("attention", folder)


def test_negative_share(tmp_path: Path) -> None:
    grid = {"variant": ["positive-only", "mixed"], "negative_share": [0.0, 0.5], "seed": [0]}
    folder = store(tmp_path / "s", grid, lambda run: 0.1 * (run.config.negative_share or 0))
    text = answer("negative-share", folder)
    assert "| din, mixed, budget 50 | 0.5 | 0.7500 | +0.0500 [+0.0500, +0.0500] |" in text
    assert "| din, mixed, budget 50 | 0 | 0.7000 | +0.0000 [+0.0000, +0.0000] |" in text


def test_slope_over_the_budget(tmp_path: Path) -> None:
    grid = {"variant": ["positive-only", "mixed"], "budget": [10, 20, 80], "seed": [0]}
    slope = {"positive-only": 0.01, "mixed": 0.02}
    folder = store(tmp_path / "s", grid, lambda run: slope[run.variant] * np.log2(run.config.budget / 10))
    text = answer("length", folder)
    assert "| din, mixed | 0.7000 | 0.7200 | 0.7600 | +0.0200 [+0.0200, +0.0200] | +0.0100 [" in text


def test_ablations(tmp_path: Path) -> None:
    grid = {"variant": ["mixed"], "ablation": ["none", "old negatives"], "seed": [0]}
    folder = store(tmp_path / "s", grid, lambda run: -0.02 * (run.ablation != "none"))
    assert "| din, mixed, budget 50 | old negatives | 0.6800 | -0.0200 [-0.0200, -0.0200] |" in answer(
        "ablations", folder
    )


def test_what_is_lacking_is_told(tmp_path: Path) -> None:
    folder = store(tmp_path / "s", {"variant": ["mixed"], "seed": [0]}, by_variant)
    for name in ANALYSES:
        if name != "attention":
            with pytest.raises(ValueError, match="store lacks"):
                analyse(name, folder, tmp_path / "out")
    with pytest.raises(ValueError, match="analysis is 'lenght', expected one of"):
        analyse("lenght", folder, tmp_path / "out")


def test_a_picture_has_a_panel_for_each_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = store(tmp_path / "s", {"variant": list(GAIN), "budget": [20, 50], "seed": [0]}, by_variant)
    drawn = []
    monkeypatch.setattr(report_plots, "save_figure", lambda figure, path, title: drawn.append(figure))
    analyse("activity", folder, tmp_path / "out")
    (figure,) = drawn
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["din, budget 20", "din, budget 50"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["mixed", "mixed + bias", "mixed + TAPF"]
