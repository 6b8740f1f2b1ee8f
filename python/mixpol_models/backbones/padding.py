"""Jagged histories as padded matrices, and back."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Padding:
    """Where each event of a jagged history stands in a matrix [B, L], L the longest history of the batch (at least 1).

    Histories end in the last column, so that column L - k holds everybody's k-th newest event: "the newest k" is a
    slice, and a position counted from the target does not depend on the batch.

    Attributes:
        index: [N] int64, place of each event in the flattened matrix.
        keep: [B, L] bool, False at pads.

    Example:
        >>> import torch
        >>> padding = Padding.of(torch.tensor([0, 1, 1, 4]))
        >>> padding.pad(torch.tensor([5.0, 6.0, 7.0, 8.0])[:, None]).squeeze(-1)
        tensor([[0., 0., 5.],
                [0., 0., 0.],
                [6., 7., 8.]])
    """

    index: Tensor
    keep: Tensor

    @classmethod
    def of(cls, offsets: Tensor) -> Padding:
        """The padding of the histories tokens[offsets[b] : offsets[b + 1]]; offsets is [B + 1]."""
        lengths = offsets.diff()
        longest = max(int(lengths.max()), 1) if len(lengths) else 1
        columns = torch.arange(longest, device=offsets.device)
        keep = columns >= longest - lengths[:, None]
        return cls(keep.flatten().nonzero().squeeze(-1), keep)

    @property
    def shape(self) -> tuple[int, int]:
        """(B, L)."""
        return self.keep.shape[0], self.keep.shape[1]

    def pad(self, tokens: Tensor) -> Tensor:
        """[N, D] to [B, L, D], zeros at pads."""
        padded = tokens.new_zeros(self.keep.numel(), tokens.shape[-1])
        return padded.index_copy(0, self.index, tokens).unflatten(0, self.shape)

    def unpad(self, padded: Tensor) -> Tensor:
        """[B, L, ...] to [N, ...]."""
        return padded.flatten(0, 1)[self.index]

    def mean(self, padded: Tensor) -> Tensor:
        """Mean over the events, [B, L, D] to [B, D]; zeros for an empty history."""
        total = torch.where(self.keep[..., None], padded, 0).sum(dim=1)
        return total / self.keep.sum(dim=1, keepdim=True).clamp(min=1)
