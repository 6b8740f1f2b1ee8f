"""The registered ops of `mixed_polarity_attention` and the autograd Function over them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mixpol_kernels.derivatives import first_order
from mixpol_kernels.history import canonical
from mixpol_kernels.ops.registry import LAYOUT, Arguments, declare, empty_as
from mixpol_kernels.ops.table_grad import table_grad
from mixpol_kernels.ops.target_attention.autograd import UNIT, UNIT_FORWARD, attention_shapes, parameter_shapes
from mixpol_kernels.ops.unit import split_parameters

_INPUTS = (
    "Tensor target, Tensor item_ids, Tensor? polarity, Tensor item_table, Tensor? polarity_table, Tensor sign,"
    f" Tensor[]{{}} gate, Tensor? extra_ids, Tensor? extra_table, {LAYOUT}, "
)


def _backward_shapes(a: Arguments) -> tuple[Any, ...]:
    return (
        empty_as(a.target, a.target),
        a.target.new_empty(*a.item_ids.shape, a.target.shape[-1], dtype=torch.float32),  # to be summed for each id
        empty_as(a.polarity_table, a.target),
        empty_as(a.extra_table, a.target),
        [g.new_empty(g.shape) for g in a.gate],
        parameter_shapes(a),
    )


FORWARD = declare(
    f"mixed_polarity_attention_fwd({_INPUTS.format('?')}{UNIT_FORWARD}, bool save_attention, bool save_bits)"
    " -> (Tensor pooled, Tensor attention, Tensor bits)",
    lambda a: attention_shapes(a, a.item_ids.shape),
    triton="mixed_polarity_attention.triton.launch:forward",
)
BACKWARD = declare(
    "mixed_polarity_attention_bwd(Tensor grad_pooled, Tensor? grad_attention, Tensor attention, Tensor bits,"
    f" {_INPUTS.format('')}{UNIT})"
    " -> (Tensor grad_target, Tensor grad_tokens, Tensor grad_polarity_table, Tensor grad_extra_table,"
    " Tensor[] grad_gate, Tensor[] grad_parameters)",
    _backward_shapes,
    triton="mixed_polarity_attention.triton.launch:backward",
)


def by_place(item_ids: Tensor | None, item_table: Tensor) -> tuple[Tensor, Tensor]:
    """Ids and table [V, D] as the kernels take them; of rows [N, D] or [B, L, D] without ids, each row by its place."""
    if item_ids is not None:
        return item_ids, item_table
    shape = item_table.shape[:-1]
    return torch.arange(math.prod(shape), device=item_table.device).view(shape), item_table.flatten(0, -2)


def as_read(item_ids: Tensor | None, item_table: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """`by_place`; a table of another dtype is not copied whole: its rows are looked up, and rounded.

    Ids outside the table are clamped, as in the Triton kernels.
    """
    if item_ids is None or item_table.dtype == dtype:
        return by_place(item_ids, item_table)
    rows = item_table[item_ids.reshape(-1).long().clamp(0, max(item_table.shape[0] - 1, 0))].to(dtype)
    return torch.arange(rows.shape[0], device=rows.device).view(item_ids.shape), rows


class MixedPolarityAttention(torch.autograd.Function):
    """The fused op. Saves its inputs, the attention weights, and bits where they pay; recomputes the rest.

    Without ids the table holds the rows of the tokens: `by_place`. Rows of a table of another dtype than the target's
    are rounded to it, in either direction anew: only the ids are kept.
    """

    @staticmethod
    def forward(
        ctx: Any,
        config: tuple[str, int, int, float, int, int, bool, bool, bool],
        target: Tensor,
        item_ids: Tensor | None,
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
        *parameters: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """`config`: backend, activation, normalize, dropout, layers, gate tensors, sparse, save_bits, whether weights
        have a gradient too.

        `parameters`: the gate, `layers` weights, `layers` biases, then slopes.
        """
        backend, activation, normalize, dropout, layers, gates, _, save_bits, with_attention = config
        ids, table = as_read(item_ids, item_table, target.dtype)
        pooled, attention, bits = FORWARD.of(backend)(
            target, ids, polarity, table, polarity_table, sign, list(parameters[:gates]), extra_ids, extra_table,
            *canonical(offsets, lengths, mask), *split_parameters(parameters[gates:], layers),
            activation, normalize, dropout, seed, True, save_bits,
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
    @first_order("mixed_polarity_attention")
    def backward(
        ctx: Any, saved: Sequence[Any], grad_pooled: Tensor, grad_attention: Tensor
    ) -> tuple[Tensor | None, ...]:
        target, item_ids, polarity, item_table, polarity_table, sign, extra_ids, extra_table, *rest = saved
        offsets, lengths, mask, seed, attention, bits, *parameters = rest
        backend, activation, normalize, dropout, layers, gates, sparse, _, with_attention = ctx.config
        ids, table = as_read(item_ids, item_table, target.dtype)
        where = canonical(offsets, lengths, mask)
        grad_target, grad_tokens, grad_table, grad_extra, grad_gate, grads = BACKWARD.of(backend)(
            grad_pooled, grad_attention if with_attention else None, attention, bits,
            target, ids, polarity, table, polarity_table, sign, parameters[:gates], extra_ids, extra_table,
            *where, *split_parameters(parameters[gates:], layers), activation, normalize, dropout, seed,
        )  # fmt: skip
        grad_items = None
        if ctx.needs_input_grad[4]:
            ids, table = by_place(item_ids, item_table)
            grad_items = table_grad(ids, grad_tokens, *where, table.shape[0], sparse, table.dtype, backend)
            grad_items = grad_items if item_ids is not None else grad_items.view(item_table.shape)
        grad_polarity = grad_table if polarity_table is not None else None
        grad_extra = grad_extra if extra_table is not None else None
        return (
            None, grad_target, None, None, grad_items, grad_polarity, None, None, grad_extra,
            *[None] * 4, *grad_gate, *grads,
        )  # fmt: skip
