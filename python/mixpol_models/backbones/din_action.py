"""DIN whose events carry an action field: polarity concatenated to the item instead of added to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack

import torch
from torch import Tensor

from mixpol_kernels.nn import TargetAttention
from mixpol_kernels.nn.starts import ScaledEmbedding
from mixpol_models.backbones.attend import Watch
from mixpol_models.backbones.frame import Backbone, Frame
from mixpol_models.backbones.inputs import Embedded
from mixpol_models.data import Batch


class DINAction(Backbone):
    """The way of UniRank (arXiv 2607.19987) and DLRM-v3 to encode an action: a field of its own beside the item.

        h_j = [E[item_j] ; A[s_j]],  t = [E[target] ; a],  u = attention(t, h)
        logit = MLP([t ; u ; t * u ; context ; user])

    a is a learned placeholder: what the user will do is not known yet. The field says the polarity, so the plain
    baseline has fusion "none", the default here.

    `history_attention`: the weights of the attention, as DIN's.

    Args:
        n_items, n_users, n_contexts: table sizes.
        attention_units, activation, normalize: of the attention, see `DIN`.
        action_dim: width of the action field; None takes `embedding_dim`, a field as wide as any other.
        **frame: see `Backbone`. `embedding_dim` is 16 and `fusion` "none" by default.

    Example:
        >>> import torch
        >>> from mixpol_models.data import Batch
        >>> model = DINAction(n_items=50, n_users=9, n_contexts=3, fusion="tapf", backend="reference")
        >>> batch = Batch(
        ...     user=torch.tensor([0, 8]), target_item=torch.tensor([7, 9]), context=torch.tensor([0, 2]),
        ...     label=torch.tensor([1.0, 0.0]), item_ids=torch.tensor([3, 1, 2]),
        ...     polarity=torch.tensor([1, 0, 0], dtype=torch.uint8), offsets=torch.tensor([0, 2, 3]),
        ... )
        >>> model(batch).shape, model.history_attention(batch).shape
        (torch.Size([2]), torch.Size([3]))
    """

    def __init__(
        self,
        n_items: int,
        n_users: int,
        n_contexts: int,
        *,
        attention_units: Sequence[int] = (64,),
        activation: str = "relu",
        normalize: str = "none",
        action_dim: int | None = None,
        **frame: Unpack[Frame],
    ) -> None:
        frame = {"embedding_dim": 16, "fusion": "none", **frame}
        super().__init__(n_items, n_users, n_contexts, **frame)
        action_dim = self.embedding_dim if action_dim is None else action_dim
        width = self.embedding_dim + action_dim
        # Row 0 negative, 1 positive, 2 the target's placeholder.
        self.action_embedding = ScaledEmbedding(3, action_dim)
        self.attention = TargetAttention(width, attention_units, activation, normalize, self.backend)
        self.tower = self._head(2 * width + action_dim + sum(self.inputs.widths))

    def _encode(self, embedded: Embedded, batch: Batch, watch: Watch | None) -> Tensor:
        placeholder = self.action_embedding.weight[2].expand(len(batch), -1)
        target = torch.cat([embedded.target, placeholder], dim=-1)
        history = torch.cat([embedded.history, self.action_embedding(batch.polarity.long())], dim=-1)
        with torch.autocast(target.device.type, enabled=False):
            pooled = self.attention(target, history, offsets=batch.offsets, return_weights=watch is not None)
        if watch is not None:
            pooled, weights = pooled
            watch.append(weights)
        return torch.cat([pooled, target * pooled, placeholder, *embedded.features], dim=-1)

    def _history_shares(self, watch: Watch, batch: Batch) -> Tensor:
        return watch[0]
