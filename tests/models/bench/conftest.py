"""Tiny problems, and one thread: the cores are shared and nothing here is a measurement."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from mixpol_models.bench import LadderRow, run_ladder

TINY = {"lengths": (3, 7), "batch": 6, "width": 8, "hidden": 5, "rounds": 3, "seconds_per_rung": 0.01}


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _few_cores() -> Iterator[None]:
    with _one_thread():
        yield


@pytest.fixture
def tiny() -> dict[str, Any]:
    """Arguments of `run_ladder`."""
    return dict(TINY)


@pytest.fixture(scope="session")
def rows() -> list[LadderRow]:
    """A measured ladder without what needs a compiler or the compiled library."""
    with _one_thread():
        return run_ladder(**TINY, rungs=["concat", "refactored", "mean pool"])
