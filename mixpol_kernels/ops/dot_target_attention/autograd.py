"""torch.library registration of the attention of query rows over raw tokens, and its autograd Function."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mixpol_kernels.derivatives import first_order
from mixpol_kernels.history import canonical
from mixpol_kernels.library import INTERPRETING, NAMESPACE, TRITON, define

STATS, PROJECTED_STATS, TRITON_STATS = 4, 2, 2  # float32 numbers that the forwards keep a row

_LAYOUT = "Tensor? offsets, Tensor? lengths, Tensor? mask"
_INPUTS = f"Tensor queries, Tensor history, {_LAYOUT}, bool sliced, int top_k"
_SCHEMAS = {
    "dot_attention_fwd": f"({_INPUTS}, bool save_attention) -> (Tensor pooled, Tensor stats, Tensor attention)",
    "dot_attention_bwd": f"(Tensor grad_pooled, Tensor stats, {_INPUTS}) -> (Tensor grad_queries, Tensor grad_history)",
}
for _name, _schema in _SCHEMAS.items():
    define(_name, _schema)
_WEIGHTS = "Tensor? w_q, Tensor? w_k, Tensor? w_v, Tensor? w_o"
define(
    "dot_attention_infer",
    f"(Tensor target, Tensor history, {_LAYOUT}, {_WEIGHTS}, int num_heads, float scale, int top_k) -> Tensor",
)
_PROJECTED = f"Tensor queries, Tensor history, {_LAYOUT}, Tensor w_k, Tensor w_v"
define("dot_attention_projected_fwd", f"({_PROJECTED}) -> (Tensor pooled, Tensor stats)")
define(
    "dot_attention_projected_bwd",
    f"(Tensor grad_pooled, Tensor stats, {_PROJECTED}) -> "
    "(Tensor grad_queries, Tensor grad_history, Tensor grad_w_k, Tensor grad_w_v)",
)


@torch.library.register_fake("mixpol::dot_attention_infer")
def _(
    target: Tensor,
    history: Tensor,
    offsets: Tensor | None,
    lengths: Tensor | None,
    mask: Tensor | None,
    w_q: Tensor | None,
    w_k: Tensor | None,
    w_v: Tensor | None,
    w_o: Tensor | None,
    num_heads: int,
    scale: float,
    top_k: int,
) -> Tensor:
    last = next((w.shape[0] for w in (w_o, w_v) if w is not None), target.shape[-1])
    return target.new_empty((*target.shape[:-1], last))


@torch.library.register_fake("mixpol::dot_attention_projected_fwd")
def _(
    queries: Tensor,
    history: Tensor,
    offsets: Tensor | None,
    lengths: Tensor | None,
    mask: Tensor | None,
    w_k: Tensor,
    w_v: Tensor,
) -> tuple[Tensor, Tensor]:
    rows = queries.shape[:3]
    return queries.new_empty((*rows, w_v.shape[0] // rows[2])), queries.new_empty((*rows, PROJECTED_STATS))


@torch.library.register_fake("mixpol::dot_attention_projected_bwd")
def _(
    grad_pooled: Tensor,
    stats: Tensor,
    queries: Tensor,
    history: Tensor,
    offsets: Tensor | None,
    lengths: Tensor | None,
    mask: Tensor | None,
    w_k: Tensor,
    w_v: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    inputs = queries, history, w_k, w_v
    return tuple(t.new_empty(t.shape) for t in inputs)  # type: ignore[return-value]


def _fake_forward(
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
    stats = queries.new_empty((*rows, STATS), dtype=torch.float32)
    return queries.new_empty(queries.shape), stats, queries.new_empty(attention)


def _fake_triton_forward(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    pooled, stats, attention = _fake_forward(*args)
    return pooled, stats.new_empty((*stats.shape[:-1], TRITON_STATS)), attention


def _fake_backward(
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


def _triton_forward(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    from mixpol_kernels.ops.dot_target_attention.triton import launch

    return launch.forward(*args)


def _triton_backward(*args: Any) -> tuple[Tensor, Tensor]:
    from mixpol_kernels.ops.dot_target_attention.triton import launch

    return launch.backward(*args)


_IMPLEMENTATIONS = {
    "dot_attention_fwd": (_fake_forward, _fake_triton_forward, _triton_forward),
    "dot_attention_bwd": (_fake_backward, _fake_backward, _triton_backward),
}
for _name, (_fake, _fake_triton, _triton) in _IMPLEMENTATIONS.items():
    torch.library.register_fake(f"{NAMESPACE}::{_name}")(_fake)
    torch.library.define(f"{TRITON}::{_name}", _SCHEMAS[_name])
    torch.library.register_fake(f"{TRITON}::{_name}")(_fake_triton)
    torch.library.impl(f"{TRITON}::{_name}", ("cuda", "cpu") if INTERPRETING else "cuda")(_triton)

forward = torch.ops.mixpol.dot_attention_fwd.default
infer = torch.ops.mixpol.dot_attention_infer.default
projected_forward = torch.ops.mixpol.dot_attention_projected_fwd.default
_projected_bwd = torch.ops.mixpol.dot_attention_projected_bwd.default
_bwd = torch.ops.mixpol.dot_attention_bwd.default


def ops(triton: bool) -> tuple[Any, Any]:
    """The ops of both directions: the compiled ones, or those of the Triton kernels."""
    if not triton:
        return forward, _bwd
    others = torch.ops.mixpol_triton
    return others.dot_attention_fwd.default, others.dot_attention_bwd.default


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
        triton: bool,
    ) -> tuple[Tensor, Tensor]:
        """`triton`: see `ops`."""
        layout = canonical(offsets, lengths, mask)
        pooled, stats, attention = ops(triton)[0](queries, history, *layout, sliced, top_k, return_weights)
        ctx.save_for_backward(queries, history, offsets, lengths, mask, stats)
        ctx.config, ctx.triton = (sliced, top_k), triton
        ctx.mark_non_differentiable(attention)
        return pooled, attention

    @staticmethod
    @first_order("dot_target_attention")
    def backward(ctx: Any, saved: Sequence[Any], grad_pooled: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        queries, history, offsets, lengths, mask, stats = saved
        layout = canonical(offsets, lengths, mask)
        grad_queries, grad_history = ops(ctx.triton)[1](grad_pooled, stats, queries, history, *layout, *ctx.config)
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
        pooled, stats = projected_forward(queries, history, *layout, w_k, w_v)
        ctx.save_for_backward(queries, history, offsets, lengths, mask, w_k, w_v, stats)
        return pooled

    @staticmethod
    @first_order("dot_target_attention")
    def backward(ctx: Any, saved: Sequence[Any], grad_pooled: Tensor) -> tuple[Tensor | None, ...]:
        queries, history, offsets, lengths, mask, w_k, w_v, stats = saved
        layout = canonical(offsets, lengths, mask)
        grads = _projected_bwd(grad_pooled, stats, queries, history, *layout, w_k, w_v)
        return grads[0], grads[1], None, None, None, grads[2], grads[3]
