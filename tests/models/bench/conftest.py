"""Tiny problems: nothing here is a measurement."""

from __future__ import annotations

from typing import Any

import pytest

from mixpol_models.bench import LadderRow, run_ladder

TINY = {"lengths": (3, 7), "batch": 6, "width": 8, "hidden": 5, "rounds": 3, "seconds_per_form": 0.01}


@pytest.fixture
def tiny() -> dict[str, Any]:
    """Arguments of `run_ladder`."""
    return dict(TINY)


@pytest.fixture(scope="session")
def rows() -> list[LadderRow]:
    """A measured ladder without what needs a compiler or the compiled library."""
    return run_ladder(**TINY, implementations=["concat", "refactored", "mean pool"])
