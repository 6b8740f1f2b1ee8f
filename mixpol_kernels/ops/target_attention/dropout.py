"""Arguments of dropout: the probability and the seed. The masks are in `reference` and csrc/math/dropout.h."""

from __future__ import annotations

import torch
from torch import Tensor


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
