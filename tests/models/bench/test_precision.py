"""`benchmarks/precision.py`: both precisions are right before they are timed."""

from __future__ import annotations

import math
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
import torch
from bench_scripts import load

from mixpol_kernels.ops.target_attention import autograd


@pytest.fixture(scope="module")
def precision() -> ModuleType:
    return load("precision")


def test_measures(precision: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "TOKENS", 100)
    precision.check((9,), 5)
    assert all(0 < quotient < math.inf for quotient in precision.measure((9,), 20, seconds=0.01))


def test_a_wrong_kernel_is_refused(precision: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    right = autograd.FORWARD

    def off(*given: Any) -> Any:
        pooled, *rest = right.compiled(*given)
        return pooled * (1 + 8 * torch.finfo(pooled.dtype).eps), *rest

    monkeypatch.setattr(autograd, "FORWARD", replace(right, compiled=off))
    monkeypatch.setattr("mixpol_kernels.testing.budget.worst", {})  # the summary's are of kernels that are right
    with pytest.raises(RuntimeError, match=r"out: mean error .* times the budget"):
        precision.check((9,), 5)
