"""`mixpol experiment` from the command line."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from mixpol_models.cli import app
from mixpol_models.experiments.grid import outcome

TINY = """
name: tiny
planted: {n_users: 30, length: 10}
grid: {variant: [positive-only, mixed], seed: [0, 1]}
train: {budget: 4, epochs: 1, batch_size: 128, embedding_dim: 4, attention_units: [4]}
resamples: 20
strata_resamples: 20
"""


def call(*arguments: str, status: int = 0) -> str:
    result = CliRunner().invoke(app, ["experiment", *arguments])
    assert result.exit_code == status, result.output
    return result.output


def test_run_report_analyse(tmp_path: Path) -> None:
    file, store = tmp_path / "tiny.yaml", str(tmp_path / "store")
    file.write_text(TINY)
    text = call("run", str(file), "--workers", "0", "--output", store, "--only", "seed=0")
    assert "2 runs trained, 0 failed, 0 were there" in " ".join(text.split())
    assert "report.html" in call("report", store)
    assert "2 of 4 runs are missing" in (tmp_path / "store" / "report" / "report.md").read_text()
    text = call("run", str(file), "--workers", "0", "--output", store)
    assert "2 runs trained, 0 failed, 2 were there" in " ".join(text.split())
    assert "activity.png" in call("analyse", "activity", store)


def test_errors_are_messages(tmp_path: Path) -> None:
    assert "expected AXIS=VALUE" in call("run", "planted", "--only", "seed", status=2)
    assert "there is no experiment.yaml" in call("report", str(tmp_path), status=2)
    assert "expected a path or one of" in call("run", "nowhere", status=2)


def test_list() -> None:
    text = call("list")
    assert "kuairand_pure: 3 seed × 2 budget × 5 backbone × 4 variant" in text


def test_a_failed_run_shows_in_the_exit_status(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "tiny.yaml"
    file.write_text(TINY)

    def fail(*_: object) -> None:
        raise ValueError("the ninth wave")

    monkeypatch.setattr(outcome, "run_row", fail)
    text = call("run", str(file), "--workers", "0", "--output", str(tmp_path / "store"), status=1)
    assert "4 failed" in text
    assert text.strip().endswith("tells them.")
