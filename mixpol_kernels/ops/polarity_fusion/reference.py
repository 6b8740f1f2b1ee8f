"""The spec of `polarity_fusion` in plain PyTorch: any device, any float dtype."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from mixpol_kernels.ops.target_attention.reference import masked, with_tokens


def polarity_fusion(
    target: Tensor,
    tokens: Tensor,
    polarity: Tensor | None,
    user: Tensor,
    keep: Tensor | None,
    polarity_table: Tensor | None,
    sign: Tensor | None,
    gate: tuple[Tensor, Tensor, Tensor] | None,
    extra_ids: Tensor | None,
    extra_table: Tensor | None,
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
        gate: (W_g [D, D] or [D, 3 D], b_g [D], W_t [D, D]) for "tapf".
        extra_ids: [T] integer rows of the extra table, or None.
        extra_table: [R, D], or None.
    """
    occupied = with_tokens(user, keep, len(target))
    target, x = masked(target, occupied), masked(tokens[:, None, :], keep)
    if keep is not None and polarity is not None:
        polarity = torch.where(keep, polarity, torch.zeros_like(polarity))
    fused = x.expand(-1, target.shape[1], -1)
    if polarity_table is not None and polarity is not None:
        rows = polarity.long()
        fused = fused + polarity_table[rows][:, None, :]
        if gate is not None and sign is not None:
            gate_weight, gate_bias, target_weight = gate
            t = target[user]
            inputs = x * t
            if gate_weight.shape[1] != t.shape[-1]:
                inputs = torch.cat([x.expand_as(t), t, inputs], dim=-1)
            g = torch.sigmoid(masked(F.linear(masked(inputs, keep), gate_weight, gate_bias), keep))
            pull = masked(F.linear(target, target_weight), occupied)
            fused = fused + masked(sign[rows][:, None, None] * g * pull[user], keep)
    if extra_table is not None and extra_ids is not None:
        if keep is not None:
            extra_ids = torch.where(keep, extra_ids, torch.zeros_like(extra_ids))
        fused = fused + extra_table[extra_ids.long()][:, None, :]
    return masked(fused, keep)
