"""The spec of `polarity_fusion` in plain PyTorch: any device, any float dtype."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def polarity_fusion(
    target: Tensor,
    tokens: Tensor,
    polarity: Tensor | None,
    user: Tensor,
    keep: Tensor | None,
    polarity_table: Tensor | None,
    sign: Tensor | None,
    gate: tuple[Tensor, Tensor, Tensor] | None,
) -> Tensor:
    """Fused tokens, [T, M, D].

    Args:
        target: [B, M, D].
        tokens: [T, D].
        polarity: [T] integer rows of the polarity table; None with fusion "none".
        user: [T] int64.
        keep: [T] bool, or None; pads come out as zeros.
        polarity_table: [P, D] for "bias" and "tapf".
        sign: [P] for "tapf".
        gate: (W_g [D, D], b_g [D], W_t [D, D]) for "tapf".
    """
    x = tokens[:, None, :]
    if keep is not None:
        x = torch.where(keep[:, None, None], x, torch.zeros_like(x))
        if polarity is not None:
            polarity = torch.where(keep, polarity, torch.zeros_like(polarity))
    fused = x.expand(-1, target.shape[1], -1)
    if polarity_table is not None and polarity is not None:
        rows = polarity.long()
        fused = fused + polarity_table[rows][:, None, :]
        if gate is not None and sign is not None:
            gate_weight, gate_bias, target_weight = gate
            g = torch.sigmoid(F.linear(x * target[user], gate_weight, gate_bias))
            fused = fused + sign[rows][:, None, None] * g * F.linear(target, target_weight)[user]
    if keep is not None:
        fused = torch.where(keep[:, None, None], fused, torch.zeros_like(fused))
    return fused
