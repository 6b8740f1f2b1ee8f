"""Fused and reference forms of the same models, timed for a moment."""

from __future__ import annotations

import pytest

from mixpol_models.data import InteractionLog
from mixpol_models.experiments import throughput as module
from mixpol_models.experiments.grid import ExperimentConfig
from mixpol_models.experiments.step_time import StepMismatch


def experiment() -> ExperimentConfig:
    return ExperimentConfig(
        name="x",
        planted={},
        grid={"variant": ["positive-only", "mixed + TAPF"], "budget": [3, 6], "seed": [0, 1]},
        train={"embedding_dim": 8, "batch_size": 32},
    )


def test_each_model_once_at_the_largest_budget(log: InteractionLog) -> None:
    rows = module.throughput(log, experiment(), rounds=3, seconds=0.02)
    assert [row.variant for row in rows] == ["positive-only", "mixed + TAPF"]
    assert all(row.low <= row.ratio <= row.high for row in rows)
    assert rows[1].events > 3 * rows[1].batch
    table = module.throughput_table(rows).markdown()
    assert f"| din, mixed + TAPF | {rows[1].fused:,.0f} |" in table


def test_nothing_is_timed_where_the_forms_differ(log: InteractionLog, monkeypatch: pytest.MonkeyPatch) -> None:
    real = module._model

    def broken(config: object, sizes: object, backend: str) -> object:
        model = real(config, sizes, backend)
        if backend == "auto":
            model.tower[-1].bias.data += 0.1
        return model

    monkeypatch.setattr(module, "_model", broken)
    with pytest.raises(StepMismatch):
        module.throughput(log, experiment(), rounds=3, seconds=0.02)
