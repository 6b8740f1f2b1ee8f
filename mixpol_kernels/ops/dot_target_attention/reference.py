"""The spec of `dot_target_attention` in plain PyTorch: any device, any float dtype."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from mixpol_kernels.ops.target_attention.reference import masked, with_tokens


def dot_target_attention(
    target: Tensor,
    tokens: Tensor,
    user: Tensor,
    keep: Tensor | None,
    w_q: Tensor | None,
    w_k: Tensor | None,
    w_v: Tensor | None,
    w_o: Tensor | None,
    num_heads: int,
    scale: float,
    top_k: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Softmax dot-product attention as the textbook has it: tokens are projected, then attended to.

    Args:
        target: [B, M, D].
        tokens: [T, D].
        user: [T] int64, the user of each token.
        keep: [T] bool, or None if every token is kept.
        w_q, w_k, w_v, w_o: projections as in the public function, or None for the identity.
        num_heads: H.
        scale: factor of the dot products.
        top_k: how many tokens a target's head attends to; None for all.

    Returns:
        attended [B, M, outputs] and attention weights [T, M, H].
    """
    batch = target.shape[0]
    # Whatever stands in the pads, in the target of an empty history and in the weights, NaN included, must not leak.
    occupied = with_tokens(user, keep, batch)
    target, tokens = masked(target, occupied), masked(tokens, keep)
    queries = _heads(target, w_q, num_heads, occupied)
    keys, values = _heads(tokens, w_k, num_heads, keep), _heads(tokens, w_v, num_heads, keep)
    attended, weights = attend(queries, keys, values, user, keep, scale, top_k)
    return attended if w_o is None else masked(F.linear(masked(attended, occupied), w_o), occupied), weights


def attend(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    user: Tensor,
    keep: Tensor | None,
    scale: float,
    top_k: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Queries [B, M, H, A / H], keys and values [T, H, ...] to attended [B, M, values] and weights [T, M, H]."""
    batch, candidates, num_heads, _ = queries.shape
    scores = scale * (queries[user] * keys[:, None]).sum(-1)
    chosen = None if keep is None else keep[:, None, None]
    if top_k is not None:
        owner = user if keep is None else torch.where(keep, user, batch)
        best = best_tokens(scores.detach(), owner, batch, top_k)
        chosen = best if chosen is None else best & chosen
    reachable = scores if chosen is None else scores.masked_fill(~chosen, -torch.inf)
    highest = scores.new_full((batch, candidates, num_heads), -torch.inf)
    highest = highest.scatter_reduce(0, user[:, None, None].expand_as(scores), reachable.detach(), "amax")
    shifted = scores - highest[user]
    if chosen is None:
        weights = shifted.exp()
    else:
        shifted = torch.where(chosen, shifted, torch.zeros_like(shifted))
        weights = torch.where(chosen, shifted.exp(), torch.zeros_like(shifted))
    total = torch.zeros_like(highest).index_add(0, user, weights)
    weights = weights / torch.where(total == 0, torch.ones_like(total), total)[user]
    if chosen is not None:  # where the user's total is NaN
        weights = torch.where(chosen, weights, torch.zeros_like(weights))
    shape = (batch, candidates, num_heads, values.shape[-1])
    return values.new_zeros(shape).index_add(0, user, weights[..., None] * values[:, None]).flatten(2), weights


def best_tokens(scores: Tensor, user: Tensor, users: int, top_k: int) -> Tensor:
    """[T, M, H] bool: a token is among the `top_k` best of its user; of equal scores the earlier come first.

    Args:
        scores: [T, M, H].
        user: [T] int64; `users` for tokens that count for nobody.
        users: number of users.
        top_k: at least 1.
    """
    order = scores.argsort(dim=0, descending=True, stable=True)
    by_user = user[order].argsort(dim=0, stable=True)
    order = order.gather(0, by_user)
    starts = torch.zeros(users + 2, dtype=torch.int64, device=user.device)
    starts = starts.index_add(0, user + 1, torch.ones_like(user)).cumsum(0)
    rank = torch.arange(len(user), device=user.device)[:, None, None] - starts[user[order]]
    return torch.zeros_like(scores, dtype=torch.bool).scatter(0, order, rank < top_k)


def _heads(rows: Tensor, weight: Tensor | None, num_heads: int, keep: Tensor | None) -> Tensor:
    """[..., D] to [..., H, width of a head], projected if there is a weight; zeros where `keep` is False."""
    projected = rows if weight is None else masked(F.linear(rows, weight), keep)
    return projected.view(*projected.shape[:-1], num_heads, projected.shape[-1] // num_heads)
