"""The registered ops of `polarity_fusion` and the autograd Function over them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mixpol_kernels.derivatives import first_order
from mixpol_kernels.history import canonical
from mixpol_kernels.ops.registry import LAYOUT, declare, empty_as

_INPUTS = (
    "Tensor target, Tensor tokens, Tensor polarity, Tensor polarity_table, Tensor sign, Tensor[]{} gate,"
    f" Tensor? extra_ids, Tensor? extra_table, {LAYOUT}"
)
FORWARD = declare(
    f"polarity_fusion_fwd({_INPUTS.format('?')}) -> Tensor",
    lambda a: empty_as(a.tokens, a.tokens),
    triton="polarity_fusion.triton.launch:forward",
)
BACKWARD = declare(
    f"polarity_fusion_bwd(Tensor grad_fused, {_INPUTS.format('')})"
    " -> (Tensor grad_target, Tensor grad_tokens, Tensor grad_polarity_table, Tensor grad_extra_table,"
    " Tensor[] grad_gate)",
    lambda a: (
        *(empty_as(x, a.target) for x in (a.target, a.tokens, a.polarity_table, a.extra_table)),
        [g.new_empty(g.shape) for g in a.gate],
    ),
    triton="polarity_fusion.triton.launch:backward",
)


class PolarityFusion(torch.autograd.Function):
    """The compiled op, for "bias" (no gate) and "tapf". Saves its inputs only."""

    @staticmethod
    def forward(
        ctx: Any,
        backend: str,
        target: Tensor,
        tokens: Tensor,
        polarity: Tensor,
        polarity_table: Tensor,
        sign: Tensor,
        extra_ids: Tensor | None,
        extra_table: Tensor | None,
        offsets: Tensor | None,
        lengths: Tensor | None,
        mask: Tensor | None,
        *gate: Tensor,
    ) -> Tensor:
        ctx.backend = backend
        ctx.save_for_backward(
            target, tokens, polarity, polarity_table, sign, extra_ids, extra_table, offsets, lengths, mask, *gate
        )
        fused: Tensor = FORWARD.of(backend)(
            target, tokens, polarity, polarity_table, sign, list(gate) or None, extra_ids, extra_table,
            *canonical(offsets, lengths, mask),
        )  # fmt: skip
        return fused

    @staticmethod
    @first_order("polarity_fusion")
    def backward(ctx: Any, saved: Sequence[Any], grad_fused: Tensor) -> tuple[Tensor | None, ...]:
        target, tokens, polarity, polarity_table, sign, extra_ids, extra_table, *rest = saved
        offsets, lengths, mask, *gate = rest
        grad_target, grad_tokens, grad_table, grad_extra, grad_gate = BACKWARD.of(ctx.backend)(
            grad_fused, target, tokens, polarity, polarity_table, sign, gate, extra_ids, extra_table,
            *canonical(offsets, lengths, mask),
        )  # fmt: skip
        grad_extra = grad_extra if extra_table is not None else None
        return None, grad_target, grad_tokens, None, grad_table, None, None, grad_extra, *[None] * 3, *grad_gate
