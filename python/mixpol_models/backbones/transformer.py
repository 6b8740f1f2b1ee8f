"""Transformer over the history with the target in it (BST) or as the query behind it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mixpol_kernels.checks import check_choice
from mixpol_kernels.nn import MultiHeadTargetAttention
from mixpol_models.backbones.attend import Watch
from mixpol_models.backbones.base import TokenBackbone
from mixpol_models.backbones.encoder import EncoderLayer
from mixpol_models.backbones.inputs import Embedded
from mixpol_models.backbones.options import check_at_least, check_heads
from mixpol_models.backbones.padding import Padding
from mixpol_models.backbones.positions import Positions
from mixpol_models.data import Batch


class Transformer(TokenBackbone):
    """Behaviour Sequence Transformer (arXiv 1905.06874), and the two-stage form of it.

        "appended"   [h_1 ... h_L ; t] + positions  ->  layers  ->  state of t
        "query"      h_1 ... h_L + positions        ->  layers  ->  attention of t to the states
        logit = MLP([state ; t ; context ; user])

    Post-norm layers with LeakyReLU and key padding mask, no causal mask. Which form "Beyond Positive Signals" used is
    not public. Positions count back from the target, which is 0. With "appended" the last layer is worked out for the
    target alone: nothing else of it is read.

    `history_attention`: the target's softmax row, mean over layers and heads. With "appended" the rest of 1 is what
    the target gave itself; "query" has one such layer and no rest.

    Args:
        form: "appended" (BST, the default) or "query": multi-head target attention over the encoded history, by the
            fused op. With "none" or "bias" its encoder does not know the target.
        layers: of the encoder; "query" may have 0.
        heads: of every attention.
        ffn_ratio: hidden width of the feed-forward layers over their width; 1 in FuxiCTR's BST.
        positions: "added" (default), "concatenated" (FuxiCTR's BST: tokens are D + position_dim wide) or "none".
        position_dim: width of concatenated positions.
        max_length: longest history. `TrainConfig` gives its budget.
        *sizes, **options: see `BackboneOptions`.

    Example:
        >>> from mixpol_models.data.batches import random_batch
        >>> sizes = {"n_items": 50, "n_users": 9, "n_contexts": 3}
        >>> model, batch = Transformer(**sizes, fusion="tapf", backend="reference"), random_batch([2, 1], **sizes)
        >>> model(batch).shape, model.history_attention(batch).shape
        (torch.Size([2]), torch.Size([3]))
    """

    def __init__(
        self,
        *sizes: int,
        form: str = "appended",
        layers: int = 2,
        heads: int = 2,
        ffn_ratio: int = 1,
        positions: str = "added",
        position_dim: int = 8,
        max_length: int = 50,
        **options: Any,
    ) -> None:
        super().__init__(*sizes, **options)
        check_choice("form", form, ("appended", "query"))
        check_choice("positions", positions, ("added", "concatenated", "none"))
        check_at_least(1 if form == "appended" else 0, layers=layers)
        check_at_least(1, ffn_ratio=ffn_ratio, position_dim=position_dim, max_length=max_length)
        self.form = form
        concatenated = positions == "concatenated"
        width = self.options.embedding_dim + (position_dim if concatenated else 0)
        check_heads(width, heads, "embedding_dim + position_dim" if concatenated else "embedding_dim")
        self.concatenated = concatenated
        self.positions: Positions | None = None
        if positions != "none":
            # Position 0 is the target's, which "query" does not have among its tokens.
            rows = max_length + (form == "appended")
            self.positions = Positions(rows, position_dim if concatenated else self.options.embedding_dim)
        self.layers = nn.ModuleList(
            EncoderLayer(width, heads, ffn_ratio * width, nn.LeakyReLU, self.options.dropout) for _ in range(layers)
        )
        self.target_attention: MultiHeadTargetAttention | None = None
        self.target_layer: nn.Linear | None = None
        if form == "query":
            self.target_attention = MultiHeadTargetAttention(width, num_heads=heads, backend=self.options.backend)
            self.target_layer = nn.Linear(self.options.embedding_dim, width) if concatenated else None
        self.tower = self._mlp(width + sum(self.inputs.widths))

    def _placed(self, tokens: Tensor) -> Tensor:
        if self.positions is None:
            return tokens
        places = self.positions(tokens.shape[1])
        if not self.concatenated:
            return tokens + places
        return torch.cat([tokens, places.to(tokens).expand(len(tokens), -1, -1)], dim=-1)

    def _states(self, embedded: Embedded, batch: Batch, padding: Padding, watch: Watch | None) -> Tensor:
        history = padding.pad(embedded.history)
        if self.form == "appended":
            state = self._appended(embedded.target, history, padding, watch)
        else:
            state = self._query(embedded.target, history, batch, padding, watch)
        return torch.cat([state, *embedded.features], dim=-1)

    def _appended(self, target: Tensor, history: Tensor, padding: Padding, watch: Watch | None) -> Tensor:
        x = self._placed(torch.cat([history, target[:, None]], dim=1))
        keep = torch.nn.functional.pad(padding.keep, (0, 1), value=True)
        for layer in self.layers[:-1]:
            x = layer(x, keep, watch=watch)
        return self.layers[-1](x, keep, newest=1, watch=watch).squeeze(1)

    def _query(self, target: Tensor, history: Tensor, batch: Batch, padding: Padding, watch: Watch | None) -> Tensor:
        assert self.target_attention is not None
        x = self._placed(history)
        for layer in self.layers:
            x = layer(x, padding.keep)
        query = target if self.target_layer is None else self.target_layer(target)
        states = padding.unpad(x).to(target)
        result = self.target_attention(
            query.to(target), states, offsets=batch.offsets, return_weights=watch is not None
        )
        if watch is None:
            return result
        state, weights = result
        watch.append(padding.pad(weights).mT[:, :, None])
        return state

    def _token_weights(self, weights: Tensor, padding: Padding) -> Tensor:
        columns = padding.shape[1]
        return weights[:, :, -1, :columns].mean(dim=1)
