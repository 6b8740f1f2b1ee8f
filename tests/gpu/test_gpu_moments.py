"""Batch statistics, and Dice in training, on the GPU."""

from __future__ import annotations

from typing import Any

import pytest
import statistics_cases
import torch
from on_gpu import check, there
from torch import Tensor

from mixpol_kernels.ops.target_attention._dice.api import dice_attention

COUNTS = (35, 0, 7, 132, 18, 3)
STATISTICS: dict[str, dict[str, Any]] = {
    "padded": {"pads": 3, "hidden": (36,)},
    "two layers": {"hidden": (80, 40), "activation": "dice_row", "layout": "mask_holes", "candidates": 2},
    "dropout": {"hidden": (20, 9), "dropout": 0.3},
}


@pytest.mark.parametrize("name", STATISTICS)
def test_statistics(name: str, generator: torch.Generator) -> None:
    case = statistics_cases.make(statistics_cases.Config(counts=COUNTS, **STATISTICS[name]), generator)
    check(case, "triton", generator)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("units", [64, 200])
def test_dice(units: int, dtype: torch.dtype, generator: torch.Generator) -> None:
    """Padded rows counted, against the reference in float64 on the CPU."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    width = 64
    given = [
        normal(len(COUNTS), width), normal(sum(COUNTS), width), normal(units, 4 * width) / 2 / width**0.5,
        normal(1, units) / units**0.5, normal(units), normal(1), normal(units), normal(units), normal(units),
    ]  # fmt: skip
    offsets = torch.tensor([0, *COUNTS]).cumsum(0)

    def run(backend: str, kind: torch.dtype) -> list[Tensor]:
        leaves = [tensor.to(dtype).to(kind).requires_grad_() for tensor in given]
        target, history, hidden, output, bias, out_bias, alpha, scale, shift = (
            there(leaves) if backend == "triton" else leaves
        )
        found = dice_attention(
            target, history, [hidden, output], [bias, out_bias], alpha, norm_weight=scale, norm_bias=shift, pad_to=140,
            normalize="softmax", offsets=offsets.to(target.device), backend=backend,
        )  # fmt: skip
        found.pooled.sum().backward()
        grads = [leaf.grad for i, leaf in enumerate(leaves) if i != 5]  # a softmax does not feel the output bias
        return [t.detach().cpu().double() for t in (found.pooled, found.mean, found.variance, *grads)]

    ours, plain, exact = run("triton", dtype), run("reference", dtype), run("reference", torch.float64)
    for got, other, want in zip(ours, plain, exact, strict=True):
        errors = [float((t - want).abs().max() / want.abs().max()) for t in (got, other)]
        assert errors[0] <= 5 * errors[1] + 16 * torch.finfo(dtype).eps, errors
