"""Training sequences: inputs and labels of one stream per user, jagged, and batches of them."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal, Self

import numpy as np
import torch
from torch import Tensor

from mixpol_models.pnfrec.events import Events

Kind = Literal["positive", "negative", "all", "mixed"]


@dataclass(frozen=True)
class Tokens:
    """Sequences of a batch, packed: N tokens of B users.

    Attributes:
        item: [N] int64 input items, oldest first.
        label: [N] int64, the item to predict.
        polarity: [N] int64, 1 where the input was positive.
        label_positive: [N] bool.
        position: [N] int64, from the oldest kept item.
        slot: [N] int64, place in the padded [B · length].
        lengths: [B] int64.
        length: the longest, at least 1.
    """

    item: Tensor
    label: Tensor
    polarity: Tensor
    label_positive: Tensor
    position: Tensor
    slot: Tensor
    lengths: Tensor
    length: int

    def pad(self, values: Tensor) -> Tensor:
        """[N, ...] to [B, length, ...], zeros behind."""
        padded = values.new_zeros(len(self.lengths) * self.length, *values.shape[1:])
        return padded.index_copy(0, self.slot, values).view(len(self.lengths), self.length, *values.shape[1:])

    def pack(self, padded: Tensor) -> Tensor:
        """[B, length, ...] to [N, ...]."""
        return padded.flatten(0, 1).index_select(0, self.slot)

    def to(self, device: torch.device) -> Self:
        """On another device."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return type(self)(**{k: v.to(device) if isinstance(v, Tensor) else v for k, v in values.items()})


@dataclass(frozen=True)
class Stream:
    """All users' inputs and labels of one kind. Fields as in `Tokens`, with offsets [users + 1]."""

    item: Tensor
    label: Tensor
    polarity: Tensor
    label_positive: Tensor
    offsets: Tensor

    @classmethod
    def of(cls, events: Events, kind: Kind, limit: int) -> Stream:
        """Cuts a stream out of the events.

        Args:
            events: of all users.
            kind: "positive" or "negative": the user's newest events of that polarity, each predicting the next of it.
                "all": the newest events, each predicting the next of either polarity. "mixed": each predicting the next
                *positive*; what follows a user's last positive predicts nothing and is left out.
            limit: most inputs per user.
        """
        if kind in ("positive", "negative"):
            events = events.where(events.positive == (kind == "positive"))
        elif kind == "mixed":
            index = np.arange(len(events.item))
            final = np.full(len(events), -1)
            np.maximum.at(final, events.row[events.positive], index[events.positive])
            events = events.where(index <= final[events.row])
        events = events.newest(limit + 1)
        source = np.ones(len(events.item), bool)
        source[events.last[events.counts > 0]] = False
        following = np.arange(1, len(events.item) + 1)
        if kind == "mixed":
            # The last event of every user is positive here, so the next positive is the user's own.
            index = np.where(events.positive, np.arange(len(events.item)), len(events.item))
            following = np.append(np.minimum.accumulate(index[::-1])[::-1][1:], len(events.item))
        inputs, target = events.where(source), following[source]
        return cls(
            item=torch.from_numpy(inputs.item),
            label=torch.from_numpy(events.item[target]),
            polarity=torch.from_numpy(inputs.positive.astype(np.int64)),
            label_positive=torch.from_numpy(events.positive[target]),
            offsets=torch.from_numpy(inputs.offsets),
        )

    @classmethod
    def inputs(cls, events: Events, limit: int) -> Stream:
        """The newest events as inputs, with nothing to predict (labels 0): for inference."""
        events = events.newest(limit)
        item, positive = torch.from_numpy(events.item), torch.from_numpy(events.positive)
        return cls(item, torch.zeros_like(item), positive.long(), positive, torch.from_numpy(events.offsets))

    def __len__(self) -> int:
        """Users."""
        return len(self.offsets) - 1

    def batch(self, users: Tensor) -> Tokens:
        """The sequences of `users` [B] int64, in that order."""
        starts, lengths = self.offsets[users], self.offsets[users + 1] - self.offsets[users]
        length = max(int(lengths.max()) if len(lengths) else 0, 1)
        row = torch.repeat_interleave(torch.arange(len(users)), lengths)
        position = torch.arange(len(row)) - (lengths.cumsum(0) - lengths)[row]
        index = starts[row] + position
        return Tokens(
            *(getattr(self, name)[index] for name in ("item", "label", "polarity", "label_positive")),
            position=position,
            slot=row * length + position,
            lengths=lengths,
            length=length,
        )
