"""What `mixpol tune` runs: each kernel on its trial inputs, small, and that a wrong kernel is refused."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from mixpol_models.bench import tune_trial
from mixpol_models.bench.gate import GateError
from mixpol_models.bench.gpu_problems import Size
from mixpol_models.bench.tune import Entry, Trial

CPU = torch.device("cpu")
ENTRIES = [
    Entry("target_attention", "backward/half/64:64x32x16"),
    Entry("target_attention", "forward/float32/64:64"),
    Entry("dot_target_attention", "backward/float32/64"),
    Entry("polarity_fusion", "backward/half/64"),
]


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda e: f"{e.op}/{e.name}")
def test_a_trial_is_right(entry: Entry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune_trial, "seconds_of", lambda call, device, budget: (call(), 0.5)[1])
    trial = Trial(entry, Size(users=3, length=20), CPU)
    trial.check()
    assert trial.seconds() == 0.5


def test_wrong_numbers_are_refused() -> None:
    trial = Trial(Entry("dot_target_attention", "forward/float32/64"), Size(users=3, length=20), CPU)
    right = trial.checked.call
    trial.checked = dataclasses.replace(
        trial.checked, call=lambda *given: right(*given) * (1.001 if given[-1] == "triton" else 1)
    )
    with pytest.raises(GateError, match="error of output is"):
        trial.check()
