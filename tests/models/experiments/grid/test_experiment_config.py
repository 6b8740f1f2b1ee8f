"""Validation of experiment files, and the runs of a grid."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mixpol_models.experiments.grid.config import ExperimentConfig, load_experiment, shipped_experiments


def experiment(**changes: Any) -> ExperimentConfig:
    return ExperimentConfig(**{"name": "x", "planted": {}, "grid": {"seed": [0]}} | changes)


def test_the_grid_is_all_combinations_once() -> None:
    grid = {"variant": ["positive-only", "mixed+tapf"], "negative_share": [0.2, 0.5], "seed": [0, 1]}
    runs = experiment(grid=grid).runs()
    assert len(runs) == 2 + 4
    assert {run.config.negative_share for run in runs if run.variant == "positive-only"} == {None}
    assert len({run.key("data", experiment()) for run in runs}) == 6


def test_ablations_of_negatives_do_not_repeat_positive_only() -> None:
    grid = {"variant": ["positive-only", "mixed"], "ablation": ["none", "random negatives", "shuffled order"]}
    runs = experiment(grid=grid).runs()
    assert [(r.variant, r.ablation) for r in runs if r.variant == "positive-only"] == [
        ("positive-only", "none"),
        ("positive-only", "shuffled order"),
    ]
    assert len(runs) == 5


def test_keys_change_with_what_matters() -> None:
    (run,) = experiment().runs()
    (other,) = experiment(train={"learning_rate": 0.01}).runs()
    key = run.key("data", experiment())
    assert key == run.key("data", experiment(name="renamed"))
    assert key != other.key("data", experiment())
    assert key != run.key("other data", experiment())
    assert key != run.key("data", experiment(resamples=100))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"grid": {"sed": [0]}}, "grid has the axis 'sed', expected one of"),
        ({"grid": {"seed": []}}, r"seed is \[\], expected one or more"),
        ({"grid": {"variant": ["mixd"]}}, "variant is 'mixd', expected one of"),
        ({"grid": {"ablation": ["odd"]}}, "ablation is 'odd', expected one of"),
        ({"train": {"output": "x"}}, "train: 'output' is no setting here"),
        ({"backbones": {"din": {"seed": 1}}}, "backbones: din: 'seed' is an axis of the grid too"),
        ({"data": "synthetic"}, "planted is given together with data"),
    ],
)
def test_errors_name_the_place(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        experiment(**changes)


def test_a_bad_combination_is_told() -> None:
    with pytest.raises(ValueError, match=r"budget is 0|budget"):
        experiment(grid={"budget": [10, 0]}).runs()


def test_only_a_part() -> None:
    whole = experiment(grid={"seed": [0, 1], "budget": [5, 10]})
    assert [r.config.budget for r in whole.only({"budget": ["10"], "seed": ["1"]}).runs()] == [10]
    with pytest.raises(ValueError, match="--only names the axis 'bugdet'"):
        whole.only({"bugdet": ["5"]})
    with pytest.raises(ValueError, match="--only is budget=7, expected one of"):
        whole.only({"budget": ["7"]})


def test_files(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_text("name: x\ngrid: {seed: [0]}\nplanted: {efect: true}\n")
    with pytest.raises(ValueError, match=r"x.yaml: 'planted.efect' is no setting"):
        load_experiment(file)
    with pytest.raises(ValueError, match="there is no file; expected a path or one of"):
        load_experiment("nowhere")


def test_shipped_experiments_are_readable() -> None:
    for name in shipped_experiments():
        assert load_experiment(name).name == name


def test_the_kuairand_grid() -> None:
    grid = load_experiment("kuairand_pure")
    assert grid.days.valid is None
    assert len(grid.only({"backbone": ["din"]}).runs()) == 24
    tune = load_experiment("kuairand_pure_tune")
    assert tune.days.test[1] < grid.days.test[0]
