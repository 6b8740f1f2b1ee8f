"""`Padding`: the kept positions of a padded history as lengths, mask and indices."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Padding(NamedTuple):
    """A right-padded layout. All of it is made beforehand: no form pays for it.

    Attributes:
        lengths: [B] int64.
        mask: [B, L] float32, 1 at kept positions.
        position: [T] int64, the kept positions in the flat [B * L].
        user: [T] int64, their users.
    """

    lengths: Tensor
    mask: Tensor
    position: Tensor
    user: Tensor


def pad_right(lengths: Tensor, length: int) -> Padding:
    """The layout of `lengths` [B] in rows of `length` positions."""
    keep = torch.arange(length)[None, :] < lengths[:, None]
    position = keep.flatten().nonzero().squeeze(1)
    return Padding(lengths, keep.float(), position, position // length)


def masked_mean(tokens: Tensor, mask: Tensor) -> Tensor:
    """The control of the suites, reading and pooling alone: tokens [B, L, D] and mask [B, L] to [B, D]."""
    return torch.bmm((mask / mask.sum(1, keepdim=True)).unsqueeze(1), tokens).squeeze(1)
