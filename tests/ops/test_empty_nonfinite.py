"""Contract 5 beside contract 6: an empty history gives zeros and zero gradients, whatever the parameters hold."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import dot_cases
import pytest
import statistics_cases
import torch
from torch import Tensor

from mixpol_kernels.ops.target_attention._dice.api import dice_attention
from mixpol_kernels.testing.inputs import Config, make

FORMS: dict[str, Any] = {
    "fusion": Config(op="polarity_fusion", layout="mask_left"),
    "fusion, full gate": Config(op="polarity_fusion", gate_inputs="full", n_extra=3),
    "unit": Config(op="target_attention"),
    "unit, recomputed": Config(op="target_attention", hidden=(8, 5), activation="prelu", layout="lengths"),
    "unit, softmax": Config(op="target_attention", activation="dice_row", normalize="softmax", candidates=3),
    "mixed": Config(layout="mask_left"),
    "mixed, full gate": Config(gate_inputs="full", n_extra=3, candidates=2, normalize="softmax"),
    "statistics": statistics_cases.Config(layout="mask_holes"),
    "dot": dot_cases.Config(layout="mask_left"),
    "dot, many candidates": dot_cases.Config(heads=2, candidates=40),
    "dot, heads": dot_cases.Config(heads=2, candidates=2, layout="lengths"),
    "dot, one-sided": dot_cases.Config(only=("w_k",), attention=16),
    "dot, values": dot_cases.Config(only=("w_v",)),
    "dot, ends": dot_cases.Config(only=("w_q", "w_o"), attention=16, top_k=2, layout="lengths"),
}
MAKERS = {"dot_target_attention": dot_cases.make, "unit_statistics": statistics_cases.make}
BY_TOKEN = ("tokens", "history", "item_table", "polarity_table", "extra_table")


def spoilt(tensor: Tensor, value: float) -> Tensor:
    tensor = tensor.clone()
    tensor.view(-1)[::3] = value
    return tensor


@pytest.mark.parametrize("form", FORMS)
def test_parameters(form: str, backend: str, generator: torch.Generator) -> None:
    """All users empty: no gradient at all. One empty among others: nothing of the parameter reaches it."""
    for counts, value in itertools.product(((0, 0), (3, 0, 2)), (torch.nan, torch.inf)):
        config = replace(FORMS[form], counts=counts)
        case = MAKERS.get(config.op, make)(config, generator)
        padded = config.layout not in ("jagged", "full")
        where = case.place(generator, length=max(counts) + 2 if padded else None)
        for name in case.floats:
            if name in (*BY_TOKEN, "target"):
                continue
            sick = replace(case, floats={**case.floats, name: spoilt(case.floats[name], value)})
            results = sick.run(backend, where)
            with torch.no_grad():
                out = sick.call(sick.arguments(where), backend)
            if not any(counts):
                for result, found in results.items():
                    assert not found.count_nonzero(), (name, value, result)
                assert not out.count_nonzero(), (name, value, "out without gradients")
                continue
            assert not results["grad target"][1].count_nonzero(), (name, value)
            if config.op not in ("polarity_fusion", "unit_statistics"):
                assert not results["out"][1].count_nonzero(), (name, value)
                assert not out[1].count_nonzero(), (name, value, "out without gradients")


@pytest.mark.parametrize("form", FORMS)
def test_target(form: str, backend: str, generator: torch.Generator) -> None:
    """The target of an empty history reaches no output and no gradient: all are as with another target there."""
    config = replace(FORMS[form], counts=(3, 0, 2))
    case = MAKERS.get(config.op, make)(config, generator)
    where = case.place(generator)
    plain = case.run(backend, where)
    for value in (torch.nan, torch.inf):
        target = case.floats["target"].clone()
        target[1] = value
        sick = replace(case, floats={**case.floats, "target": target})
        for name, found in sick.run(backend, where).items():
            torch.testing.assert_close(found, plain[name], rtol=1e-5, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


def test_dice(backend: str, generator: torch.Generator) -> None:
    """With its statistics of the batch, which without pads an empty history is not part of."""
    shapes = (3, 8), (5, 8), (6, 32), (1, 6), (6,), (1,), (6,)
    offsets = torch.tensor([0, 3, 3, 5])
    leaves = [torch.randn(shape, generator=generator, requires_grad=True) for shape in shapes]

    def gradients(value: float | None, pad_to: int | None = None) -> list[Tensor]:
        fresh = [t.detach().clone() for t in leaves]
        if value is not None:
            fresh[0][1] = value
        target, history, w0, w1, b0, b1, alpha = (t.requires_grad_() for t in fresh)
        found = dice_attention(
            target, history, [w0, w1], [b0, b1], alpha, offsets=offsets, pad_to=pad_to, backend=backend
        )
        found.pooled.sum().backward()
        return [found.pooled.detach(), *(t.grad for t in fresh)]  # type: ignore[misc]

    plain = gradients(None)
    assert not plain[1][1].count_nonzero()
    for got, expected in zip(gradients(torch.nan), plain, strict=True):
        torch.testing.assert_close(got, expected)
    assert gradients(None, pad_to=4)[1][1].all(), "zero tokens of an empty history meet its target"
