"""Examples with their histories, and loaders over them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, Sampler

from mixpol_models.data.batches import Batch
from mixpol_models.data.histories import Histories
from mixpol_models.data.log import InteractionLog
from mixpol_models.data.sequence import SequenceConfig

Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class ExampleSet(Dataset[Batch]):
    """n impressions of one split, in (user, time) order.

    Attributes:
        user, item, context: [n] int64.
        label: [n] float32.
        histories: what each may see.
    """

    user: Ints
    item: Ints
    context: Ints
    label: NDArray[np.float32]
    histories: Histories

    def __len__(self) -> int:
        return len(self.label)

    def __getitem__(self, index: Sequence[int] | Ints) -> Batch:
        """The batch of the examples `index` [B], in that order; indices may repeat."""
        index = np.asarray(index, dtype=np.int64)
        if index.ndim != 1:
            raise ValueError(f"index has shape {list(index.shape)}, expected [B]: one example is [i]")
        item_ids, polarity, offsets = self.histories.gather(index)
        columns = self.user[index], self.item[index], self.context[index], self.label[index]
        return Batch(*map(torch.from_numpy, (*columns, item_ids, polarity, offsets)))

    def batches(
        self,
        batch_size: int,
        *,
        shuffle: bool = False,
        seed: int = 0,
        epoch: int = 0,
        drop_last: bool = False,
    ) -> Iterator[Batch]:
        """One epoch of batches in this process. The arguments are those of `loader`."""
        sampler = EpochSampler(len(self), batch_size, shuffle=shuffle, seed=seed, drop_last=drop_last)
        sampler.set_epoch(epoch)
        return (self[index] for index in sampler)

    def loader(
        self,
        batch_size: int,
        *,
        shuffle: bool = False,
        seed: int = 0,
        num_workers: int = 0,
        pin_memory: bool = False,
        drop_last: bool = False,
    ) -> DataLoader[Batch]:
        """A DataLoader that yields `Batch`.

        Deterministic: the batches of epoch e depend on seed and e only, not on `num_workers`. The epoch
        counts up with every pass; `loader.sampler.set_epoch(e)` sets it.

        Args:
            batch_size: examples per batch.
            shuffle: a new order every epoch.
            seed: of the order.
            num_workers, pin_memory: as in DataLoader.
            drop_last: drop a last batch that is not full.
        """
        return DataLoader(
            self,
            batch_size=None,
            sampler=EpochSampler(len(self), batch_size, shuffle=shuffle, seed=seed, drop_last=drop_last),
            collate_fn=_as_is,
            num_workers=num_workers,
            pin_memory=pin_memory,
            persistent_workers=num_workers > 0,
        )


@dataclass(frozen=True, eq=False)
class Examples:
    """The three example sets of a log. They share one store of events."""

    train: ExampleSet
    valid: ExampleSet
    test: ExampleSet
    log: InteractionLog
    sequence: SequenceConfig


def build_examples(log: InteractionLog, sequence: SequenceConfig | None = None) -> Examples:
    """Gives every impression of the log its user's past, strictly before it.

    Args:
        log: the events and their splits. Any earlier event may stand in a history, whatever its split.
        sequence: budget and kind; by default the 50 most recent events.

    Returns:
        The example sets. Impressions without a past are kept, with an empty history.
    """
    sequence = sequence or SequenceConfig()
    store = log.history_store()

    def examples_of(split: str) -> ExampleSet:
        rows = np.flatnonzero((log.frame["split"] == split).to_numpy())
        user, item, context, label = (log.frame[name].to_numpy()[rows] for name in ("user", "item", "context", "label"))
        return ExampleSet(user, item, context, label.astype(np.float32), store.select(rows, sequence))

    return Examples(examples_of("train"), examples_of("valid"), examples_of("test"), log, sequence)


class EpochSampler(Sampler[Ints]):
    """Index arrays [batch_size], seeded by (seed, epoch). Lives in the main process, whatever the workers."""

    def __init__(self, n: int, batch_size: int, *, shuffle: bool, seed: int, drop_last: bool) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}, expected at least 1: 1024 is a good start")
        self.n, self.batch_size, self.drop_last = n, batch_size, drop_last
        self.shuffle, self.seed, self.epoch = shuffle, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """The epoch of the next pass."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.n // self.batch_size if self.drop_last else -(-self.n // self.batch_size)

    def __iter__(self) -> Iterator[Ints]:
        # A generator: DataLoader may ask for several iterators per pass, but draws from one only.
        rng = np.random.default_rng([self.seed, self.epoch])
        self.epoch += 1
        order = rng.permutation(self.n) if self.shuffle else np.arange(self.n)
        for i in range(len(self)):
            yield order[i * self.batch_size : (i + 1) * self.batch_size]


def _as_is(batch: Any) -> Any:
    return batch
