"""DIN over two lists: one target attention for positive events, another for negative ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack

import torch
from torch import Tensor

from mixpol_kernels.nn import TargetAttention
from mixpol_models.backbones.attend import Watch
from mixpol_models.backbones.frame import Backbone, Frame
from mixpol_models.backbones.inputs import Embedded
from mixpol_models.data import Batch


class DINTwoLists(Backbone):
    """The usual way to use negatives beside the mixed sequence: split the history by polarity, attend to each part.

        u+ = attention+(t, positives),  u- = attention-(t, negatives)
        logit = MLP([t ; u+ ; u- ; t * u+ ; t * u- ; context ; user])

    Both lists come from one history, so their lengths together are within its budget, and read one item table. The
    list says the polarity, so the plain baseline has fusion "none", the default here.

    `history_attention`: the weights of either attention, as DIN's.

    Args:
        n_items, n_users, n_contexts: table sizes.
        attention_units, activation, normalize: of both attentions, see `DIN`.
        **frame: see `Backbone`. `embedding_dim` is 16 and `fusion` "none" by default.

    Example:
        >>> import torch
        >>> from mixpol_models.data import Batch
        >>> model = DINTwoLists(n_items=50, n_users=9, n_contexts=3, fusion="tapf", backend="reference")
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
        **frame: Unpack[Frame],
    ) -> None:
        frame = {"embedding_dim": 16, "fusion": "none", **frame}
        super().__init__(n_items, n_users, n_contexts, **frame)
        dim = self.embedding_dim
        self.positive, self.negative = (
            TargetAttention(dim, attention_units, activation, normalize, self.backend) for _ in range(2)
        )
        self.tower = self._head(4 * dim + sum(self.inputs.widths))

    def _encode(self, embedded: Embedded, batch: Batch, watch: Watch | None) -> Tensor:
        target = embedded.target
        weights = target.new_zeros(len(batch.item_ids))
        pooled = []
        with torch.autocast(target.device.type, enabled=False):
            for attention, events in ((self.positive, batch.polarity != 0), (self.negative, batch.polarity == 0)):
                offsets = torch.nn.functional.pad(events.cumsum(0), (1, 0))[batch.offsets]
                result = attention(target, embedded.history[events], offsets=offsets, return_weights=watch is not None)
                if watch is None:
                    pooled.append(result)
                else:
                    pooled.append(result[0])
                    weights[events] = result[1]
        if watch is not None:
            watch.append(weights)
        return torch.cat([*pooled, *(target * part for part in pooled), *embedded.features], dim=-1)

    def _history_shares(self, watch: Watch, batch: Batch) -> Tensor:
        return watch[0]
