"""`mixpol_models.bench.dot_cases`: every form computes the same attention and the same gradients."""

from __future__ import annotations

import pytest

from mixpol_models.bench.dot_cases import dot_case


@pytest.mark.parametrize("candidates", [1, 5])
def test_every_form_passes_the_gate(candidates: int) -> None:
    case = dot_case(batch=5, length=70, width=16, heads=2, candidates=candidates, compiled=False)
    assert {"projected", "absorbed", "fused"} <= case.forms.keys()
    assert ("broadcast" in case.forms) == (candidates > 1)
    for form in case.forms:
        case.check(form)
    assert all(leaf.grad is None for leaf in case.leaves.values())
