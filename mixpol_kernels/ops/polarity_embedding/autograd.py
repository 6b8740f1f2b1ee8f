"""torch.library registration of `polarity_embedding`: schema, fake and the autograd Function over it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mixpol_kernels.history import canonical
from mixpol_kernels.library import define
from mixpol_kernels.ops.table_grad import table_grad

_LAYOUT = "Tensor? offsets, Tensor? lengths, Tensor? mask"
define(
    "polarity_embedding_fwd",
    f"(Tensor item_ids, Tensor polarity, Tensor item_table, Tensor polarity_table, {_LAYOUT}) -> Tensor",
)


@torch.library.register_fake("mixpol::polarity_embedding_fwd")
def _(
    item_ids: Tensor,
    polarity: Tensor,
    item_table: Tensor,
    polarity_table: Tensor,
    offsets: Tensor | None,
    lengths: Tensor | None,
    mask: Tensor | None,
) -> Tensor:
    return item_table.new_empty(*item_ids.shape, item_table.shape[1])


_fwd = torch.ops.mixpol.polarity_embedding_fwd.default


class PolarityEmbedding(torch.autograd.Function):
    """The compiled op. Saves its ids only."""

    @staticmethod
    def forward(
        ctx: Any,
        item_ids: Tensor,
        polarity: Tensor,
        item_table: Tensor,
        polarity_table: Tensor,
        offsets: Tensor | None,
        lengths: Tensor | None,
        mask: Tensor | None,
        sparse: bool,
    ) -> Tensor:
        ctx.save_for_backward(item_ids, polarity, offsets, lengths, mask)
        ctx.config = (item_table.shape[0], polarity_table.shape[0], sparse)
        tokens: Tensor = _fwd(item_ids, polarity, item_table, polarity_table, *canonical(offsets, lengths, mask))
        return tokens

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_tokens: Tensor) -> tuple[Tensor | None, ...]:
        item_ids, polarity, offsets, lengths, mask = ctx.saved_tensors
        items, polarities, sparse = ctx.config
        _, _, item_grad, polarity_grad = ctx.needs_input_grad[:4]
        return (
            None,
            None,
            table_grad(item_ids, grad_tokens, *canonical(offsets, lengths, mask), items, sparse) if item_grad else None,
            table_grad(polarity, grad_tokens, *canonical(offsets, lengths, mask), polarities, False)
            if polarity_grad
            else None,
            *[None] * 4,
        )
