"""Every form of every shape, forward alone and with its backward, behind the correctness gate."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial

import pytest
import torch
from conftest import shapes

from mixpol_models.bench.case import Case
from mixpol_models.bench.cases import make_case
from mixpol_models.bench.memory import saved_mib
from mixpol_models.bench.shapes import Shape


@lru_cache(maxsize=1)
def case_of(shape: Shape) -> Case:
    """The shape's case: tests of one shape follow each other."""
    torch._dynamo.reset()
    return make_case(shape)


@lru_cache(maxsize=1)
def checked(shape: Shape, form: str) -> Case:
    """`make_case` with the form held to the error budget."""
    case = case_of(shape)
    case.check(form)
    return case


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    found = [
        pytest.param(shape, form, id=f"{shape.name}, {form}")
        for shape in shapes(metafunc.config)
        for form in make_case(shape.small()).forms
    ]
    metafunc.parametrize(("shape", "form"), found)


def test_forward(measure: Callable[..., None], shape: Shape, form: str) -> None:
    case = checked(shape, form)
    with torch.no_grad():
        measure(f"{shape.case}, forward, {case.name}", case.forms[form], case.clear, tokens=case.tokens)


def test_forward_backward(measure: Callable[..., None], shape: Shape, form: str) -> None:
    case = checked(shape, form)
    kept = saved_mib(case.forms[form], case.inputs())
    measure(
        f"{shape.case}, forward + backward, {case.name}",
        partial(case.step, form),
        case.clear,
        tokens=case.tokens,
        saved_mib=kept,
    )
