"""torch.library registration of `mixed_polarity_attention`: schemas, fakes and the autograd Function."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mixpol_kernels.derivatives import first_order
from mixpol_kernels.history import canonical
from mixpol_kernels.library import INTERPRETING, NAMESPACE, TRITON, define, may_be_empty
from mixpol_kernels.ops.table_grad import table_grad
from mixpol_kernels.ops.target_attention.autograd import fake_outputs, split_parameters

_INPUTS = (
    "Tensor target, Tensor item_ids, Tensor? polarity, Tensor item_table, Tensor? polarity_table, Tensor sign,"
    " Tensor[] gate, Tensor? extra_ids, Tensor? extra_table, Tensor? offsets, Tensor? lengths, Tensor? mask,"
    " Tensor[] weights, Tensor[] biases, Tensor[] slopes, int activation, int normalize,"
    " float dropout, Tensor? seed"
)
_SCHEMAS = {
    "mixed_polarity_attention_fwd": f"({may_be_empty(_INPUTS, 'gate', 'slopes')}, bool save_attention, bool save_bits)"
    " -> (Tensor pooled, Tensor attention, Tensor bits)",
    "mixed_polarity_attention_bwd": "(Tensor grad_pooled, Tensor? grad_attention, Tensor attention, Tensor bits,"
    f" {_INPUTS})"
    " -> (Tensor grad_target, Tensor grad_tokens, Tensor grad_polarity_table, Tensor grad_extra_table,"
    " Tensor[] grad_gate, Tensor[] grad_parameters)",
}
for _name, _schema in _SCHEMAS.items():
    define(_name, _schema)


def _fake_forward(
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
    return fake_outputs(target, item_ids.shape, weights[-2].shape[0], save_attention, save_bits)


def _fake_backward(
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


def _triton_forward(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    from mixpol_kernels.ops.mixed_polarity_attention.triton import launch

    return launch.forward(*args)


def _triton_backward(*args: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, list[Tensor], list[Tensor]]:
    from mixpol_kernels.ops.mixed_polarity_attention.triton import launch

    return launch.backward(*args)


_IMPLEMENTATIONS = {
    "mixed_polarity_attention_fwd": (_fake_forward, _triton_forward),
    "mixed_polarity_attention_bwd": (_fake_backward, _triton_backward),
}
for _name, (_fake, _triton) in _IMPLEMENTATIONS.items():
    torch.library.register_fake(f"{NAMESPACE}::{_name}")(_fake)
    torch.library.define(f"{TRITON}::{_name}", _SCHEMAS[_name])
    torch.library.register_fake(f"{TRITON}::{_name}")(_fake)
    torch.library.impl(f"{TRITON}::{_name}", ("cuda", "cpu") if INTERPRETING else "cuda")(_triton)


def ops(triton: bool) -> tuple[Any, Any]:
    """The ops of both directions: the compiled ones, or those of the Triton kernels."""
    found = torch.ops.mixpol_triton if triton else torch.ops.mixpol
    return found.mixed_polarity_attention_fwd.default, found.mixed_polarity_attention_bwd.default


def by_place(item_ids: Tensor | None, item_table: Tensor) -> tuple[Tensor, Tensor]:
    """Ids and table [V, D] as the kernels take them; of rows [N, D] or [B, L, D] without ids, each row by its place."""
    if item_ids is not None:
        return item_ids, item_table
    shape = item_table.shape[:-1]
    return torch.arange(math.prod(shape), device=item_table.device).view(shape), item_table.flatten(0, -2)


class MixedPolarityAttention(torch.autograd.Function):
    """The fused op. Saves its inputs, the attention weights, and bits where they pay; recomputes the rest.

    Without ids the table holds the rows of the tokens: `by_place`.
    """

    @staticmethod
    def forward(
        ctx: Any,
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
        config: tuple[int, int, float, int, int, bool, bool, bool, bool],
        *parameters: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """`config`: activation, normalize, dropout, layers, gate tensors, sparse, save_bits, whether weights have a
        gradient too, whether the Triton kernels run.

        `parameters`: the gate, `layers` weights, `layers` biases, then slopes.
        """
        activation, normalize, dropout, layers, gates, _, save_bits, with_attention, triton = config
        gate = list(parameters[:gates])
        weights, biases, slopes = split_parameters(parameters[gates:], layers)
        ids, table = by_place(item_ids, item_table)
        pooled, attention, bits = ops(triton)[0](
            target, ids, polarity, table, polarity_table, sign, gate,
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
    @first_order("mixed_polarity_attention")
    def backward(
        ctx: Any, saved: Sequence[Any], grad_pooled: Tensor, grad_attention: Tensor
    ) -> tuple[Tensor | None, ...]:
        target, item_ids, polarity, item_table, polarity_table, sign, extra_ids, extra_table, *rest = saved
        offsets, lengths, mask, seed, attention, bits, *parameters = rest
        activation, normalize, dropout, layers, gates, sparse, _, with_attention, triton = ctx.config
        weights, biases, slopes = split_parameters(parameters[gates:], layers)
        ids, table = by_place(item_ids, item_table)
        grad_target, grad_tokens, grad_table, grad_extra, grad_gate, grads = ops(triton)[1](
            grad_pooled, grad_attention if with_attention else None, attention, bits,
            target, ids, polarity, table, polarity_table, sign,
            parameters[:gates], extra_ids, extra_table,
            *canonical(offsets, lengths, mask), weights, biases, slopes, activation, normalize,
            dropout, seed,
        )  # fmt: skip
        grad_items = None
        if ctx.needs_input_grad[3]:
            where = canonical(offsets, lengths, mask)
            grad_items = table_grad(ids, grad_tokens, *where, table.shape[0], sparse, table.dtype, triton)
            grad_items = grad_items if item_ids is not None else grad_items.view(item_table.shape)
        grad_polarity = grad_table if polarity_table is not None else None
        grad_extra = grad_extra if extra_table is not None else None
        return (
            grad_target, None, None, grad_items, grad_polarity, None, None, grad_extra,
            *[None] * 5, *grad_gate, *grads,
        )  # fmt: skip
