"""The spec of `target_attention` in plain PyTorch: any device, any float dtype."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

_PLAIN: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "tanh": torch.tanh,
    "gelu": F.gelu,
}


def activate(h: Tensor, activation: str, slope: Tensor | None) -> Tensor:
    """One of `unit.ACTIVATIONS`, on [..., H].

    `slope`: [H] for prelu; [3, H] for dice: alpha, scale and shift; [2, H] for dice_row: alpha and epsilon.
    """
    if activation == "prelu":
        assert slope is not None
        return torch.where(h > 0, h, slope * h)
    if activation == "dice":
        assert slope is not None
        alpha, scale, shift = slope.unbind()
        p = torch.sigmoid(scale * h + shift)
        return h * (p + alpha * (1 - p))
    if activation == "dice_row":
        assert slope is not None
        alpha, epsilon = slope.unbind()
        off = h - h.mean(-1, keepdim=True)
        p = torch.sigmoid(off / (off**2 + epsilon).sum(-1, keepdim=True).sqrt())
        return h * (p + alpha * (1 - p))
    return _PLAIN[activation](h)


_LOW = 0xFFFFFFFF
_UNIT_STEP = 0x9E3779B9
_BITS = 24


def token_dropout(
    p: float, seed: Tensor | None, user: Tensor, keep: Tensor | None, batch: int, candidates: int
) -> Callable[[Tensor, int], Tensor] | None:
    """drop(h [T, M, H], layer) for tokens [T] that name their user in order; None without dropout.

    A unit is 0 with probability `p` and otherwise divided by 1 - p, as csrc/math/dropout.h decides from the seed, the
    target's row, the token's place among its user's tokens, the layer and the unit.
    """
    if seed is None:
        return None
    seed = seed.to(user.device).reshape(())
    call = _mix(_mix((seed & _LOW) ^ _UNIT_STEP) ^ ((seed >> 32) & _LOW))
    rows = torch.arange(batch * candidates, device=user.device).view(batch, candidates)
    kept = torch.ones_like(user) if keep is None else keep.to(torch.int64)
    each = torch.zeros(batch, dtype=torch.int64, device=user.device).index_add(0, user, kept)
    position = kept.cumsum(0) - 1 - (each.cumsum(0) - each)[user]  # anything at pads
    tokens = _mix(_mix(call ^ (rows & _LOW))[user] ^ (position[:, None] & _LOW))

    def drop(h: Tensor, layer: int) -> Tensor:
        unit = torch.arange(h.shape[-1], device=h.device) * _UNIT_STEP
        bits = _mix((_mix(tokens ^ layer)[..., None] + unit) & _LOW) >> (32 - _BITS)
        return h * ((bits >= int(p * 2**_BITS)).to(h.dtype) * (1 / (1 - p)))

    return drop


def _mix(x: Tensor) -> Tensor:
    """lowbias32 on the low 32 bits of int64."""
    x = x ^ (x >> 16)
    x = (x * 0x7FEB352D) & _LOW
    x = x ^ (x >> 15)
    x = (x * 0x846CA68B) & _LOW
    return x ^ (x >> 16)


def masked(rows: Tensor, keep: Tensor | None) -> Tensor:
    """`rows` [n, ...], with zeros where `keep` [n] is False, in the gradient too: NaN times zero would be NaN."""
    if keep is None:
        return rows
    keep = keep.to(rows.device)
    return torch.where(keep.view(-1, *[1] * (rows.dim() - 1)), rows, torch.zeros_like(rows))


def with_tokens(user: Tensor, keep: Tensor | None, batch: int) -> Tensor:
    """[B] bool: which users have a token, of tokens that name their user."""
    ones = torch.ones_like(user) if keep is None else keep.to(user.dtype)
    return torch.zeros(batch, dtype=user.dtype, device=user.device).index_add(0, user, ones) > 0


def activation_unit(
    target: Tensor,
    tokens: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    slopes: Sequence[Tensor],
    activation: str,
    drop: Callable[[Tensor, int], Tensor] | None = None,
    keep: Tensor | None = None,
) -> Tensor:
    """Raw scores of the DIN activation unit for matching rows: target and tokens [n, ..., D] to [n, ...].

    `keep` [n]: what is not kept does not reach a gradient.
    """
    h = torch.cat([target, tokens, target - tokens, target * tokens], dim=-1)
    for i, (weight, bias) in enumerate(zip(weights[:-1], biases[:-1], strict=True)):
        h = masked(F.linear(masked(h, keep), weight, bias), keep)
        h = activate(h, activation, slopes[i] if slopes else None)
        h = h if drop is None else drop(h, i)
    return masked(F.linear(masked(h, keep), weights[-1], biases[-1]).squeeze(-1), keep)


def target_attention(
    target: Tensor,
    tokens: Tensor,
    user: Tensor,
    keep: Tensor | None,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    slopes: Sequence[Tensor],
    activation: str,
    normalize: str,
    dropout: float = 0.0,
    seed: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Target attention over tokens that name their user.

    Args:
        target: [B, M, D].
        tokens: [T, D], or [T, M, D] when tokens depend on the candidate.
        user: [T] int64.
        keep: [T] bool, or None if every token is kept.
        weights, biases: the hidden layers, then the output layer.
        slopes: one per hidden layer for "prelu", "dice" and "dice_row", else empty.
        activation, normalize, dropout: as in the public function.
        seed: [1] int64; None without dropout.

    Returns:
        pooled [B, M, D] and attention weights [T, M].
    """
    batch, candidates, width = target.shape
    if tokens.dim() == 2:
        tokens = tokens[:, None, :]
    # Whatever stands in the pads and in the target of an empty history, NaN included, must not leak.
    target, tokens = masked(target, with_tokens(user, keep, batch)), masked(tokens, keep)
    tokens = tokens.expand(-1, candidates, width)
    drop = token_dropout(dropout, seed, user, keep, batch, candidates)
    scores = activation_unit(target[user], tokens, weights, biases, slopes, activation, drop, keep)
    return pool(scores, tokens, user, keep, batch, normalize)


def pool(
    scores: Tensor, tokens: Tensor, user: Tensor, keep: Tensor | None, batch: int, normalize: str
) -> tuple[Tensor, Tensor]:
    """Raw scores [T, M] of tokens [T, M, D] to pooled [B, M, D] and attention weights [T, M]."""
    candidates, width = tokens.shape[1:]
    if normalize == "softmax":
        highest = scores.new_full((batch, candidates), -torch.inf)
        reachable = scores if keep is None else scores.masked_fill(~keep[:, None], -torch.inf)
        highest = highest.scatter_reduce(0, user[:, None].expand_as(scores), reachable.detach(), "amax")
        shifted = scores - highest[user]
        if keep is not None:
            shifted = torch.where(keep[:, None], shifted, torch.zeros_like(shifted))
        scores = shifted.exp()
    if normalize == "sigmoid":
        scores = torch.sigmoid(scores)
    if keep is not None:
        scores = torch.where(keep[:, None], scores, torch.zeros_like(scores))
    if normalize == "softmax":
        total = scores.new_zeros(batch, candidates).index_add(0, user, scores)
        scores = scores / torch.where(total == 0, torch.ones_like(total), total)[user]
        if keep is not None:  # where the user's total is NaN
            scores = torch.where(keep[:, None], scores, torch.zeros_like(scores))
    pooled = tokens.new_zeros(batch, candidates, width).index_add(0, user, scores[..., None] * tokens)
    return pooled, scores
