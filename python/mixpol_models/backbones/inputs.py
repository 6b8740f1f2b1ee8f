"""Embeddings of a batch, with the history marked by polarity."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mixpol_kernels.nn import PolarityFusion
from mixpol_kernels.nn.starts import ScaledEmbedding
from mixpol_models.backbones.options import BackboneOptions
from mixpol_models.data import Batch


@dataclass(frozen=True, eq=False)
class Embedded:
    """The vectors of a batch.

    Attributes:
        target: [B, D] float32.
        history: [N, D] float32, jagged as in the batch, after the fusion.
        context: [B, C] float32.
        user: [B, D] float32; None without users.
    """

    target: Tensor
    history: Tensor
    context: Tensor
    user: Tensor | None

    @property
    def features(self) -> list[Tensor]:
        """The non-sequential ones: user if there is one, target, context."""
        return [part for part in (self.user, self.target, self.context) if part is not None]


class Inputs(nn.Module):
    """Item, user and context tables, and the polarity fusion on history tokens before the first layer.

    Args:
        options: of the backbone.

    Attributes:
        item_embedding, context_embedding, user_embedding: `nn.Embedding`; the last None without users.
        fusion: `PolarityFusion`.
        token_layer: None, or a layer from D to D for history and target embeddings before the fusion, which a backbone
            sets (OneTrans' sequence MLP); `Embedded.target` stays the plain embedding.
    """

    def __init__(self, options: BackboneOptions) -> None:
        super().__init__()
        self.item_embedding = ScaledEmbedding(options.n_items, options.embedding_dim, sparse=options.sparse)
        self.context_embedding = nn.Embedding(options.n_contexts, options.context_dim)
        self.user_embedding = user_table(options)
        self.fusion = PolarityFusion(options.embedding_dim, options.fusion, backend=options.backend)
        self.token_layer: nn.Module | None = None

    @property
    def widths(self) -> list[int]:
        """Of `Embedded.features`, in order."""
        users = [] if self.user_embedding is None else [self.user_embedding.embedding_dim]
        return [*users, self.item_embedding.embedding_dim, self.context_embedding.embedding_dim]

    def forward(self, batch: Batch) -> Embedded:
        """The embeddings of a batch. The fusion stays in float32 under autocast, as in DIN."""
        # One look-up for both, so that the table has one gradient to sort.
        items = self.item_embedding(torch.cat([batch.target_item, batch.item_ids]))
        tokens = items if self.token_layer is None else self.token_layer(items)
        n = len(batch)
        polarity = None if self.fusion.fusion == "none" else batch.polarity
        with torch.autocast(items.device.type, enabled=False):
            history = self.fusion(tokens[:n].to(items), tokens[n:].to(items), polarity, offsets=batch.offsets)
        user = None if self.user_embedding is None else self.user_embedding(batch.user)
        return Embedded(items[:n], history, self.context_embedding(batch.context), user)


def user_table(options: BackboneOptions) -> nn.Embedding | None:
    """A vector per user; None without `user_embedding`."""
    if not options.user_embedding:
        return None
    # Most users are seen a few dozen times: a wide start would be noise that training has to remove.
    return ScaledEmbedding(options.n_users, options.embedding_dim, std=0.01, sparse=options.sparse)
