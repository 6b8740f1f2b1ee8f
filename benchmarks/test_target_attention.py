"""The rungs of the ladder (`mixpol_models.bench.rungs`), each behind the correctness gate."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch

from mixpol_models.bench.gate import COMPILE_SLACK, check
from mixpol_models.bench.memory import saved_mib
from mixpol_models.bench.problem import make_problem
from mixpol_models.bench.rungs import RUNGS, Rung

FORMS = [
    pytest.param(rung, variant, id=f"{rung.name}, {variant}" if variant else rung.name)
    for rung in RUNGS.values()
    for variant in rung.variants
]


class Checked:
    """One shape with its exact answer; a unit is built and checked once, then reused."""

    def __init__(self, length: int) -> None:
        torch._dynamo.reset()
        self.problem = make_problem(length)
        self.shape = f"B=256 L={length} D=64 H=64 relu"
        self.exact = self.problem.exact()
        self.plain = self.problem.plain_errors(self.exact)
        self.units: dict[tuple[str, str], torch.nn.Module] = {}

    def unit(self, rung: Rung, variant: str) -> torch.nn.Module:
        key = rung.name, variant
        if key not in self.units:
            unit = rung.build(variant, self.problem.attention)
            if not rung.control:
                slack = COMPILE_SLACK if rung.compiled else 1.0
                check(rung.name, self.problem.answer(unit), self.exact, self.plain, slack)
            self.units[key] = unit
        return self.units[key]


@pytest.fixture(scope="module")
def checked(length: int) -> Checked:
    return Checked(length)


@pytest.mark.parametrize(("rung", "variant"), FORMS)
def test_forward_backward(
    benchmark: object, measure: Callable[..., None], checked: Checked, rung: Rung, variant: str
) -> None:
    unit, problem = checked.unit(rung, variant), checked.problem
    benchmark.extra_info["saved_mib"] = saved_mib(partial(problem.forward, unit), problem.inputs())
    measure(f"forward + backward, {checked.shape}", partial(problem.step, unit), problem.clear)


@pytest.mark.parametrize(("rung", "variant"), FORMS)
def test_forward(measure: Callable[..., None], checked: Checked, rung: Rung, variant: str) -> None:
    unit, problem = checked.unit(rung, variant), checked.problem
    with torch.no_grad():
        measure(f"forward, {checked.shape}", partial(problem.forward, unit), problem.clear)
