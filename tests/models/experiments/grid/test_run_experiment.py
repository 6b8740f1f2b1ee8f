"""Grids of tiny runs, in this process and in workers."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from rich.console import Console

from mixpol_models.data.locks import locked
from mixpol_models.experiments.bootstrap import auc_resamples, paired_bootstrap
from mixpol_models.experiments.grid import ExperimentConfig, ResultStore, run_experiment, runner
from mixpol_models.experiments.report import write_report


def experiment(**changes: Any) -> ExperimentConfig:
    settings = {
        "name": "tiny",
        "planted": {"n_users": 40, "length": 12},
        "grid": {"variant": ["positive-only", "mixed + bias"], "seed": [0, 1]},
        "train": {"budget": 5, "epochs": 1, "batch_size": 128, "embedding_dim": 4, "attention_units": [8]},
        "resamples": 50,
        "strata_resamples": 20,
    }
    return ExperimentConfig(**settings | changes)


def run(config: ExperimentConfig, folder: Path, **options: Any) -> runner.Summary:
    return run_experiment(config, folder, console=Console(file=io.StringIO()), **{"workers": 0} | options)


def runs_of(folder: Path) -> pl.DataFrame:
    return ResultStore.read(folder).filter(pl.col("kind") == "run")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, runner.Summary]:
    """The folder of a grid that was trained, for tests to read or to copy, and what its run said."""
    folder = tmp_path_factory.mktemp("finished") / "store"
    return folder, run(experiment(), folder)


def test_a_row_holds_what_it_promises(finished: tuple[Path, runner.Summary]) -> None:
    folder, done = finished
    assert (done.trained, done.failed, done.skipped, done.left) == (4, 0, 0, 0)
    rows = runs_of(folder)
    assert rows["key"].n_unique() == 4
    for row in rows.iter_rows(named=True):
        assert len(row["auc_resamples"]) == 50
        assert np.std(row["auc_resamples"]) > 0
        assert abs(np.mean(row["auc_resamples"]) - row["auc"]) < 0.1
        assert row["parameters"] > 0
        assert "torch" in row["versions"]
        kinds = {part["kind"] for part in row["strata"]}
        assert len(kinds) == 2
        for kind in kinds:
            assert sum(part["rows"] for part in row["strata"] if part["kind"] == kind) == row["test_examples"]
    floor = ResultStore.read(folder).filter(pl.col("kind") == "floor")
    assert floor["variant"].to_list() == ["item × user"]


def test_what_is_there_is_skipped_and_a_grown_grid_adds_to_it(
    finished: tuple[Path, runner.Summary], tmp_path: Path
) -> None:
    folder = shutil.copytree(finished[0], tmp_path / "store")
    before = runs_of(folder)
    done = run(experiment(grid={"variant": ["positive-only", "mixed + bias"], "seed": [0, 1, 2]}), folder)
    assert (done.skipped, done.trained) == (4, 2)
    assert runs_of(folder).filter(pl.col("key").is_in(before["key"].to_list())).equals(before)
    changed = experiment(
        grid={"variant": ["mixed + bias"], "seed": [0]}, train=experiment().train | {"learning_rate": 0.01}
    )
    assert run(changed, folder).skipped == 0


def test_a_failed_run_is_told_and_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mixpol_models.experiments.grid import outcome

    real = outcome.run_row

    def fail(log: Any, run: Any, config: Any) -> dict[str, Any]:
        if run.variant == "mixed + bias" and run.config.seed == 0:
            raise ValueError("the ninth wave")
        return real(log, run, config)

    monkeypatch.setattr(outcome, "run_row", fail)
    done = run(experiment(), tmp_path)
    assert (done.trained, done.failed) == (3, 1)
    (failed,) = runs_of(tmp_path).filter(pl.col("status") == "failed").iter_rows(named=True)
    assert "the ninth wave" in failed["error"]
    text = write_report(tmp_path, tmp_path / "report")[0].read_text()
    assert "1 of 4 runs are missing" in text
    assert "the ninth wave" in text
    monkeypatch.undo()
    done = run(experiment(), tmp_path)
    assert (done.skipped, done.trained, done.failed) == (3, 1, 0)
    assert runs_of(tmp_path)["status"].to_list() == ["done"] * 4


def test_ctrl_c_leaves_a_whole_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mixpol_models.experiments.grid import outcome

    real = outcome.run_row

    def interrupted(log: Any, run: Any, config: Any) -> dict[str, Any]:
        if run.config.seed == 1:
            raise KeyboardInterrupt
        return real(log, run, config)

    monkeypatch.setattr(outcome, "run_row", interrupted)
    done = run(experiment(), tmp_path)
    assert (done.trained, done.left) == (1, 3)
    assert runs_of(tmp_path)["status"].to_list() == ["done"]


def test_the_store_alone_gives_the_paired_bootstrap() -> None:
    rng = np.random.default_rng(0)
    user, label = rng.integers(0, 30, 200), rng.integers(0, 2, 200)
    scores = {name: label + rng.normal(0, spread, 200) for name, spread in (("a", 1.0), ("b", 2.0))}
    whole = paired_bootstrap(user, label, scores, "a", 60)["b"]
    draws = {name: auc_resamples(user, label, score, 60) for name, score in scores.items()}
    assert np.nanquantile(draws["b"] - draws["a"], [0.025, 0.975]).tolist() == [whole.low, whole.high]


def test_a_second_runner_is_refused(tmp_path: Path) -> None:
    with locked(tmp_path, "mixpol experiment run"), pytest.raises(RuntimeError, match="written by another"):
        run(experiment(), tmp_path)


def test_another_experiment_is_refused(tmp_path: Path) -> None:
    run(experiment(grid={"seed": [0]}), tmp_path)
    with pytest.raises(ValueError, match="holds the results of 'tiny'"):
        run(experiment(name="other"), tmp_path)


@pytest.mark.slow
def test_workers_give_the_same_rows_and_may_die(tmp_path: Path) -> None:
    """Two processes; the run of an absurd width takes its process with it or raises, and the others stay."""
    grid = {"variant": ["mixed"], "embedding_dim": [4, 10**12]}
    done = run(experiment(grid=grid), tmp_path / "two", workers=2)
    assert (done.trained, done.failed) == (1, 1)
    run(experiment(grid={"variant": ["mixed"], "embedding_dim": [4]}), tmp_path / "none")
    two = runs_of(tmp_path / "two").filter(pl.col("status") == "done")
    assert two["auc_resamples"].equals(runs_of(tmp_path / "none")["auc_resamples"])


def test_the_report_tells_the_grid(finished: tuple[Path, runner.Summary], tmp_path: Path) -> None:
    markdown, page = write_report(finished[0], tmp_path / "report")
    text = markdown.read_text()
    assert "The grid is complete: 4 of 4" in text
    rows = runs_of(finished[0])
    for variant in ("positive-only", "mixed + bias"):
        mean = rows.filter(pl.col("variant") == variant)["auc"].mean()
        assert any(line.startswith(f"| din, {variant} ") and f"{mean:.4f}" in line for line in text.splitlines())
    assert "data:image/png;base64," in page.read_text()
    assert "src='data:" in page.read_text()
