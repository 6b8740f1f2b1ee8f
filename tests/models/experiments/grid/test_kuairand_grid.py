"""The protocol on the real data, where they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from mixpol_models.experiments.baselines import rate_baselines
from mixpol_models.experiments.grid import load_experiment
from mixpol_models.experiments.grid.source import experiment_log, fingerprint, share, shared
from mixpol_models.experiments.grid.strata import strata
from mixpol_models.training import prepare


def test_the_shipped_protocol(real_kuairand: Path, tmp_path: Path) -> None:
    """Rows and rate baselines are those of the data's description (29 and 30 April, duplicates dropped)."""
    experiment = load_experiment("kuairand_pure").model_copy(update={"data": str(real_kuairand)})
    log = experiment_log(experiment, say=lambda line: None)
    assert dict(log.frame.group_by("split").len().iter_rows()) == {"history": 817_187, "train": 56_141, "test": 35_893}
    assert [round(rates.auc, 4) for rates in rate_baselines(log)] == [0.7403, 0.7545]
    assert fingerprint(shared(share(log, tmp_path))) == fingerprint(log)
    run = experiment.only({"backbone": ["din"]}).runs()[0]
    examples = prepare(log, run.config)
    assert 56_141 + 0.24 * 817_187 < len(examples.train) < 56_141 + 0.26 * 817_187
    low_activity = strata(log, examples)[0]
    assert low_activity.rows.mean() == pytest.approx(0.058, abs=5e-4)
    tune = load_experiment("kuairand_pure_tune").model_copy(update={"data": str(real_kuairand)})
    days = experiment_log(tune, say=lambda line: None).frame
    assert days.filter(days["split"] == "test").height == 13_466
    assert days.height < log.frame.height - 35_000
