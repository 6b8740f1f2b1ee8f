"""Base classes of the backbones: what a subclass encodes of a batch goes through an MLP to the logit."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from mixpol_models.backbones.attend import Watch
from mixpol_models.backbones.inputs import Embedded, Inputs
from mixpol_models.backbones.options import BackboneOptions
from mixpol_models.backbones.padding import Padding
from mixpol_models.data import Batch


class Backbone(nn.Module, ABC):
    """A CTR model: one logit per example.

    A subclass sets `self.tower` by `_mlp` at the end of its constructor, and gives `_encode`.

    Args:
        *sizes, **options: fields of `BackboneOptions`; the table sizes may stand first, without names.

    Attributes:
        options: `BackboneOptions`.
        tower: the MLP.
    """

    tower: nn.Module

    def __init__(self, *sizes: int, **options: Any) -> None:
        super().__init__()
        self.options = BackboneOptions(*sizes, **options)

    def _mlp(self, width: int) -> nn.Module:
        """Linear, ReLU and dropout per entry of `tower_units`, then one output: [B, width] to [B, 1]."""
        layers: list[nn.Module] = []
        widths = [width, *self.options.tower_units]
        for inputs, outputs in pairwise(widths):
            layers += [nn.Linear(inputs, outputs), nn.ReLU(), nn.Dropout(self.options.dropout)]
        return nn.Sequential(*layers, nn.Linear(widths[-1], 1))

    @abstractmethod
    def _encode(self, batch: Batch, watch: Watch | None) -> Tensor:
        """Inputs of the MLP, [B, width]. Attention weights go to `watch` if there is one."""

    def _history_weights(self, watch: Watch, batch: Batch) -> Tensor:
        """The weight of each history event, [N], from the recorded attention weights."""
        return watch[0]

    def forward(self, batch: Batch) -> Tensor:
        """Logits [B]."""
        return self.tower(self._encode(batch, None)).squeeze(-1)

    @torch.no_grad()
    def history_attention(self, batch: Batch) -> Tensor:
        """The attention weight of each history event, without dropout; the backbone's docstring says which one.

        Returns:
            [N] float32, jagged as the batch. Of softmax weights the sum over one history is at most 1.
        """
        training, watch = self.training, Watch()
        self.eval()
        try:
            self._encode(batch, watch)
        finally:
            self.train(training)
        return self._history_weights(watch, batch)


class TargetAttentionBackbone(Backbone):
    """A backbone whose history layer is target attention by an activation unit.

    Args:
        attention_units: hidden layers of the activation unit, one to three.
        activation: of the activation unit, as in `mixpol_kernels.nn.TargetAttention`.
        normalize: "none" (DIN's sum), "softmax" or "sigmoid".
        *sizes, **options: see `BackboneOptions`; `embedding_dim` is 16 by default.

    Attributes:
        unit: (attention_units, activation, normalize).
    """

    def __init__(
        self,
        *sizes: int,
        attention_units: Sequence[int] = (64,),
        activation: str = "relu",
        normalize: str = "none",
        **options: Any,
    ) -> None:
        super().__init__(*sizes, **{"embedding_dim": 16} | options)
        self.unit = (attention_units, activation, normalize)


class TokenBackbone(Backbone):
    """A backbone whose layers work on padded history tokens; a subclass gives `_states` and `_token_weights`."""

    def __init__(self, *sizes: int, **options: Any) -> None:
        super().__init__(*sizes, **options)
        self.inputs = Inputs(self.options)

    @abstractmethod
    def _states(self, embedded: Embedded, batch: Batch, padding: Padding, watch: Watch | None) -> Tensor:
        """As `_encode`."""

    @abstractmethod
    def _token_weights(self, weights: Tensor, padding: Padding) -> Tensor:
        """From one layer's weights [B, H, Q, K] those of the history tokens: [B, K'], for the newest K' columns."""

    def _encode(self, batch: Batch, watch: Watch | None) -> Tensor:
        return self._states(self.inputs(batch), batch, Padding.of(batch.offsets), watch)

    def _history_weights(self, watch: Watch, batch: Batch) -> Tensor:
        padding = Padding.of(batch.offsets)
        total = torch.zeros(padding.shape, device=batch.offsets.device)
        for weights in watch:
            of_tokens = self._token_weights(weights, padding)
            total[:, total.shape[1] - of_tokens.shape[1] :] += of_tokens
        return padding.unpad(total / len(watch))
