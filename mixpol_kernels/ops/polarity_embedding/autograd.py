"""The registered op of `polarity_embedding` and the autograd Function over it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mixpol_kernels.derivatives import first_order
from mixpol_kernels.history import canonical
from mixpol_kernels.ops.registry import LAYOUT, declare
from mixpol_kernels.ops.table_grad import table_grad

FORWARD = declare(
    "polarity_embedding_fwd(Tensor item_ids, Tensor polarity, Tensor item_table, Tensor polarity_table,"
    f" Tensor? extra_ids, Tensor? extra_table, {LAYOUT}) -> Tensor",
    lambda a: a.item_table.new_empty(*a.item_ids.shape, a.item_table.shape[1]),
    triton="polarity_embedding.triton.launch:forward",
)


class PolarityEmbedding(torch.autograd.Function):
    """The fused op. Saves its ids only."""

    @staticmethod
    def forward(
        ctx: Any,
        backend: str,
        item_ids: Tensor,
        polarity: Tensor,
        item_table: Tensor,
        polarity_table: Tensor,
        extra_ids: Tensor | None,
        extra_table: Tensor | None,
        offsets: Tensor | None,
        lengths: Tensor | None,
        mask: Tensor | None,
        sparse: bool,
    ) -> Tensor:
        ctx.save_for_backward(item_ids, polarity, extra_ids, offsets, lengths, mask)
        extras = 0 if extra_table is None else extra_table.shape[0]
        ctx.config = (item_table.shape[0], polarity_table.shape[0], extras, sparse)
        ctx.backend, ctx.dtype = backend, item_table.dtype
        tokens: Tensor = FORWARD.of(backend)(
            item_ids, polarity, item_table, polarity_table, extra_ids, extra_table, *canonical(offsets, lengths, mask)
        )
        return tokens

    @staticmethod
    @first_order("polarity_embedding")
    def backward(ctx: Any, saved: Sequence[Any], grad_tokens: Tensor) -> tuple[Tensor | None, ...]:
        item_ids, polarity, extra_ids, offsets, lengths, mask = saved
        items, polarities, extras, sparse = ctx.config
        _, _, _, item_grad, polarity_grad, _, extra_grad = ctx.needs_input_grad[:7]
        where = canonical(offsets, lengths, mask)

        def of(ids: Tensor, rows: int, sparse: bool = False) -> Tensor:
            return table_grad(ids, grad_tokens, *where, rows, sparse, ctx.dtype, ctx.backend)

        return (
            None,
            None,
            None,
            of(item_ids, items, sparse) if item_grad else None,
            of(polarity, polarities) if polarity_grad else None,
            None,
            of(extra_ids, extras) if extra_grad else None,
            *[None] * 4,
        )
