"""`mixpol_models.bench.dot_cases`: every form computes the same attention and the same gradients."""

from __future__ import annotations

import pytest

from mixpol_models.bench.dot_cases import dot_case
from mixpol_models.bench.gate import check


@pytest.mark.parametrize("candidates", [1, 5])
def test_every_form_passes_the_gate(candidates: int) -> None:
    case = dot_case(batch=5, length=70, width=16, heads=2, candidates=candidates, compiled=False)
    assert {"projected", "absorbed", "fused"} <= case.forms.keys()
    assert ("broadcast" in case.forms) == (candidates > 1)
    plain = case.plain_errors()
    for form in case.forms:
        check(form, case.answer(form), case.exact, plain, slack=2.0)
    assert all(leaf.grad is None for leaf in case.leaves.values())
