"""The compositions that the polarity suites compare with compute what the reference computes."""

from __future__ import annotations

from typing import Any

import pytest

from mixpol_kernels.library import library
from mixpol_models.bench import GateError
from mixpol_models.bench.case import Case
from mixpol_models.bench.gate import check
from mixpol_models.bench.polarity_cases import attention_case, embedding_case, fusion_case

ATTENTION = {"batch": 5, "length": 6, "width": 8, "hidden": 7, "items": 20}
CASES: list[tuple[Any, dict[str, Any]]] = [
    (embedding_case, {"batch": 5, "length": 6, "width": 8, "items": 20}),
    (fusion_case, {"batch": 5, "length": 6, "width": 8}),
    (attention_case, ATTENTION),
    (attention_case, {**ATTENTION, "gate_inputs": "full", "num_extra": 3}),
    (attention_case, {**ATTENTION, "fusion": "bias", "num_extra": 3}),
]


@pytest.fixture(params=CASES, ids=[f"{make.__name__}{i}" for i, (make, _) in enumerate(CASES)])
def case(request: pytest.FixtureRequest) -> Case:
    make, options = request.param
    made: Case = make(**options)
    return made


@pytest.mark.parametrize("form", ["eager", "refactored", "fused"])
def test_form_is_within_the_budget(case: Case, form: str) -> None:
    if form not in case.forms:
        pytest.skip("this op has no such form")
    if form == "fused" and not library.loaded:
        pytest.skip(library.reason)
    case.check(form)


def test_every_parameter_is_compared(case: Case) -> None:
    assert set(case.exact) == {"output", *case.leaves}
    assert all(bool(value.any()) for value in case.exact.values()), "a tensor of zeros would hide an error"


def test_a_wrong_table_gradient_is_found(case: Case) -> None:
    answer = case.answer("eager")
    table = next(name for name in answer if "polarity_table" in name)
    answer[table] = answer[table].flip(0)
    with pytest.raises(GateError, match="polarity_table"):
        check("planted", answer, case.exact, case.plain_errors)
