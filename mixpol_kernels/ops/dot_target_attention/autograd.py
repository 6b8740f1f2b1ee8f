"""The registered ops of `dot_target_attention`, query rows over raw tokens, and their autograd Functions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mixpol_kernels.derivatives import first_order
from mixpol_kernels.history import canonical
from mixpol_kernels.ops.registry import LAYOUT, Arguments, declare, empty_as

STATS, PROJECTED_STATS, TRITON_STATS = 4, 2, 2  # float32 numbers that the forwards keep a row

_INPUTS = f"Tensor queries, Tensor history, {LAYOUT}, bool sliced, int top_k"
_PROJECTED = f"Tensor queries, Tensor history, {LAYOUT}, Tensor w_k, Tensor w_v"


def _shapes(a: Arguments, stats: int) -> tuple[Tensor, Tensor, Tensor]:
    rows = a.queries.shape[:-1]
    attention = (*a.history.shape[:-1], *rows[1:]) if a.save_attention else (0,)
    kept = a.queries.new_empty((*rows, stats), dtype=torch.float32)
    return empty_as(a.queries, a.queries), kept, a.queries.new_empty(attention)


def _result_shape(a: Arguments) -> Tensor:
    last = next((w.shape[0] for w in (a.w_o, a.w_v) if w is not None), a.target.shape[-1])
    result: Tensor = a.target.new_empty((*a.target.shape[:-1], last))
    return result


def _projected_shapes(a: Arguments) -> tuple[Tensor, Tensor]:
    rows = a.queries.shape[:3]
    return a.queries.new_empty((*rows, a.w_v.shape[0] // rows[2])), a.queries.new_empty((*rows, PROJECTED_STATS))


FORWARD = declare(
    f"dot_attention_fwd({_INPUTS}, bool save_attention) -> (Tensor pooled, Tensor stats, Tensor attention)",
    lambda a: _shapes(a, STATS),
    triton="dot_target_attention.triton.launch:forward",
    triton_shapes=lambda a: _shapes(a, TRITON_STATS),
)
BACKWARD = declare(
    f"dot_attention_bwd(Tensor grad_pooled, Tensor stats, {_INPUTS}) -> (Tensor grad_queries, Tensor grad_history)",
    lambda a: (empty_as(a.queries, a.queries), empty_as(a.history, a.history)),
    triton="dot_target_attention.triton.launch:backward",
)
INFER = declare(
    f"dot_attention_infer(Tensor target, Tensor history, {LAYOUT}, Tensor? w_q, Tensor? w_k, Tensor? w_v, Tensor? w_o,"
    " int num_heads, float scale, int top_k) -> Tensor",
    _result_shape,
)
PROJECTED_FORWARD = declare(
    f"dot_attention_projected_fwd({_PROJECTED}) -> (Tensor pooled, Tensor stats)", _projected_shapes
)
PROJECTED_BACKWARD = declare(
    f"dot_attention_projected_bwd(Tensor grad_pooled, Tensor stats, {_PROJECTED}) -> "
    "(Tensor grad_queries, Tensor grad_history, Tensor grad_w_k, Tensor grad_w_v)",
    lambda a: tuple(empty_as(x, a.queries) for x in (a.queries, a.history, a.w_k, a.w_v)),
)


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
        backend: str,
    ) -> tuple[Tensor, Tensor]:
        layout = canonical(offsets, lengths, mask)
        pooled, stats, attention = FORWARD.of(backend)(queries, history, *layout, sliced, top_k, return_weights)
        ctx.save_for_backward(queries, history, offsets, lengths, mask, stats)
        ctx.config, ctx.backend = (sliced, top_k), backend
        ctx.mark_non_differentiable(attention)
        return pooled, attention

    @staticmethod
    @first_order("dot_target_attention")
    def backward(ctx: Any, saved: Sequence[Any], grad_pooled: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        queries, history, offsets, lengths, mask, stats = saved
        layout = canonical(offsets, lengths, mask)
        grad_queries, grad_history = BACKWARD.of(ctx.backend)(
            grad_pooled, stats, queries, history, *layout, *ctx.config
        )
        return grad_queries, grad_history, *[None] * 7


class ProjectedAttention(torch.autograd.Function):
    """The same with keys W_k x and values W_v x, for candidates so many that it pays to make them.

    Queries [B, M, H, A / H] to pooled [B, M, H, V / H]. A user's keys and values are made in the forward and again in
    the backward and never leave the kernel: saves the inputs and two numbers a row.
    """

    @staticmethod
    def forward(
        ctx: Any,
        queries: Tensor,
        history: Tensor,
        offsets: Tensor | None,
        lengths: Tensor | None,
        mask: Tensor | None,
        w_k: Tensor,
        w_v: Tensor,
    ) -> Tensor:
        layout = canonical(offsets, lengths, mask)
        pooled: Tensor
        pooled, stats = PROJECTED_FORWARD.compiled(queries, history, *layout, w_k, w_v)
        ctx.save_for_backward(queries, history, offsets, lengths, mask, w_k, w_v, stats)
        return pooled

    @staticmethod
    @first_order("dot_target_attention")
    def backward(ctx: Any, saved: Sequence[Any], grad_pooled: Tensor) -> tuple[Tensor | None, ...]:
        queries, history, offsets, lengths, mask, w_k, w_v, stats = saved
        layout = canonical(offsets, lengths, mask)
        grads = PROJECTED_BACKWARD.compiled(grad_pooled, stats, queries, history, *layout, w_k, w_v)
        return grads[0], grads[1], None, None, None, grads[2], grads[3]
