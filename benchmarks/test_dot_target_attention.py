"""Softmax dot-product attention with four heads, each form behind the correctness gate."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch

from mixpol_models.bench.dot_cases import dot_case
from mixpol_models.bench.gate import COMPILE_SLACK, check
from mixpol_models.bench.polarity_cases import Case

FORMS = ["projected", "projected+compile", "absorbed", "absorbed+compile", "fused"]


def checked(case: Case, form: str) -> None:
    slack = COMPILE_SLACK if form.endswith("+compile") else 1.0
    check(form, case.answer(form), case.exact, case.plain_errors(), slack)


@pytest.fixture(scope="module")
def one_target(length: int) -> Case:
    torch._dynamo.reset()
    return dot_case(length=length)


@pytest.fixture(scope="module")
def many_candidates(length: int) -> Case:
    torch._dynamo.reset()
    return dot_case(batch=4, length=length, candidates=100)


@pytest.mark.parametrize("form", FORMS)
def test_forward_backward(measure: Callable[..., None], one_target: Case, form: str) -> None:
    checked(one_target, form)
    measure(f"forward + backward, {one_target.name}", partial(one_target.step, form), one_target.clear)


@pytest.mark.parametrize("form", [*FORMS, "broadcast"])
def test_many_candidates(measure: Callable[..., None], many_candidates: Case, form: str) -> None:
    checked(many_candidates, form)
    with torch.no_grad():
        measure(f"forward, {many_candidates.name}", many_candidates.forms[form], many_candidates.clear)
