"""DIN: target attention over the history, then an MLP (Deep Interest Network, arXiv 1706.06978)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mixpol_kernels.nn import MixedPolarityAttention
from mixpol_kernels.nn.starts import ScaledEmbedding
from mixpol_models.backbones.tower import tower
from mixpol_models.data import Batch


class DIN(nn.Module):
    """Deep Interest Network over a jagged, possibly mixed-polarity history.

        t = E[target],  u = attention(t, history),  logit = MLP([t ; u ; t * u ; context ; user])

    History and target share the item table E; the history's polarity enters by `fusion`. Under autocast the
    attention stays in float32, which is what the compiled kernel takes and what the tables are kept in: only the
    MLP runs in the lower precision.

    Args:
        n_items, n_users, n_contexts: table sizes.
        embedding_dim: width D of items, and of users if they are used.
        context_dim: width of the context (tab).
        attention_units: hidden layers of the activation unit, one to three.
        tower_units: hidden layers of the MLP.
        fusion: "none", "bias" or "tapf": how polarity marks a history event.
        activation: of the activation unit, as in `mixpol_kernels.nn.TargetAttention`.
        normalize: "none" (DIN's sum), "softmax" or "sigmoid".
        dropout: probability in the MLP.
        user_embedding: give the MLP a learned vector per user.
        sparse: sparse gradients for the item and user tables.
        backend: of the attention: "auto", "cpu" or "reference".

    Attributes:
        attention: `MixedPolarityAttention`, which owns the item table.
        context_embedding, user_embedding: `nn.Embedding`; the latter None without users.
        tower: the MLP.

    Example:
        >>> import torch
        >>> from mixpol_models.data import Batch
        >>> model = DIN(n_items=50, n_users=9, n_contexts=3, fusion="tapf", backend="reference")
        >>> batch = Batch(
        ...     user=torch.tensor([0, 8]), target_item=torch.tensor([7, 9]), context=torch.tensor([0, 2]),
        ...     label=torch.tensor([1.0, 0.0]), item_ids=torch.tensor([3, 1, 2]),
        ...     polarity=torch.tensor([1, 0, 0], dtype=torch.uint8), offsets=torch.tensor([0, 2, 3]),
        ... )
        >>> model(batch).shape
        torch.Size([2])
    """

    def __init__(
        self,
        n_items: int,
        n_users: int,
        n_contexts: int,
        *,
        embedding_dim: int = 16,
        context_dim: int = 8,
        attention_units: Sequence[int] = (64,),
        tower_units: Sequence[int] = (128, 64),
        fusion: str = "bias",
        activation: str = "relu",
        normalize: str = "none",
        dropout: float = 0.0,
        user_embedding: bool = True,
        sparse: bool = True,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        self.attention = MixedPolarityAttention(
            n_items, embedding_dim, attention_units, fusion, activation, normalize, sparse=sparse, backend=backend
        )
        self.context_embedding = nn.Embedding(n_contexts, context_dim)
        self.user_embedding: nn.Embedding | None = None
        width = 3 * embedding_dim + context_dim
        if user_embedding:
            # Most users are seen a few dozen times: a wide start would be noise that training has to remove.
            self.user_embedding = ScaledEmbedding(n_users, embedding_dim, std=0.01, sparse=sparse)
            width += embedding_dim
        self.tower = tower(width, tower_units, dropout)

    def forward(self, batch: Batch) -> Tensor:
        """Logits [B]."""
        polarity = None if self.attention.fusion.fusion == "none" else batch.polarity
        with torch.autocast(batch.label.device.type, enabled=False):
            target, history = self._look_up(batch)
            pooled = self.attention(target, history, polarity, offsets=batch.offsets)
        parts = [target, pooled, target * pooled, self.context_embedding(batch.context)]
        if self.user_embedding is not None:
            parts.append(self.user_embedding(batch.user))
        return self.tower(torch.cat(parts, dim=-1)).squeeze(-1)

    def _look_up(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Target rows, and the history's ids; or its rows, where the table is not one that the kernel can read."""
        items = self.attention.item_embedding
        if isinstance(items, nn.Embedding):
            return items(batch.target_item), batch.item_ids
        rows = items(torch.cat([batch.target_item, batch.item_ids]))
        return rows[: len(batch)], rows[len(batch) :]

    @torch.no_grad()
    def history_attention(self, batch: Batch) -> Tensor:
        """The attention weight of each history event, in evaluation mode.

        Returns:
            [N] float32, jagged as the batch. With normalize "none" weights may be negative and have any sum.
        """
        training = self.training
        self.eval()
        try:
            polarity = None if self.attention.fusion.fusion == "none" else batch.polarity
            target, history = self._look_up(batch)
            _, weights = self.attention(target, history, polarity, offsets=batch.offsets, return_weights=True)
        finally:
            self.train(training)
        return weights
