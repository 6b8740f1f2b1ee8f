"""One jagged batch of examples with their histories."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Batch:
    """B examples with N history events in total, oldest first within each history.

    Attributes:
        user: [B] int64.
        target_item: [B] int64.
        context: [B] int64, 0 where the log has none.
        label: [B] float32, 1 positive, 0 negative.
        item_ids: [N] int64, jagged.
        polarity: [N] uint8, jagged, 0 negative, 1 positive.
        offsets: [B+1] int64; the history of example b is item_ids[offsets[b] : offsets[b+1]], maybe empty.
    """

    user: Tensor
    target_item: Tensor
    context: Tensor
    label: Tensor
    item_ids: Tensor
    polarity: Tensor
    offsets: Tensor

    def __len__(self) -> int:
        return len(self.label)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The batch on another device."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """The batch in page-locked memory; DataLoader calls it."""
        return self._map(Tensor.pin_memory)

    def _map(self, function: Callable[[Tensor], Tensor]) -> Batch:
        return Batch(**{field.name: function(getattr(self, field.name)) for field in fields(self)})


def random_batch(lengths: Sequence[int], n_items: int, n_users: int, n_contexts: int) -> Batch:
    """A batch for examples and tests, drawn with torch's global generator.

    Args:
        lengths: events of each history, one entry per example.
        n_items, n_users, n_contexts: every id is below them; users and contexts count up.
    """
    n, events = len(lengths), sum(lengths)
    return Batch(
        user=torch.arange(n) % n_users,
        target_item=torch.randint(n_items, (n,)),
        context=torch.arange(n) % n_contexts,
        label=(torch.arange(n) % 2).float(),
        item_ids=torch.randint(n_items, (events,)),
        polarity=torch.randint(2, (events,), dtype=torch.uint8),
        offsets=torch.tensor([0, *lengths]).cumsum(0),
    )
