"""The parameter-free mixing of RankMixer, HyFormer and MixFormer."""

from __future__ import annotations

from torch import Tensor


def head_mix(tokens: Tensor) -> Tensor:
    """Token h of the result is part h of every token: the T x T x D/T view with its first two dimensions swapped.

    It is its own inverse.

    Args:
        tokens: [B, T, D], T dividing D.

    Example:
        >>> import torch
        >>> head_mix(torch.arange(8).view(1, 2, 4)).tolist()
        [[[0, 1, 4, 5], [2, 3, 6, 7]]]
    """
    n = tokens.shape[1]
    return tokens.unflatten(-1, (n, -1)).transpose(1, 2).flatten(2)
