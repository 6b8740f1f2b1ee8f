"""The spec of `unit_statistics` in plain PyTorch: any device, any float dtype."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from mixpol_kernels.ops.target_attention.reference import activate, masked, token_dropout, with_tokens


def unit_statistics(
    target: Tensor,
    tokens: Tensor,
    user: Tensor,
    keep: Tensor | None,
    pads: Tensor | None,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    slopes: Sequence[Tensor],
    activation: str,
    dropout: float = 0.0,
    seed: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Mean and biased variance [H_last] of the last layer's pre-activations.

    Args:
        target: [B, M, D].
        tokens: [T, D].
        user: [T] int64.
        keep: [T] bool, or None if every token is kept.
        pads: [B], how many zero tokens count beside the user's own; None for none.
        weights, biases: hidden layers, the first [H_1, 4 D].
        slopes: as in `target_attention`, for all layers but the last.
        activation, dropout: of those layers.
        seed: [1] int64; None without dropout.
    """
    batch, candidates, width = target.shape
    if keep is not None:
        tokens, user = tokens[keep], user[keep]
    if pads is None:  # the target of an empty history, NaN included, must not leak
        target = masked(target, with_tokens(user, None, batch))
    rows = tokens[:, None, :].expand(-1, candidates, width)
    targets = target[user]
    drop = token_dropout(dropout, seed, user, None, batch, candidates)
    weight = rows.new_ones(rows.shape[:2])
    if pads is not None:
        rows = torch.cat([rows, torch.zeros_like(target)])
        targets = torch.cat([targets, target])
        weight = torch.cat([weight, pads.to(weight.dtype)[:, None].expand(batch, candidates)])
    h = torch.cat([targets, rows, targets - rows, targets * rows], dim=-1)
    for i, (w, b) in enumerate(zip(weights, biases, strict=True)):
        h = F.linear(h, w, b)
        if i + 1 < len(weights):
            h = activate(h, activation, slopes[i] if slopes else None)
            h = h if drop is None else drop(h, i)
    h = torch.where(weight[..., None] > 0, h, 0)  # a target without pads: NaN must not leak
    count = weight.sum().clamp(min=1)
    mean = (weight[..., None] * h).sum((0, 1)) / count
    return mean, (weight[..., None] * (h - mean) ** 2).sum((0, 1)) / count
