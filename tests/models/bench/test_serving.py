"""`benchmarks/serving.py`: every form is right before it is timed, exported ones too."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from bench_scripts import load
from torch import Tensor


@pytest.fixture(scope="module")
def serving() -> ModuleType:
    return load("serving")


@pytest.mark.slow
def test_forms(serving: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fused form is exported in earnest; the others would take half a minute."""
    export = serving.exported
    monkeypatch.setattr(serving, "exported", lambda module: export(module) if type(module) is serving.Fused else module)
    with torch.no_grad():
        found = serving.measure(2, 9, seconds=0.01)
    assert {name.removesuffix(", exported") for name in found} == {"fused", "concat", "refactored"}
    assert len(found) == 6
    assert all(seconds > 0 for seconds in found.values())


def test_a_wrong_form_is_refused(serving: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "exported", lambda module: lambda *given: _off(module(*given)))
    with torch.no_grad(), pytest.raises(RuntimeError, match="the error of fused, exported is"):
        serving.measure(2, 9, seconds=0.01)


def _off(pooled: Tensor) -> Tensor:
    return pooled * 1.001
