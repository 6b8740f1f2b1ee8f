"""The frame of the backbones: inputs, the backbone's own layers, the MLP, and a look at the attention."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TypedDict

import torch
from torch import Tensor, nn

from mixpol_models.backbones.attend import Watch
from mixpol_models.backbones.inputs import Embedded, Inputs
from mixpol_models.backbones.padding import Padding
from mixpol_models.backbones.tower import tower
from mixpol_models.data import Batch


class Frame(TypedDict, total=False):
    """Arguments that all backbones share; see `Backbone`."""

    embedding_dim: int
    context_dim: int
    tower_units: Sequence[int]
    fusion: str
    dropout: float
    user_embedding: bool
    sparse: bool
    backend: str


class Backbone(nn.Module, ABC):
    """Inputs, then what a subclass does with them, then an MLP.

    A subclass sets `self.tower` by `_head` at the end of its constructor, and gives `_encode` and `_history_shares`.

    Args:
        n_items, n_users, n_contexts: table sizes.
        embedding_dim: width D of items, users and tokens.
        context_dim: width of the context (tab).
        tower_units: hidden layers of the MLP.
        fusion: "none", "bias" or "tapf": how polarity marks a history event, before the first layer.
        dropout: probability in the MLP, and behind attention and feed-forward layers.
        user_embedding: have a learned vector per user.
        sparse: sparse gradients for the item and user tables.
        backend: of the fused ops: "auto", "cpu" or "reference". Self-attention is PyTorch's own.

    Attributes:
        inputs: `Inputs`, which owns the tables.
        tower: the MLP.
    """

    tower: nn.Module

    def __init__(
        self,
        n_items: int,
        n_users: int,
        n_contexts: int,
        *,
        embedding_dim: int = 32,
        context_dim: int = 8,
        tower_units: Sequence[int] = (128, 64),
        fusion: str = "bias",
        dropout: float = 0.0,
        user_embedding: bool = True,
        sparse: bool = True,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        self.inputs = Inputs(
            n_items, n_users, n_contexts, embedding_dim=embedding_dim, context_dim=context_dim, fusion=fusion,
            user_embedding=user_embedding, sparse=sparse, backend=backend,
        )  # fmt: skip
        self.embedding_dim = embedding_dim
        self.dropout = dropout
        self.backend = backend
        self._tower_units = tuple(tower_units)

    def _head(self, width: int) -> nn.Module:
        return tower(width, self._tower_units, self.dropout)

    @abstractmethod
    def _encode(self, embedded: Embedded, batch: Batch, watch: Watch | None) -> Tensor:
        """The inputs of the MLP, [B, width]. Attention weights go to `watch` if there is one."""

    @abstractmethod
    def _history_shares(self, watch: Watch, batch: Batch) -> Tensor:
        """What each event got of the watched weights, [N]."""

    def forward(self, batch: Batch) -> Tensor:
        """Logits [B]."""
        return self.tower(self._encode(self.inputs(batch), batch, None)).squeeze(-1)

    @torch.no_grad()
    def history_attention(self, batch: Batch) -> Tensor:
        """The attention that each history event got; the backbone's docstring says whose. Dropout is off.

        Returns:
            [N] float32, jagged as the batch. Of softmax weights the sum over one history is at most 1.
        """
        training, watch = self.training, Watch()
        self.eval()
        try:
            self._encode(self.inputs(batch), batch, watch)
        finally:
            self.train(training)
        return self._history_shares(watch, batch)


class TokenBackbone(Backbone):
    """A backbone whose layers work on padded history tokens; a subclass gives `_states` and `_shares`."""

    @abstractmethod
    def _states(self, embedded: Embedded, batch: Batch, padding: Padding, watch: Watch | None) -> Tensor:
        """As `_encode`."""

    @abstractmethod
    def _shares(self, weights: Tensor, padding: Padding) -> Tensor:
        """What each history token got of one layer's weights [B, H, Q, K]: [B, K'], for the newest K' columns."""

    def _encode(self, embedded: Embedded, batch: Batch, watch: Watch | None) -> Tensor:
        return self._states(embedded, batch, Padding.of(batch.offsets), watch)

    def _history_shares(self, watch: Watch, batch: Batch) -> Tensor:
        padding = Padding.of(batch.offsets)
        total = torch.zeros(padding.shape, device=batch.offsets.device)
        for weights in watch:
            share = self._shares(weights, padding)
            total[:, total.shape[1] - share.shape[1] :] += share
        return padding.unpad(total / len(watch))


def check_heads(width: int, heads: int, name: str = "embedding_dim") -> None:
    """Raises ValueError unless `heads` divides the width of the attention."""
    if heads < 1 or width % heads:
        raise ValueError(f"heads is {heads}, expected a divisor of {width} ({name}): change one of them")


def check_at_least(least: int, **values: int) -> None:
    """Raises ValueError for a value below `least`."""
    for name, value in values.items():
        if value < least:
            raise ValueError(f"{name} is {value}, expected at least {least}")
