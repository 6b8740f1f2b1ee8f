"""`EagerAttention`: the eager form of the fused layer, in its place in a model."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mixpol_kernels.nn import MixedPolarityAttention
from mixpol_models.bench.implementations import Concat
from mixpol_models.bench.padding import pad_right
from mixpol_models.bench.polarity_forms import Composed, EagerFusion
from mixpol_models.data import Batch


class EagerAttention(nn.Module):
    """A `MixedPolarityAttention` over its own parameters as models write it: padded, 4 D wide concat, plain PyTorch.

    Args:
        layer: whose parameters are used; without extra ids.
        batch: the one batch that it will be called with. It is padded here: padding is a loader's work, and is left out
            of the layer's time.
        length: padded to; default the longest history of the batch.

    Attributes:
        item_ids, polarity: [B, L] int64, 0 at pads, which are on the right.
        padding: the kept positions.
    """

    def __init__(self, layer: MixedPolarityAttention, batch: Batch, length: int | None = None) -> None:
        super().__init__()
        if layer.fusion.extra_table is not None:
            raise ValueError(
                f"layer has the fusion {layer.fusion}, expected no extra table: the batch has no extra ids"
            )
        self.item_embedding, self.fusion = layer.item_embedding, layer.fusion  # which DIN reads
        self.form = Composed(layer, EagerFusion, Concat)
        lengths = batch.offsets.diff()
        self.padding = pad_right(lengths, max(1, int(lengths.max())) if length is None else length)
        kept = self.padding.mask.bool()
        self.item_ids, self.polarity = torch.zeros(2, *kept.shape, dtype=torch.int64)
        self.item_ids[kept] = batch.item_ids
        self.polarity[kept] = batch.polarity.long()

    def forward(self, target: Tensor, item_ids: Tensor, polarity: Tensor | None, *, offsets: Tensor) -> Tensor:
        """Pooled vectors [B, D] of the padded history; the jagged one only says which batch it is."""
        pooled: Tensor = self.form(target, self.item_ids, self.polarity, self.padding)
        return pooled
