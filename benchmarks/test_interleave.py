"""The merge of positives and negatives by time, each form checked against the reference before it is timed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from mixpol_models.bench.interleave_case import InterleaveCase, interleave_case

LIMITS = {"all": (None, None), "budget": (100, 0.5)}


@pytest.fixture(scope="module", params=LIMITS)
def case(request: pytest.FixtureRequest) -> InterleaveCase:
    torch._dynamo.reset()
    budget, share = LIMITS[request.param]
    return interleave_case(budget=budget, share=share)


@pytest.mark.parametrize("form", ["two sorts", "one sort", "search", "search+compile", "fused"])
def test_interleave(measure: Callable[..., None], case: InterleaveCase, form: str) -> None:
    case.check(form)
    measure(case.name, case.forms[form], lambda: None)
