"""The PyTorch merges that the `interleave` suite compares with compute what the op computes."""

from __future__ import annotations

import pytest

from mixpol_kernels.library import library
from mixpol_models.bench import GateError
from mixpol_models.bench.interleave_case import InterleaveCase, check_merge, interleave_case


@pytest.fixture(params=[(None, None), (9, 0.5), (4, 0.2)], ids=str)
def case(request: pytest.FixtureRequest) -> InterleaveCase:
    budget, share = request.param
    return interleave_case(users=20, positives=6, negatives=10, budget=budget, share=share)


@pytest.mark.parametrize("form", ["one sort", "search", "fused"])
def test_form_is_right(case: InterleaveCase, form: str) -> None:
    if form == "fused" and not library.loaded:
        pytest.skip(library.reason)
    case.check(form)


@pytest.mark.parametrize("field", [0, 1, 2])
def test_a_wrong_form_is_found(case: InterleaveCase, field: int) -> None:
    merged = list(case.forms["search"]())
    merged[field] = merged[field].flip(0)
    with pytest.raises(GateError, match=("source", "polarity", "offsets")[field]):
        check_merge("planted", tuple(merged), case.forms["two sorts"]())
