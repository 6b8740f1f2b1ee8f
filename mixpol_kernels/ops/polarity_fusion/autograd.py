"""torch.library registration of `polarity_fusion`: schemas, fakes and the autograd Function over them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mixpol_kernels.derivatives import first_order
from mixpol_kernels.history import canonical
from mixpol_kernels.library import INTERPRETING, NAMESPACE, TRITON, define, may_be_empty

FUSIONS = ("none", "bias", "tapf")
GATE_INPUTS = ("product", "full")

_INPUTS = (
    "Tensor target, Tensor tokens, Tensor polarity, Tensor polarity_table, Tensor sign, Tensor[] gate,"
    " Tensor? extra_ids, Tensor? extra_table, Tensor? offsets, Tensor? lengths, Tensor? mask"
)
_SCHEMAS = {
    "polarity_fusion_fwd": f"({may_be_empty(_INPUTS, 'gate')}) -> Tensor",
    "polarity_fusion_bwd": f"(Tensor grad_fused, {_INPUTS})"
    " -> (Tensor grad_target, Tensor grad_tokens, Tensor grad_polarity_table, Tensor grad_extra_table,"
    " Tensor[] grad_gate)",
}
for _name, _schema in _SCHEMAS.items():
    define(_name, _schema)


def _fake_forward(
    target: Tensor,
    tokens: Tensor,
    polarity: Tensor,
    polarity_table: Tensor,
    sign: Tensor,
    gate: list[Tensor] | None,
    extra_ids: Tensor | None,
    extra_table: Tensor | None,
    offsets: Tensor | None,
    lengths: Tensor | None,
    mask: Tensor | None,
) -> Tensor:
    return tokens.new_empty(tokens.shape)


def _fake_backward(
    grad_fused: Tensor,
    target: Tensor,
    tokens: Tensor,
    polarity: Tensor,
    polarity_table: Tensor,
    sign: Tensor,
    gate: list[Tensor],
    extra_ids: Tensor | None,
    extra_table: Tensor | None,
    offsets: Tensor | None,
    lengths: Tensor | None,
    mask: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, list[Tensor]]:
    return (
        target.new_empty(target.shape),
        tokens.new_empty(tokens.shape),
        polarity_table.new_empty(polarity_table.shape),
        target.new_empty(extra_table.shape if extra_table is not None else (0,)),
        [g.new_empty(g.shape) for g in gate],
    )


def _triton_forward(*args: Any) -> Tensor:
    from mixpol_kernels.ops.polarity_fusion.triton import launch

    return launch.forward(*args)


def _triton_backward(*args: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, list[Tensor]]:
    from mixpol_kernels.ops.polarity_fusion.triton import launch

    return launch.backward(*args)


_IMPLEMENTATIONS = {
    "polarity_fusion_fwd": (_fake_forward, _triton_forward),
    "polarity_fusion_bwd": (_fake_backward, _triton_backward),
}
for _name, (_fake, _triton) in _IMPLEMENTATIONS.items():
    torch.library.register_fake(f"{NAMESPACE}::{_name}")(_fake)
    torch.library.define(f"{TRITON}::{_name}", _SCHEMAS[_name])
    torch.library.register_fake(f"{TRITON}::{_name}")(_fake)
    torch.library.impl(f"{TRITON}::{_name}", ("cuda", "cpu") if INTERPRETING else "cuda")(_triton)

_fwd = torch.ops.mixpol.polarity_fusion_fwd.default
_bwd = torch.ops.mixpol.polarity_fusion_bwd.default


def ops(triton: bool) -> tuple[Any, Any]:
    """The ops of both directions: the compiled ones, or those of the Triton kernels."""
    if not triton:
        return _fwd, _bwd
    others = torch.ops.mixpol_triton
    return others.polarity_fusion_fwd.default, others.polarity_fusion_bwd.default


class PolarityFusion(torch.autograd.Function):
    """The compiled op, for "bias" (no gate) and "tapf". Saves its inputs only."""

    @staticmethod
    def forward(
        ctx: Any,
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
        triton: bool,
        *gate: Tensor,
    ) -> Tensor:
        ctx.triton = triton
        ctx.save_for_backward(
            target, tokens, polarity, polarity_table, sign, extra_ids, extra_table, offsets, lengths, mask, *gate
        )
        fused: Tensor = ops(triton)[0](
            target, tokens, polarity, polarity_table, sign, list(gate) or None, extra_ids, extra_table,
            *canonical(offsets, lengths, mask),
        )  # fmt: skip
        return fused

    @staticmethod
    @first_order("polarity_fusion")
    def backward(ctx: Any, saved: Sequence[Any], grad_fused: Tensor) -> tuple[Tensor | None, ...]:
        target, tokens, polarity, polarity_table, sign, extra_ids, extra_table, *rest = saved
        offsets, lengths, mask, *gate = rest
        grad_target, grad_tokens, grad_table, grad_extra, grad_gate = ops(ctx.triton)[1](
            grad_fused, target, tokens, polarity, polarity_table, sign, gate, extra_ids, extra_table,
            *canonical(offsets, lengths, mask),
        )  # fmt: skip
        grad_extra = grad_extra if extra_table is not None else None
        return grad_target, grad_tokens, None, grad_table, None, None, grad_extra, *[None] * 4, *grad_gate
