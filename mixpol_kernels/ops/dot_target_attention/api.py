"""The public function `dot_target_attention`: validation, projections and choice of implementation."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from mixpol_kernels import backend as backends
from mixpol_kernels.autocast import under_autocast
from mixpol_kernels.checks import check_float, checked
from mixpol_kernels.history import Layout, accepts_jagged, layout
from mixpol_kernels.ops.dot_target_attention import reference
from mixpol_kernels.ops.dot_target_attention.autograd import (
    FORWARD,
    INFER,
    PROJECTED_FORWARD,
    PROJECTED_STATS,
    STATS,
    TRITON_STATS,
    DotAttention,
    ProjectedAttention,
)
from mixpol_kernels.ops.dot_target_attention.triton import support
from mixpol_kernels.ops.target_attention.reference import masked
from mixpol_kernels.ops.triton import devices
from mixpol_kernels.ops.unit import check_target, with_candidates


@accepts_jagged("history")
@checked
@under_autocast()
def dot_target_attention(
    target: Tensor,
    history: Tensor,
    *,
    num_heads: int = 1,
    w_q: Tensor | None = None,
    w_k: Tensor | None = None,
    w_v: Tensor | None = None,
    w_o: Tensor | None = None,
    scale: float | None = None,
    top_k: int | None = None,
    offsets: Tensor | None = None,
    lengths: Tensor | None = None,
    mask: Tensor | None = None,
    return_weights: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Softmax dot-product attention of each target over its user's history, with heads.

    For target t and tokens x_l, with q, k_l, v_l of head h the h-th of H equal parts of W_q t, W_k x_l, W_v x_l:

        s_l = scale * q · k_l,  head_h = Σ softmax(s)_l v_l,  out = W_o [head_1 ; ... ; head_H]

    with the softmax over the user's tokens, or with `top_k` over the best of them, as models of long histories do
    (Attention Is All You Need, arXiv 1706.03762, section 3.2, with one query; names and bias-free projections of
    FuxiCTR's MultiHeadTargetAttention). A projection that is None is the identity. The fused form projects no token:
    W_k goes into the query, q · W_k x = (W_kᵀ q) · x, and W_v meets the pooled token, Σ w W_v x = W_v Σ w x. So an
    infinite entry of W_v can give inf where the projected tokens cancel to NaN. Only where so many candidates share a
    history that projected tokens cost less (see `projecting_is_less`) does the compiled form project them, a user at a
    time, and again in the backward. Without gradients one compiled op does it all; else what the projections add around
    the fused op are ordinary matrix products of PyTorch: whether their last bits depend on the batch is up to its BLAS.

    Under `torch.autocast` the op takes its dtype on a GPU, where kernels multiply in it, and float32 on a CPU: inputs
    are cast, and the result has the autocast dtype, as `nn.Linear`'s.

    Args:
        target: [B, D], or [B, M, D] when M candidates share each user's history.
        history: [N, D] with `offsets`, or [B, L, D] with `lengths`, `mask` or neither (every position kept).
            Any strides. Or jagged: a nested tensor [B, *, D] of layout torch.jagged, or a TorchRec JaggedTensor.
        num_heads: H; divides the width of queries and values.
        w_q: [A, D], the queries' projection; A is D without it.
        w_k: [A, D], the keys' projection.
        w_v: [V, D], the values' projection; V is D without it. With several heads it comes with `w_k` or not at all.
        w_o: [O, V], the output's projection; O is V without it.
        scale: factor of the dot products; default (A / H) ** -0.5.
        top_k: attend to the best so many tokens only, chosen by score for each target and head; of equal scores the
            earlier tokens come first, and a history of fewer tokens is attended to whole. Default: all tokens.
        offsets: [B + 1] int32 or int64; user b owns tokens offsets[b] ... offsets[b + 1] - 1.
        lengths: [B] int32 or int64; the first lengths[b] positions are kept.
        mask: [B, L]; nonzero positions are kept, on any side.
        return_weights: also return the attention weights, without gradient.
        backend: "auto", "cpu" (compiled, float32), "triton" (on a GPU; float32, bfloat16 and float16, summed in
            float32; with `top_k` a long history is one program's; products of float32 are as in `target_attention`, and
            so is what becomes of offsets and lengths out of range) or "reference" (plain PyTorch).

    Returns:
        out, [B, O] or [B, M, O], in the dtype of `target`; an empty history gives zeros. With `return_weights` also
        softmax(s), [N, H] or [B, L, H], with a dimension M before the last if the target has one; pads are 0.

    Raises:
        ValueError: contradicting or misshapen arguments, or a backend that cannot take them.
        TypeError: wrong dtypes.
        RuntimeError: offsets or lengths out of range. Nothing is computed.

    With `top_k`, which tokens of a history that holds a NaN are chosen is not defined.

    Example:
        >>> import torch, mixpol_kernels as mk
        >>> target, history = torch.randn(2, 8), torch.randn(2, 5, 8)
        >>> mk.dot_target_attention(target, history, num_heads=2, lengths=torch.tensor([5, 0])).shape
        torch.Size([2, 8])
    """
    check_target(target)
    check_float(target, "target", history=history, w_q=w_q, w_k=w_k, w_v=w_v, w_o=w_o)
    where = layout(history, target.shape[0], name="history", trailing=1, offsets=offsets, lengths=lengths, mask=mask)
    if history.shape[-1] != target.shape[-1]:
        raise ValueError(f"history is {history.shape[-1]} wide and target {target.shape[-1]}; expected the same D")
    width = check_projections(target.shape[-1], num_heads, w_q, w_k, w_v, w_o)
    if top_k is not None and not 1 <= top_k < 2**63:
        raise ValueError(f"top_k was {top_k}; expected at least 1, or None for all tokens, and below 2^63")
    scale = (width // num_heads) ** -0.5 if scale is None else float(scale)
    wide = with_candidates(target)
    row = target.shape[-1] if w_k is not None else target.shape[-1] // num_heads

    def saved(backend: str) -> int:
        projected = backend == "cpu" and projects(wide, num_heads, w_k, w_v, top_k, return_weights)
        stats = TRITON_STATS if backend == "triton" else STATS
        return saved_bytes(wide, num_heads, w_q, w_k, w_v, w_o, scale, where, stats, projected)

    chosen = backends.choose(
        "dot_target_attention",
        backend,
        target,
        saved,
        (target, history, w_q, w_k, w_v, w_o),
        devices.float32_products,
        triton=lambda: support.refusal(target, row),
    )
    if chosen == "reference":
        user, keep = where.assignment(target.device)
        out, weights = reference.dot_target_attention(
            wide, history.flatten(0, -2), user, keep,
            w_q, w_k, w_v, w_o, num_heads, scale, top_k,
        )  # fmt: skip
        weights = weights.detach().reshape(*where.token_shape, *weights.shape[1:])
    else:
        out, weights = _fused(
            wide, history, where, num_heads, w_q, w_k, w_v, w_o, scale, top_k or 0, return_weights, chosen
        )
    if target.dim() == 2:
        out = out.squeeze(1)
    if not return_weights:
        return out
    return out, weights.squeeze(-2) if target.dim() == 2 else weights


def _fused(
    target: Tensor,
    history: Tensor,
    where: Layout,
    heads: int,
    w_q: Tensor | None,
    w_k: Tensor | None,
    w_v: Tensor | None,
    w_o: Tensor | None,
    scale: float,
    top_k: int,
    return_weights: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """The fused op between projections that touch no token: target [B, M, D] to [B, M, O]."""
    triton = backend == "triton"
    projecting = not triton and projects(target, heads, w_k, w_v, top_k, return_weights)
    if not (triton or projecting or return_weights or backends.needs_grad(target, history, w_q, w_k, w_v, w_o)):
        out = INFER.compiled(target, history, *where.canonical(), w_q, w_k, w_v, w_o, heads, scale, top_k)
        return out, out
    occupied = where.occupied() if _projections(w_q, w_k, w_v, w_o) else None
    target = masked(target, occupied)
    queries = target if w_q is None else masked(F.linear(target, w_q), occupied)
    queries = queries if scale == 1 else queries * scale
    rows = queries.unflatten(-1, (heads, queries.shape[-1] // heads))
    if projecting:
        if backends.needs_grad(rows, history, w_k, w_v):
            pooled = ProjectedAttention.apply(rows, history, where.offsets, where.lengths, where.mask, w_k, w_v)
        else:
            pooled, _ = PROJECTED_FORWARD.compiled(rows, history, *where.canonical(), w_k, w_v)
        out = pooled.flatten(2)
        return out if w_o is None else masked(F.linear(out, w_o), occupied), out
    if w_k is not None:  # [B, M, A] to [B, M, H, D]
        rows = _by_head(rows, w_k.unflatten(0, (heads, w_k.shape[0] // heads)))
    sliced = heads > 1 and w_k is None
    if backends.needs_grad(rows, history):
        pooled, weights = DotAttention.apply(
            rows, history, where.offsets, where.lengths, where.mask, sliced, top_k, return_weights, backend
        )
    else:
        pooled, _, weights = FORWARD.of(backend)(rows, history, *where.canonical(), sliced, top_k, return_weights)
    if w_v is not None:
        pooled = _by_head(pooled, w_v.unflatten(0, (heads, w_v.shape[0] // heads)).transpose(1, 2))
    out = pooled.flatten(2) if w_v is None else masked(pooled.flatten(2), occupied)
    return out if w_o is None else masked(F.linear(out, w_o), occupied), weights


def _by_head(rows: Tensor, weights: Tensor) -> Tensor:
    """[B, M, H, n] times [H, n, k] to [B, M, H, k], a view of [H, B M, k]. Less overhead than einsum."""
    batch, candidates, heads, _ = rows.shape
    product = torch.bmm(rows.flatten(0, 1).transpose(0, 1), weights)
    return product.view(heads, batch, candidates, weights.shape[2]).permute(1, 2, 0, 3)


def projects(
    target: Tensor, heads: int, w_k: Tensor | None, w_v: Tensor | None, top_k: int | None, return_weights: bool
) -> bool:
    """Whether the compiled form makes keys and values of the tokens for targets [B, M, D]."""
    if top_k or return_weights:
        return False
    return projecting_is_less(target.shape[1], heads, target.shape[2], w_k, w_v)


def projecting_is_less(candidates: int, heads: int, width: int, w_k: Tensor | None, w_v: Tensor | None) -> bool:
    """Whether M candidates take fewer multiplications a token with keys and values than without.

    Absorbed, every row reads the raw token twice: 2 M H D. Projected: D (A + V) once, then M (A + V). With the backward
    it is 7 M H D against 4 D (A + V) + 3.5 M (A + V), about the same question.
    """
    if w_k is None or w_v is None:
        return False
    return (width + candidates) * (w_k.shape[0] + w_v.shape[0]) < 2 * candidates * heads * width


def saved_bytes(
    target: Tensor,
    num_heads: int,
    w_q: Tensor | None,
    w_k: Tensor | None,
    w_v: Tensor | None,
    w_o: Tensor | None,
    scale: float,
    where: Layout,
    stats: int = STATS,
    projected: bool = False,
) -> int:
    """Bytes kept for backward beyond the inputs, when all of them need a gradient: a few rows a target."""
    width = target.shape[-1]
    keys, values = (width if w is None else w.shape[0] for w in (w_k, w_v))
    floats = 0
    if projected:
        stats = PROJECTED_STATS
        floats += keys if w_q is not None or scale != 1 else 0  # the query rows
    else:
        if w_k is not None:
            floats += num_heads * width  # the query rows
        if w_q is not None or scale != 1:
            floats += keys  # the queries before they meet W_k
        if w_v is not None:
            floats += num_heads * width  # the pooled rows
    if w_o is not None:
        floats += values  # what W_o is applied to
    masks = 0
    if _projections(w_q, w_k, w_v, w_o) and where.occupied() is not None:
        masks = target.shape[0]  # a byte a user, and the target without what stands beside an empty history
        floats += width if w_q is not None or scale == 1 else 0
    row = 4 * stats * num_heads + target.element_size() * floats
    return row * target.shape[0] * target.shape[1] + masks


def _projections(*weights: Tensor | None) -> bool:
    return any(weight is not None for weight in weights)


def check_projections(
    width: int, num_heads: int, w_q: Tensor | None, w_k: Tensor | None, w_v: Tensor | None, w_o: Tensor | None
) -> int:
    """Validates heads and projections for vectors `width` wide; returns the width of queries and keys."""
    if num_heads < 1:
        raise ValueError(f"num_heads was {num_heads}; expected at least 1")
    if num_heads > 1 and (w_k is None) != (w_v is None):
        given, missing = ("w_k", "w_v") if w_v is None else ("w_v", "w_k")
        raise ValueError(f"{given} came without {missing}; with num_heads={num_heads} expected both or neither")
    for name, weight in (("w_q", w_q), ("w_k", w_k), ("w_v", w_v)):
        if weight is not None and (weight.dim() != 2 or weight.shape[1] != width):
            raise ValueError(f"{name} has shape {list(weight.shape)}; expected [outputs, {width}] (outputs, D)")
    queries = width if w_q is None else w_q.shape[0]
    keys = width if w_k is None else w_k.shape[0]
    values = width if w_v is None else w_v.shape[0]
    if queries != keys:
        raise ValueError(
            f"queries are {queries} wide and keys {keys}, of w_q and w_k where given, else D; expected the same A"
        )
    for name, size in (("queries and keys", keys), ("values", values)):
        if size % num_heads or not size:
            raise ValueError(f"{name} are {size} wide; expected a multiple of num_heads={num_heads}")
    if w_o is not None and (w_o.dim() != 2 or w_o.shape[1] != values):
        raise ValueError(f"w_o has shape {list(w_o.shape)}; expected [outputs, {values}] (outputs, V)")
    return keys
