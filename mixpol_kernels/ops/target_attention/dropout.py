"""Dropout of hidden units: seeds, and the masks of csrc/math/dropout.h in torch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_LOW = 0xFFFFFFFF
_UNIT_STEP = 0x9E3779B9
_BITS = 24


def check_dropout(dropout: float, seed: Tensor | int | None) -> Tensor | None:
    """The seed as the ops take it, [1] int64 on the CPU; None without dropout or without a seed.

    A tensor rather than a number: compiled graphs then draw a new one in every call.
    """
    if not 0.0 <= dropout < 1.0:
        raise ValueError(f"dropout was {dropout}; expected 0 <= dropout < 1")
    if not dropout or seed is None:
        return None
    if not isinstance(seed, Tensor):
        seed = torch.tensor([seed])
    if seed.dtype != torch.int64:
        raise TypeError(f"seed has dtype {seed.dtype}; expected int64")
    if seed.numel() != 1 or seed.device.type != "cpu":
        raise ValueError(f"seed has shape {list(seed.shape)} on {seed.device}; expected one value on the CPU")
    return seed


def draw_seed() -> Tensor:
    """A seed from torch's default generator: `torch.manual_seed` repeats it."""
    return torch.randint(2**63 - 1, (1,))


@dataclass(frozen=True)
class Dropout:
    """Dropout behind every hidden layer's activation, for rows of [T, M] (token, candidate) pairs.

    Attributes:
        p: probability of zero; what is kept is divided by 1 - p.
        tokens: [T, M], what the masks of each pair depend on.
    """

    p: float
    tokens: Tensor

    def __call__(self, h: Tensor, layer: int) -> Tensor:
        """`h` [T, M, H] with units dropped."""
        key = _mix(self.tokens ^ layer)
        unit = torch.arange(h.shape[-1], device=h.device) * _UNIT_STEP
        bits = _mix((key[..., None] + unit) & _LOW) >> (32 - _BITS)
        kept = (bits >= int(self.p * 2**_BITS)).to(h.dtype)
        return h * (kept * (1 / (1 - self.p)))


def token_dropout(
    p: float, seed: Tensor | None, user: Tensor, keep: Tensor | None, batch: int, candidates: int
) -> Dropout | None:
    """Dropout for tokens [T] that name their user in order; None without it."""
    if seed is None:
        return None
    seed = seed.to(user.device).reshape(())
    call = _mix(_mix((seed & _LOW) ^ _UNIT_STEP) ^ ((seed >> 32) & _LOW))
    rows = torch.arange(batch * candidates, device=user.device).view(batch, candidates)
    kept = torch.ones_like(user) if keep is None else keep.to(torch.int64)
    each = torch.zeros(batch, dtype=torch.int64, device=user.device).index_add(0, user, kept)
    position = kept.cumsum(0) - 1 - (each.cumsum(0) - each)[user]  # among the user's own; anything at pads
    return Dropout(p, _mix(_mix(call ^ (rows & _LOW))[user] ^ (position[:, None] & _LOW)))


def _mix(x: Tensor) -> Tensor:
    """lowbias32 on the low 32 bits of int64."""
    x = x ^ (x >> 16)
    x = (x * 0x7FEB352D) & _LOW
    x = x ^ (x >> 15)
    x = (x * 0x846CA68B) & _LOW
    return x ^ (x >> 16)
