"""M candidates over one history: the fused op, M separate calls of it, and the broadcast that models write."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from mixpol_kernels.nn import TargetAttention
from mixpol_models.bench.gate import budget, largest_error
from mixpol_models.bench.implementations import Concat
from mixpol_models.bench.padding import pad_right

CANDIDATES, WIDTH, USERS = 100, 64, 2


class Problem:
    """`USERS` full histories and `CANDIDATES` targets each."""

    def __init__(self, length: int) -> None:
        torch.manual_seed(0)
        self.unit = TargetAttention(WIDTH, [64], backend="cpu")
        self.target = torch.randn(USERS, CANDIDATES, WIDTH)
        self.history = torch.randn(USERS, length, WIDTH)
        exact = copy.deepcopy(self.unit).double()
        self.exact = broadcast(exact, self.target.double(), self.history.double()).detach()
        self.plain = largest_error(broadcast(self.unit, self.target, self.history), self.exact)


def broadcast(unit: TargetAttention, target: Tensor, history: Tensor) -> Tensor:
    """[B, M, L, 4 D] written out; a user at a time, or it would not fit."""
    (_, candidates, _), (_, length, _) = target.shape, history.shape
    form, padding = Concat(unit), pad_right(torch.full((candidates,), length), length)
    return torch.stack([form(t, x.expand(candidates, -1, -1), padding) for t, x in zip(target, history, strict=True)])


def separate(unit: TargetAttention, target: Tensor, history: Tensor) -> Tensor:
    """One call a candidate."""
    return torch.stack([unit(target[:, m], history) for m in range(target.shape[1])], dim=1)


def fused(unit: TargetAttention, target: Tensor, history: Tensor) -> Tensor:
    """One call."""
    pooled: Tensor = unit(target, history)
    return pooled


@pytest.fixture(scope="module")
def problem(length: int) -> Problem:
    return Problem(length)


@pytest.mark.parametrize("form", [fused, separate, broadcast], ids=lambda form: form.__name__)
def test_forward(measure: Callable[..., None], problem: Problem, form: Callable[..., Tensor], length: int) -> None:
    with torch.no_grad():
        error = largest_error(form(problem.unit, problem.target, problem.history), problem.exact)
        assert error <= budget("output", problem.plain, problem.exact)
        measure(
            f"forward, B={USERS} M={CANDIDATES} L={length} D={WIDTH} H=64 relu",
            lambda: form(problem.unit, problem.target, problem.history),
            lambda: None,
        )
