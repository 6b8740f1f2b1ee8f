"""Learned positions, counted back from the newest event."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Positions(nn.Module):
    """A vector per age: row 0 for the last column, row 1 for the one before.

    Args:
        n_positions: longest sequence.
        dim: width.

    Attributes:
        table: [n_positions, dim], N(0, 1 / dim) at the start.
    """

    def __init__(self, n_positions: int, dim: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.empty(n_positions, dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The table as at the start."""
        nn.init.normal_(self.table, std=self.table.shape[1] ** -0.5)

    def forward(self, length: int) -> Tensor:
        """[length, dim], oldest first.

        Raises:
            ValueError: a longer sequence than there are positions.
        """
        if length > len(self.table):
            raise ValueError(
                f"a sequence of the batch has {length} positions, expected at most {len(self.table)}: "
                "raise max_length, or shorten the histories"
            )
        return self.table[:length].flip(0)
