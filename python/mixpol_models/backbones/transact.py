"""TransAct-like: action, item and candidate fused early, then a small transformer (arXiv 2306.00248)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mixpol_models.backbones.attend import Watch
from mixpol_models.backbones.base import TokenBackbone
from mixpol_models.backbones.encoder import EncoderLayer
from mixpol_models.backbones.inputs import Embedded
from mixpol_models.backbones.options import check_at_least, check_heads
from mixpol_models.backbones.padding import Padding
from mixpol_models.data import Batch


class TransAct(TokenBackbone):
    """Every event is [action ; item ; target], 3 D wide by default; a baseline for how to encode negatives.

        x_j = [A[s_j] ; E[item_j] ; E[target]]  ->  post-norm layers
        logit = MLP([newest k states ; Linear(max over states) ; target ; context ; user])

    The action embedding says the polarity, so the plain baseline has fusion "none", the default here. Not built: the
    random time window that the original masks in training, since a batch holds no times. No positions, as there.

    `history_attention`: the softmax rows of all events, mean over them, layers and heads; they sum to 1.

    Args:
        layers: of the encoder.
        heads: divides `action_dim` + 2 D.
        action_dim: width of the action embedding; None takes D.
        ffn_dim: hidden width of the feed-forward layers; None takes D.
        first: k; histories that are shorter give zeros.
        *sizes, **options: see `BackboneOptions`. `fusion` is "none" by default.

    Example:
        >>> from mixpol_models.data.batches import random_batch
        >>> sizes = {"n_items": 50, "n_users": 9, "n_contexts": 3}
        >>> model, batch = TransAct(**sizes, fusion="tapf", backend="reference"), random_batch([2, 1], **sizes)
        >>> model(batch).shape, model.history_attention(batch).shape
        (torch.Size([2]), torch.Size([3]))
    """

    def __init__(
        self,
        *sizes: int,
        layers: int = 2,
        heads: int = 2,
        action_dim: int | None = None,
        ffn_dim: int | None = None,
        first: int = 10,
        **options: Any,
    ) -> None:
        super().__init__(*sizes, **{"fusion": "none"} | options)
        dim = self.options.embedding_dim
        action_dim = dim if action_dim is None else action_dim
        ffn_dim = dim if ffn_dim is None else ffn_dim
        check_at_least(1, layers=layers, action_dim=action_dim, ffn_dim=ffn_dim, first=first)
        width = action_dim + 2 * dim
        check_heads(width, heads, "action_dim + 2 embedding_dim")
        self.first = first
        self.action_embedding = nn.Embedding(2, action_dim)
        self.layers = nn.ModuleList(
            EncoderLayer(width, heads, ffn_dim, nn.ReLU, self.options.dropout) for _ in range(layers)
        )
        self.pool = nn.Linear(width, width)
        self.tower = self._mlp((first + 1) * width + sum(self.inputs.widths))

    def _states(self, embedded: Embedded, batch: Batch, padding: Padding, watch: Watch | None) -> Tensor:
        actions = self.action_embedding(batch.polarity.long())
        targets = embedded.target.repeat_interleave(batch.offsets.diff(), dim=0, output_size=len(batch.item_ids))
        x = padding.pad(torch.cat([actions, embedded.history, targets], dim=-1))
        for layer in self.layers:
            x = layer(x, padding.keep, watch=watch)
        kept = padding.keep[..., None]
        newest = torch.where(kept, x, 0)[:, -self.first :]
        newest = nn.functional.pad(newest, (0, 0, self.first - newest.shape[1], 0))
        largest = x.masked_fill(~kept, -torch.inf).amax(dim=1)
        largest = torch.where(padding.keep.any(dim=1, keepdim=True), largest, 0)
        return torch.cat([newest.flatten(1), self.pool(largest), *embedded.features], dim=-1)

    def _token_weights(self, weights: Tensor, padding: Padding) -> Tensor:
        rows = (weights.mean(dim=1) * padding.keep[..., None]).sum(dim=1)
        return rows / padding.keep.sum(dim=1, keepdim=True).clamp(min=1)
