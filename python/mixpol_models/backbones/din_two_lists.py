"""DIN over two lists: one target attention for positive events, another for negative ones."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mixpol_kernels.nn import TargetAttention
from mixpol_models.backbones.attend import Watch, pool
from mixpol_models.backbones.base import TargetAttentionBackbone
from mixpol_models.backbones.inputs import Inputs
from mixpol_models.data import Batch


class DINTwoLists(TargetAttentionBackbone):
    """The usual way to use negatives beside the mixed sequence: split the history by polarity, attend to each part.

        u+ = attention+(t, positives),  u- = attention-(t, negatives)
        logit = MLP([t ; u+ ; u- ; t * u+ ; t * u- ; context ; user])

    Both lists come from one history, so their lengths together are within its budget, and read one item table. The
    list says the polarity, so the plain baseline has fusion "none", the default here.

    `history_attention`: the weights of either attention, as DIN's.

    Args:
        attention_units, activation, normalize: of both attentions, see `DIN`.
        *sizes, **options: see `BackboneOptions`. `embedding_dim` is 16 and `fusion` "none" by default.

    Example:
        >>> from mixpol_models.data.batches import random_batch
        >>> sizes = {"n_items": 50, "n_users": 9, "n_contexts": 3}
        >>> model, batch = DINTwoLists(**sizes, fusion="tapf", backend="reference"), random_batch([2, 1], **sizes)
        >>> model(batch).shape, model.history_attention(batch).shape
        (torch.Size([2]), torch.Size([3]))
    """

    def __init__(self, *sizes: int, **options: Any) -> None:
        super().__init__(*sizes, **{"fusion": "none"} | options)
        dim = self.options.embedding_dim
        self.inputs = Inputs(self.options)
        self.positive, self.negative = (TargetAttention(dim, *self.unit, self.options.backend) for _ in range(2))
        self.tower = self._mlp(4 * dim + sum(self.inputs.widths))

    def _encode(self, batch: Batch, watch: Watch | None) -> Tensor:
        embedded = self.inputs(batch)
        target, pooled = embedded.target, []
        with torch.autocast(target.device.type, enabled=False):
            for attention, events in ((self.positive, batch.polarity != 0), (self.negative, batch.polarity == 0)):
                offsets = torch.nn.functional.pad(events.cumsum(0), (1, 0))[batch.offsets]
                pooled.append(pool(attention, watch, target, embedded.history[events], offsets=offsets))
        return torch.cat([*pooled, *(target * part for part in pooled), *embedded.features], dim=-1)

    def _history_weights(self, watch: Watch, batch: Batch) -> Tensor:
        weights = watch[0].new_zeros(len(batch.item_ids))
        weights[batch.polarity != 0], weights[batch.polarity == 0] = watch
        return weights
