"""The spec of `mixed_polarity_attention`: the look-up, then the specs of the ops that it fuses."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from mixpol_kernels.ops.polarity_fusion.reference import polarity_fusion
from mixpol_kernels.ops.target_attention.reference import target_attention


def mixed_polarity_attention(
    target: Tensor,
    item_ids: Tensor,
    polarity: Tensor | None,
    user: Tensor,
    keep: Tensor | None,
    item_table: Tensor,
    polarity_table: Tensor | None,
    sign: Tensor,
    gate: tuple[Tensor, Tensor, Tensor] | None,
    extra_ids: Tensor | None,
    extra_table: Tensor | None,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    slopes: Sequence[Tensor],
    activation: str,
    normalize: str,
    sparse: bool,
    dropout: float = 0.0,
    seed: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Target [B, M, D] and item_ids, polarity, extra_ids [T] to pooled [B, M, D] and attention weights [T, M]."""
    ids = item_ids.long()
    if keep is not None:
        ids = torch.where(keep, ids, torch.zeros_like(ids))
    tokens = F.embedding(ids, item_table, sparse=sparse)
    fused = polarity_fusion(target, tokens, polarity, user, keep, polarity_table, sign, gate, extra_ids, extra_table)
    return target_attention(target, fused, user, keep, weights, biases, slopes, activation, normalize, dropout, seed)
