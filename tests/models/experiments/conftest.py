"""Logs for the experiments, one thread, and the real data where they are."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from mixpol_models.data import InteractionLog, synthetic_log
from mixpol_models.data.kuairand import find_kuairand

REPOSITORY = Path(__file__).parents[3]
REAL_DATA = Path(os.environ.get("MIXPOL_DATA") or REPOSITORY.parent / "shared" / "data")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def real_kuairand() -> Path:
    if find_kuairand(REAL_DATA) is None:
        pytest.skip("no KuaiRand-Pure in MIXPOL_DATA or ../shared/data")
    return REAL_DATA


@pytest.fixture(scope="session")
def log() -> InteractionLog:
    return synthetic_log(n_users=120, n_items=40, n_groups=4, mean_length=12.0)
