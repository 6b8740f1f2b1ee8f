"""Refusals of the Triton kernels; imports no triton."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from mixpol_kernels.ops.polarity_fusion.triton import support as fusion
from mixpol_kernels.ops.target_attention.triton import support as attention


def refusal(
    target: Tensor,
    polarity_table: Tensor | None,
    extra_table: Tensor | None,
    weights: Sequence[Tensor],
    activation: str,
    dropout: float,
) -> str:
    """Why the kernels cannot take these sizes on the target's device; empty if they can."""
    return fusion.refusal(target, polarity_table, extra_table) or attention.refusal(
        target, weights, activation, dropout
    )
