"""DIN whose events carry an action field: polarity concatenated to the item instead of added to it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mixpol_kernels.nn import TargetAttention
from mixpol_kernels.nn.starts import ScaledEmbedding
from mixpol_models.backbones.attend import Watch, pool
from mixpol_models.backbones.base import TargetAttentionBackbone
from mixpol_models.backbones.inputs import Inputs
from mixpol_models.data import Batch


class DINAction(TargetAttentionBackbone):
    """The way of UniRank (arXiv 2607.19987) and DLRM-v3 to encode an action: a field of its own beside the item.

        h_j = [E[item_j] ; A[s_j]],  t = [E[target] ; a],  u = attention(t, h)
        logit = MLP([t ; u ; t * u ; context ; user])

    a is a learned placeholder: what the user will do is not known yet. The field says the polarity, so the plain
    baseline has fusion "none", the default here.

    `history_attention`: the weights of the attention, as DIN's.

    Args:
        attention_units, activation, normalize: of the attention, see `DIN`.
        action_dim: width of the action field; None takes `embedding_dim`, a field as wide as any other.
        *sizes, **options: see `BackboneOptions`. `embedding_dim` is 16 and `fusion` "none" by default.

    Example:
        >>> from mixpol_models.data.batches import random_batch
        >>> sizes = {"n_items": 50, "n_users": 9, "n_contexts": 3}
        >>> model, batch = DINAction(**sizes, fusion="tapf", backend="reference"), random_batch([2, 1], **sizes)
        >>> model(batch).shape, model.history_attention(batch).shape
        (torch.Size([2]), torch.Size([3]))
    """

    def __init__(self, *sizes: int, action_dim: int | None = None, **options: Any) -> None:
        super().__init__(*sizes, **{"fusion": "none"} | options)
        dim = self.options.embedding_dim
        action_dim = dim if action_dim is None else action_dim
        width = dim + action_dim
        self.inputs = Inputs(self.options)
        # Row 0 negative, 1 positive, 2 the target's placeholder.
        self.action_embedding = ScaledEmbedding(3, action_dim)
        self.attention = TargetAttention(width, *self.unit, self.options.backend)
        self.tower = self._mlp(2 * width + action_dim + sum(self.inputs.widths))

    def _encode(self, batch: Batch, watch: Watch | None) -> Tensor:
        embedded = self.inputs(batch)
        placeholder = self.action_embedding.weight[2].expand(len(batch), -1)
        target = torch.cat([embedded.target, placeholder], dim=-1)
        history = torch.cat([embedded.history, self.action_embedding(batch.polarity.long())], dim=-1)
        with torch.autocast(target.device.type, enabled=False):
            pooled = pool(self.attention, watch, target, history, offsets=batch.offsets)
        return torch.cat([pooled, target * pooled, placeholder, *embedded.features], dim=-1)
