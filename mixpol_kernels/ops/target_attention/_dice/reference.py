"""The spec of `dice_attention` in plain PyTorch: any device, any float dtype.

Two specs in a row, since the op is two ops in a row: nothing is stated twice.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mixpol_kernels.ops.target_attention._statistics.reference import unit_statistics
from mixpol_kernels.ops.target_attention.reference import target_attention


def dice_attention(
    target: Tensor,
    tokens: Tensor,
    user: Tensor,
    keep: Tensor | None,
    pads: Tensor | None,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    alpha: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    eps: float,
    normalize: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Pooled [B, M, D], weights [T, M], and the batch's mean and biased variance [H].

    Args:
        target, tokens, user, keep, normalize: as in `target_attention`.
        pads: as in `unit_statistics`.
        weights, biases: [H, 4 D] and [1, H]; [H] and [1].
        alpha, norm_weight, norm_bias: [H].
        eps: added to the variance.
    """
    mean, variance = unit_statistics(target, tokens, user, keep, pads, weights[:1], biases[:1], (), "dice")
    scale = torch.rsqrt(variance + eps)
    if norm_weight is not None:
        scale = scale * norm_weight
    shift = -mean * scale
    if norm_bias is not None:
        shift = shift + norm_bias
    slopes = [torch.stack([alpha, scale, shift])]
    pooled, attention = target_attention(target, tokens, user, keep, weights, biases, slopes, "dice", normalize)
    return pooled, attention, mean, variance
