"""Layers that start in their own way, again at `reset_parameters`: after the meta device's `to_empty`, in FSDP."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn


def reset_children(module: nn.Module) -> None:
    """Calls `reset_parameters` of every module inside, each once."""
    for child in module.children():
        reset = getattr(child, "reset_parameters", None)
        reset_children(child) if reset is None else reset()


class ZeroLinear(nn.Linear):
    """`nn.Linear` that starts as zero."""

    def reset_parameters(self) -> None:
        super().reset_parameters()
        nn.init.zeros_(self.weight)


class ScaledEmbedding(nn.Embedding):
    """`nn.Embedding` that starts as N(0, `std`²), by default N(0, 1 / D)."""

    def __init__(self, rows: int, width: int, *, std: float | None = None, **options: Any) -> None:
        self.std = width**-0.5 if std is None else std
        super().__init__(rows, width, **options)

    def reset_parameters(self) -> None:
        super().reset_parameters()  # its draw too, so that what a seed gives later does not depend on this class
        nn.init.normal_(self.weight, std=self.std)
        self._fill_padding_idx_with_zero()


class Slopes(nn.ParameterList):
    """One parameter per hidden layer, all of one value at the start."""

    def __init__(self, sizes: Iterable[int], start: float) -> None:
        super().__init__(nn.Parameter(torch.full((size,), start)) for size in sizes)
        self.start = start

    def reset_parameters(self) -> None:
        for slope in self:
            nn.init.constant_(slope, self.start)
