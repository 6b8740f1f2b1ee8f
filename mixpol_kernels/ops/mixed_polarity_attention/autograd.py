"""torch.library registration of `mixed_polarity_attention`: schemas, fakes and the autograd Function."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mixpol_kernels.history import canonical
from mixpol_kernels.library import define, may_be_empty
from mixpol_kernels.ops.table_grad import table_grad
from mixpol_kernels.ops.target_attention.autograd import fake_outputs, split_parameters

_INPUTS = (
    "Tensor target, Tensor item_ids, Tensor? polarity, Tensor item_table, Tensor? polarity_table, Tensor sign,"
    " Tensor[] gate, Tensor? extra_ids, Tensor? extra_table, Tensor? offsets, Tensor? lengths, Tensor? mask,"
    " Tensor[] weights, Tensor[] biases, Tensor[] slopes, int activation, int normalize,"
    " float dropout, Tensor? seed"
)
define(
    "mixed_polarity_attention_fwd",
    f"({may_be_empty(_INPUTS, 'gate', 'slopes')}, bool save_attention, bool save_bits)"
    " -> (Tensor pooled, Tensor attention, Tensor bits)",
)
define(
    "mixed_polarity_attention_bwd",
    f"(Tensor grad_pooled, Tensor? grad_attention, Tensor attention, Tensor bits, {_INPUTS})"
    " -> (Tensor grad_target, Tensor grad_tokens, Tensor grad_polarity_table, Tensor grad_extra_table,"
    " Tensor[] grad_gate, Tensor[] grad_parameters)",
)


@torch.library.register_fake("mixpol::mixed_polarity_attention_fwd")
def _(
    target: Tensor,
    item_ids: Tensor,
    polarity: Tensor | None,
    item_table: Tensor,
    polarity_table: Tensor | None,
    sign: Tensor,
    gate: list[Tensor] | None,
    extra_ids: Tensor | None,
    extra_table: Tensor | None,
    offsets: Tensor | None,
    lengths: Tensor | None,
    mask: Tensor | None,
    weights: list[Tensor],
    biases: list[Tensor],
    slopes: list[Tensor] | None,
    activation: int,
    normalize: int,
    dropout: float,
    seed: Tensor | None,
    save_attention: bool,
    save_bits: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return fake_outputs(target, item_ids.shape, weights[0].shape[0], save_attention, save_bits)


@torch.library.register_fake("mixpol::mixed_polarity_attention_bwd")
def _(
    grad_pooled: Tensor,
    grad_attention: Tensor | None,
    attention: Tensor,
    bits: Tensor,
    target: Tensor,
    item_ids: Tensor,
    polarity: Tensor | None,
    item_table: Tensor,
    polarity_table: Tensor | None,
    sign: Tensor,
    gate: list[Tensor],
    extra_ids: Tensor | None,
    extra_table: Tensor | None,
    offsets: Tensor | None,
    lengths: Tensor | None,
    mask: Tensor | None,
    weights: list[Tensor],
    biases: list[Tensor],
    slopes: list[Tensor],
    activation: int,
    normalize: int,
    dropout: float,
    seed: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, list[Tensor], list[Tensor]]:
    return (
        target.new_empty(target.shape),
        target.new_empty(*item_ids.shape, target.shape[-1], dtype=torch.float32),  # to be summed for each id
        target.new_empty(polarity_table.shape if polarity_table is not None else (0,)),
        target.new_empty(extra_table.shape if extra_table is not None else (0,)),
        [g.new_empty(g.shape) for g in gate],
        [p.new_empty(p.shape) for p in (*weights, *biases, *slopes)],
    )


forward = torch.ops.mixpol.mixed_polarity_attention_fwd.default
_bwd = torch.ops.mixpol.mixed_polarity_attention_bwd.default


class MixedPolarityAttention(torch.autograd.Function):
    """The fused op. Saves its inputs, the attention weights, and bits where they pay; recomputes the rest."""

    @staticmethod
    def forward(
        ctx: Any,
        target: Tensor,
        item_ids: Tensor,
        polarity: Tensor | None,
        item_table: Tensor,
        polarity_table: Tensor | None,
        sign: Tensor,
        extra_ids: Tensor | None,
        extra_table: Tensor | None,
        offsets: Tensor | None,
        lengths: Tensor | None,
        mask: Tensor | None,
        seed: Tensor | None,
        config: tuple[int, int, float, int, int, bool, bool, bool],
        *parameters: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """`config`: activation, normalize, dropout, layers, gate tensors, sparse, save_bits, whether weights have one.

        `parameters`: the gate, `layers` weights, `layers` biases, then slopes.
        """
        activation, normalize, dropout, layers, gates, _, save_bits, with_attention = config
        gate = list(parameters[:gates])
        weights, biases, slopes = split_parameters(parameters[gates:], layers)
        pooled, attention, bits = forward(
            target, item_ids, polarity, item_table, polarity_table, sign, gate,
            extra_ids, extra_table,
            *canonical(offsets, lengths, mask), weights, biases, slopes, activation, normalize, dropout, seed,
            True, save_bits,
        )  # fmt: skip
        ctx.save_for_backward(
            target, item_ids, polarity, item_table, polarity_table, sign, extra_ids, extra_table,
            offsets, lengths, mask, seed, attention, bits, *parameters,
        )  # fmt: skip
        ctx.config = config
        if not with_attention:
            ctx.mark_non_differentiable(attention)
        return pooled, attention

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_pooled: Tensor, grad_attention: Tensor) -> tuple[Tensor | None, ...]:
        target, item_ids, polarity, item_table, polarity_table, sign, extra_ids, extra_table, *rest = ctx.saved_tensors
        offsets, lengths, mask, seed, attention, bits, *parameters = rest
        activation, normalize, dropout, layers, gates, sparse, _, with_attention = ctx.config
        weights, biases, slopes = split_parameters(parameters[gates:], layers)
        grad_target, grad_tokens, grad_table, grad_extra, grad_gate, grads = _bwd(
            grad_pooled, grad_attention if with_attention else None, attention, bits,
            target, item_ids, polarity, item_table, polarity_table, sign,
            parameters[:gates], extra_ids, extra_table,
            *canonical(offsets, lengths, mask), weights, biases, slopes, activation, normalize,
            dropout, seed,
        )  # fmt: skip
        grad_items = None
        if ctx.needs_input_grad[3]:
            grad_items = table_grad(
                item_ids,
                grad_tokens,
                *canonical(offsets, lengths, mask),
                item_table.shape[0],
                sparse,
                item_table.dtype,
            )
        grad_polarity = grad_table if polarity_table is not None else None
        grad_extra = grad_extra if extra_table is not None else None
        return (
            grad_target, None, None, grad_items, grad_polarity, None, None, grad_extra,
            *[None] * 5, *grad_gate, *grads,
        )  # fmt: skip
