"""Softmax attention under a mask, by PyTorch's own kernel; attention weights on request."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Watch(list[Tensor]):
    """Recorded attention weights, one entry per layer: [B, H, Q, K] of softmax attention, [N] of target attention."""


def split_heads(x: Tensor, heads: int) -> Tensor:
    """[B, L, D] to [B, heads, L, D / heads]."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def join_heads(x: Tensor) -> Tensor:
    """[B, heads, L, D / heads] to [B, L, D]."""
    return x.transpose(1, 2).flatten(2)


def attend(query: Tensor, key: Tensor, value: Tensor, keep: Tensor, watch: Watch | None = None) -> Tensor:
    """softmax(query keyᵀ / √d) value over the keys that are kept; zeros where a query may see none.

    Args:
        query: [B, H, Q, d].
        key, value: [B, H, K, d].
        keep: bool, broadcast to [B, 1, Q, K].
        watch: gets the weights [B, H, Q, K], which are computed once more for it. None for training and serving.

    Returns:
        [B, H, Q, d].
    """
    sees = keep.any(dim=-1, keepdim=True)
    # A softmax over nothing is NaN in some of PyTorch's kernels: such a query looks everywhere, and is then put to 0.
    mask = keep | ~sees
    if watch is not None:
        scores = (query @ key.mT).float() / query.shape[-1] ** 0.5
        weights = scores.masked_fill(~mask, -torch.inf).softmax(dim=-1)
        watch.append(torch.where(sees, weights, 0))
    out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask.expand(-1, -1, query.shape[2], -1))
    return torch.where(sees, out, 0)


def pool(attention: nn.Module, watch: Watch | None, *inputs: Any, **layout: Any) -> Tensor:
    """Pooled vectors of a target attention layer of `mixpol_kernels.nn`, [B, D]; its weights [N] go to `watch`."""
    if watch is None:
        return attention(*inputs, **layout)
    pooled, weights = attention(*inputs, **layout, return_weights=True)
    watch.append(weights)
    return pooled
