"""torch.library registration of the attention of query rows over raw tokens, and its autograd Function."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mixpol_kernels.history import canonical
from mixpol_kernels.library import define

_LAYOUT = "Tensor? offsets, Tensor? lengths, Tensor? mask"
_INPUTS = f"Tensor queries, Tensor history, {_LAYOUT}, bool sliced, int top_k"
define(
    "dot_attention_fwd",
    f"({_INPUTS}, bool save_attention) -> (Tensor pooled, Tensor stats, Tensor attention)",
)
define(
    "dot_attention_bwd",
    f"(Tensor grad_pooled, Tensor stats, {_INPUTS}) -> (Tensor grad_queries, Tensor grad_history)",
)
define(
    "dot_attention_projected",
    f"(Tensor queries, Tensor history, {_LAYOUT}, Tensor w_k, Tensor w_v) -> Tensor",
)


@torch.library.register_fake("mixpol::dot_attention_projected")
def _(
    queries: Tensor,
    history: Tensor,
    offsets: Tensor | None,
    lengths: Tensor | None,
    mask: Tensor | None,
    w_k: Tensor,
    w_v: Tensor,
) -> Tensor:
    heads = queries.shape[2]
    return queries.new_empty((*queries.shape[:3], w_v.shape[0] // heads))


@torch.library.register_fake("mixpol::dot_attention_fwd")
def _(
    queries: Tensor,
    history: Tensor,
    offsets: Tensor | None,
    lengths: Tensor | None,
    mask: Tensor | None,
    sliced: bool,
    top_k: int,
    save_attention: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    rows = queries.shape[:-1]
    attention = (*history.shape[:-1], *rows[1:]) if save_attention else (0,)
    return queries.new_empty(queries.shape), queries.new_empty((*rows, STATS)), queries.new_empty(attention)


@torch.library.register_fake("mixpol::dot_attention_bwd")
def _(
    grad_pooled: Tensor,
    stats: Tensor,
    queries: Tensor,
    history: Tensor,
    offsets: Tensor | None,
    lengths: Tensor | None,
    mask: Tensor | None,
    sliced: bool,
    top_k: int,
) -> tuple[Tensor, Tensor]:
    return queries.new_empty(queries.shape), history.new_empty(history.shape)


STATS = 4  # floats that the forward keeps a row
forward = torch.ops.mixpol.dot_attention_fwd.default
projected_forward = torch.ops.mixpol.dot_attention_projected.default
_bwd = torch.ops.mixpol.dot_attention_bwd.default


class DotAttention(torch.autograd.Function):
    """softmax(q · x) over the tokens x of each user, and the mean of x under it, for every query row.

    Queries [B, M, H, D] to pooled of that shape. With `sliced`, the queries are [B, M, H, D / H] and those of head h
    see the h-th part of each token only. With `top_k` > 0 a row attends to its best so many tokens. Saves the inputs
    and a few numbers a row, nothing for a token.
    """

    @staticmethod
    def forward(
        ctx: Any,
        queries: Tensor,
        history: Tensor,
        offsets: Tensor | None,
        lengths: Tensor | None,
        mask: Tensor | None,
        sliced: bool,
        top_k: int,
        return_weights: bool,
    ) -> tuple[Tensor, Tensor]:
        layout = canonical(offsets, lengths, mask)
        pooled, stats, attention = forward(queries, history, *layout, sliced, top_k, return_weights)
        ctx.save_for_backward(queries, history, offsets, lengths, mask, stats)
        ctx.config = (sliced, top_k)
        ctx.mark_non_differentiable(attention)
        return pooled, attention

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_pooled: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        queries, history, offsets, lengths, mask, stats = ctx.saved_tensors
        layout = canonical(offsets, lengths, mask)
        grad_queries, grad_history = _bwd(grad_pooled, stats, queries, history, *layout, *ctx.config)
        return grad_queries, grad_history, *[None] * 6
