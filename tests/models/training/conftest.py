"""A small log and quick settings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mixpol_models.data import InteractionLog, synthetic_log
from mixpol_models.training import TrainConfig


@pytest.fixture(scope="session")
def log() -> InteractionLog:
    return synthetic_log(n_users=120, n_items=40, n_groups=4, mean_length=12.0)


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., TrainConfig]:
    """Settings of a run of a second, in a folder of this test."""

    def make(**changes: Any) -> TrainConfig:
        quick = {"epochs": 2, "batch_size": 128, "budget": 10, "output": str(tmp_path / "run")}
        return TrainConfig(**quick | changes)

    return make
