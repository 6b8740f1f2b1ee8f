"""The spec of `dot_target_attention` in plain PyTorch: any device, any float dtype."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


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

    Returns:
        attended [B, M, outputs] and attention weights [T, M, H].
    """
    batch, candidates, _ = target.shape
    if keep is not None:  # whatever stands in the pads, NaN included, must not leak
        tokens = torch.where(keep[:, None], tokens, torch.zeros_like(tokens))
    queries = _heads(target, w_q, num_heads)
    keys, values = _heads(tokens, w_k, num_heads), _heads(tokens, w_v, num_heads)
    scores = scale * (queries[user] * keys[:, None]).sum(-1)
    reachable = scores if keep is None else scores.masked_fill(~keep[:, None, None], -torch.inf)
    highest = scores.new_full((batch, candidates, num_heads), -torch.inf)
    highest = highest.scatter_reduce(0, user[:, None, None].expand_as(scores), reachable.detach(), "amax")
    shifted = scores - highest[user]
    if keep is None:
        weights = shifted.exp()
    else:
        shifted = torch.where(keep[:, None, None], shifted, torch.zeros_like(shifted))
        weights = torch.where(keep[:, None, None], shifted.exp(), torch.zeros_like(shifted))
    total = torch.zeros_like(highest).index_add(0, user, weights)
    weights = weights / torch.where(total == 0, torch.ones_like(total), total)[user]
    shape = (batch, candidates, num_heads, values.shape[-1])
    attended = target.new_zeros(shape).index_add(0, user, weights[..., None] * values[:, None]).flatten(2)
    return attended if w_o is None else F.linear(attended, w_o), weights


def _heads(rows: Tensor, weight: Tensor | None, num_heads: int) -> Tensor:
    """[..., D] to [..., H, width of a head], projected if there is a weight."""
    projected = rows if weight is None else F.linear(rows, weight)
    return projected.view(*projected.shape[:-1], num_heads, projected.shape[-1] // num_heads)
