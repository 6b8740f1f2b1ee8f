"""The fused layer as people write it: padded, concatenated, in plain PyTorch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mixpol_kernels.nn import MixedPolarityAttention
from mixpol_models.data import Batch


@dataclass(frozen=True)
class PaddedHistory:
    """A jagged history as a padding loader would hand it over.

    Attributes:
        item_ids, polarity: [B, L] int64, 0 at pads, which are on the right.
        mask: [B, L] float32, 1 at events.
    """

    item_ids: Tensor
    polarity: Tensor
    mask: Tensor

    @classmethod
    def of(cls, batch: Batch, length: int | None = None) -> PaddedHistory:
        """Pads to `length`, by default the longest history in the batch."""
        lengths = batch.offsets.diff()
        length = max(1, int(lengths.max())) if length is None else length
        kept = torch.arange(length) < lengths[:, None]
        item_ids, polarity = torch.zeros(2, len(batch), length, dtype=torch.int64)
        item_ids[kept] = batch.item_ids
        polarity[kept] = batch.polarity.long()
        return cls(item_ids, polarity, kept.float())


class EagerAttention(nn.Module):
    """The function of a `MixedPolarityAttention` with relu and without softmax, over its own parameters.

    Looks up [B, L, D], adds polarity and gate, writes [t ; x ; t - x ; t * x] out 4 D wide, and runs ordinary layers
    over every position, pads included.

    Args:
        layer: whose parameters are used.
        history: the padded form of the one batch that it will be called with: padding is a loader's work, and is left
            out of the layer's time.
    """

    def __init__(self, layer: MixedPolarityAttention, history: PaddedHistory) -> None:
        super().__init__()
        unit = layer.attention
        if unit.activation != "relu" or unit.normalize != "none":
            raise ValueError(
                f"layer has activation {unit.activation!r} and normalize {unit.normalize!r}, expected 'relu' and "
                "'none': the eager form is written for these"
            )
        if layer.fusion.gate_inputs != "product" or layer.fusion.extra_table is not None:
            raise ValueError(
                f"layer has the fusion {layer.fusion}, expected gate_inputs 'product' and no extra table: the eager "
                "form is written for these"
            )
        self.item_embedding, self.fusion, self.attention = layer.item_embedding, layer.fusion, unit
        self.history = history

    def forward(self, target: Tensor, item_ids: Tensor, polarity: Tensor | None, *, offsets: Tensor) -> Tensor:
        """Pooled vectors [B, D] of the padded history; the jagged one only says which batch it is."""
        history, fusion = self.history, self.fusion
        x = self.item_embedding(history.item_ids)
        t = target[:, None, :].expand_as(x)
        if fusion.fusion == "tapf":
            gate = torch.sigmoid(fusion.gate(x * t))
            push = fusion.sign[history.polarity][..., None] * gate * fusion.target_projection(target)[:, None, :]
            x = x + F.embedding(history.polarity, fusion.polarity_table) + push
        elif fusion.fusion == "bias":
            x = x + F.embedding(history.polarity, fusion.polarity_table)
        score = torch.cat([t, x, t - x, t * x], dim=-1)
        *hidden, output = self.attention.layers
        for layer in hidden:
            score = F.relu(layer(score))
        weight = output(score) * history.mask[..., None]
        return (weight * x).sum(dim=1)
