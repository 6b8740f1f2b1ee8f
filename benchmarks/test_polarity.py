"""Polarity embedding, polarity fusion and the whole pass from ids, table gradients included, each checked."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch

from mixpol_models.bench.gate import COMPILE_SLACK, check
from mixpol_models.bench.polarity_cases import Case, attention_case, embedding_case, fusion_case


class Checked:
    """One case; a form is checked once before it is timed."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.plain = case.plain_errors()

    def step(self, form: str) -> Callable[[], torch.Tensor]:
        slack = COMPILE_SLACK if form.endswith("+compile") else 1.0
        check(form, self.case.answer(form), self.case.exact, self.plain, slack)
        return partial(self.case.step, form)


@pytest.fixture(scope="module")
def embedding(length: int) -> Checked:
    torch._dynamo.reset()
    return Checked(embedding_case(length=length))


@pytest.fixture(scope="module")
def fusion(length: int) -> Checked:
    torch._dynamo.reset()
    return Checked(fusion_case(length=length))


@pytest.fixture(scope="module")
def attention(length: int) -> Checked:
    torch._dynamo.reset()
    return Checked(attention_case(length=length))


@pytest.fixture(scope="module")
def full_gate(length: int) -> Checked:
    torch._dynamo.reset()
    return Checked(attention_case(length=length, gate_inputs="full", num_extra=64))


@pytest.mark.parametrize("form", ["eager", "eager+compile", "fused"])
def test_polarity_embedding(measure: Callable[..., None], embedding: Checked, form: str) -> None:
    measure(embedding.case.name, embedding.step(form), embedding.case.clear)


@pytest.mark.parametrize("form", ["eager", "eager+compile", "refactored", "refactored+compile", "fused"])
def test_polarity_fusion(measure: Callable[..., None], fusion: Checked, form: str) -> None:
    measure(fusion.case.name, fusion.step(form), fusion.case.clear)


@pytest.mark.parametrize("form", ["eager", "eager+compile", "refactored", "refactored+compile", "fused"])
def test_mixed_polarity_attention(measure: Callable[..., None], attention: Checked, form: str) -> None:
    measure(attention.case.name, attention.step(form), attention.case.clear)


@pytest.mark.parametrize("form", ["eager", "eager+compile", "refactored", "refactored+compile", "fused"])
def test_full_gate_and_extra_table(measure: Callable[..., None], full_gate: Checked, form: str) -> None:
    measure(full_gate.case.name, full_gate.step(form), full_gate.case.clear)
