"""DIN: target attention over the history, then an MLP (Deep Interest Network, arXiv 1706.06978)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mixpol_kernels.nn import MixedPolarityAttention
from mixpol_models.backbones.attend import Watch, pool
from mixpol_models.backbones.base import TargetAttentionBackbone
from mixpol_models.backbones.inputs import user_table
from mixpol_models.data import Batch


class DIN(TargetAttentionBackbone):
    """Deep Interest Network over a jagged, possibly mixed-polarity history.

        t = E[target],  u = attention(t, history),  logit = MLP([t ; u ; t * u ; context ; user])

    History and target share the item table E; the history's polarity enters by `fusion`. Under autocast the
    attention stays in float32, which is what the compiled kernel takes and what the tables are kept in: only the
    MLP runs in the lower precision.

    `history_attention`: the weights of the attention; with normalize "none" they may be negative and have any sum.

    Args:
        attention_units: hidden layers of the activation unit, one to three.
        activation: of the activation unit, as in `mixpol_kernels.nn.TargetAttention`.
        normalize: "none" (DIN's sum), "softmax" or "sigmoid".
        *sizes, **options: see `BackboneOptions`; `embedding_dim` is 16 by default.

    Attributes:
        attention: `MixedPolarityAttention`, which owns the item table.
        context_embedding, user_embedding: `nn.Embedding`; the latter None without users.
        tower: the MLP.

    Example:
        >>> from mixpol_models.data.batches import random_batch
        >>> sizes = {"n_items": 50, "n_users": 9, "n_contexts": 3}
        >>> model, batch = DIN(**sizes, fusion="tapf", backend="reference"), random_batch([2, 1], **sizes)
        >>> model(batch).shape, model.history_attention(batch).shape
        (torch.Size([2]), torch.Size([3]))
    """

    def __init__(self, *sizes: int, **options: Any) -> None:
        super().__init__(*sizes, **options)
        shared = self.options
        dim = shared.embedding_dim
        units, activation, normalize = self.unit
        self.attention = MixedPolarityAttention(
            shared.n_items, dim, units, shared.fusion, activation, normalize, sparse=shared.sparse,
            backend=shared.backend,
        )  # fmt: skip
        self.context_embedding = nn.Embedding(shared.n_contexts, shared.context_dim)
        self.user_embedding = user_table(shared)
        self.tower = self._mlp((3 if self.user_embedding is None else 4) * dim + shared.context_dim)

    def _encode(self, batch: Batch, watch: Watch | None) -> Tensor:
        polarity = None if self.options.fusion == "none" else batch.polarity
        with torch.autocast(batch.label.device.type, enabled=False):
            target, history = self._look_up(batch)
            pooled = pool(self.attention, watch, target, history, polarity, offsets=batch.offsets)
        parts = [target, pooled, target * pooled, self.context_embedding(batch.context)]
        if self.user_embedding is not None:
            parts.append(self.user_embedding(batch.user))
        return torch.cat(parts, dim=-1)

    def _look_up(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Target rows, and the history's ids; or its rows, where the table is not one that the kernel can read."""
        items = self.attention.item_embedding
        if isinstance(items, nn.Embedding):
            return items(batch.target_item), batch.item_ids
        rows = items(torch.cat([batch.target_item, batch.item_ids]))
        return rows[: len(batch)], rows[len(batch) :]
