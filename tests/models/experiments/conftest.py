"""Logs for the experiments, and the real data where they are."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mixpol_models.data import InteractionLog, synthetic_log
from mixpol_models.data.kuairand import find_kuairand

REPOSITORY = Path(__file__).parents[3]
REAL_DATA = Path(os.environ.get("MIXPOL_DATA") or REPOSITORY.parent / "shared" / "data")


@pytest.fixture(scope="session")
def real_kuairand() -> Path:
    if find_kuairand(REAL_DATA) is None:
        pytest.skip("no KuaiRand-Pure in MIXPOL_DATA or ../shared/data")
    return REAL_DATA


@pytest.fixture(scope="session")
def log() -> InteractionLog:
    return synthetic_log(n_users=120, n_items=40, n_groups=4, mean_length=12.0)
