"""Contract 5 in the Triton kernels: whatever parameters and an empty history's target hold, it has zeros."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import dot_cases
import pytest
import torch

from mixpol_kernels.testing.inputs import Config, make

FORMS: dict[str, Any] = {
    "fusion": Config(op="polarity_fusion", gate_inputs="full"),
    "unit": Config(op="target_attention", layout="lengths"),
    "mixed": Config(layout="mask_left"),
    "dot": dot_cases.Config(heads=2),
}


@pytest.mark.parametrize("form", FORMS)
def test_an_empty_history(form: str, generator: torch.Generator) -> None:
    config = replace(FORMS[form], counts=(3, 0, 2), width=16)
    case = (dot_cases.make if form == "dot" else make)(config, generator)
    where = case.place(generator)
    plain = case.run("triton", where)
    for name in case.floats:
        if name == "target":
            value = case.floats[name].clone()
            value[1] = torch.nan
        elif name.startswith(("w_", "gate[2]", "weights[0]")):
            value = torch.full_like(case.floats[name], torch.nan)
        else:
            continue
        results = replace(case, floats={**case.floats, name: value}).run("triton", where)
        assert not results["grad target"][1].count_nonzero(), name
        if form != "fusion":
            assert not results["out"][1].count_nonzero(), name
        if name == "target":
            for result, found in results.items():
                torch.testing.assert_close(found, plain[result], rtol=1e-5, atol=1e-6)
