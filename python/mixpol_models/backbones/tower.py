"""The layers between the concatenated embeddings and the logit."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import nn


def tower(width: int, units: Sequence[int], dropout: float = 0.0) -> nn.Sequential:
    """Linear, ReLU and dropout per entry of `units`, then one output.

    Args:
        width: inputs.
        units: hidden widths; may be empty, which leaves a linear model.
        dropout: probability, behind each ReLU.

    Returns:
        [B, width] to [B, 1].
    """
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise([width, *units]):
        layers += [nn.Linear(inputs, outputs), nn.ReLU(), nn.Dropout(dropout)]
    return nn.Sequential(*layers, nn.Linear([width, *units][-1], 1))
