"""Histories that were spoiled on purpose: what of the negatives is it that helps?"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from mixpol_models.data import Examples, ExampleSet
from mixpol_models.data.histories import Histories, HistoryStore, Ints

Ablation = Literal["none", "random negatives", "wrong polarity", "old negatives", "shuffled order"]
ABLATIONS: tuple[Ablation, ...] = get_args(Ablation)
# These touch nothing that a history of positives has.
ON_NEGATIVES = ("random negatives", "wrong polarity", "old negatives")


def ablate(examples: Examples, ablation: Ablation, seed: int = 0) -> Examples:
    """Replaces the histories of the examples, in all three splits.

    * "random negatives": the item of every negative event is drawn anew, from the items of all negative events of the
      log, so that popularity stays and the user's own choice goes.
    * "wrong polarity": the marks of all events of the log are permuted; which events a history holds does not change.
      (Marks that are all turned round would be no loss: a model can learn them the other way.)
    * "old negatives": each history keeps its number of negatives, but they are its user's oldest, not the newest.
    * "shuffled order": the events of each history in random order. A backbone without positions cannot notice.

    Args:
        examples: from `prepare`.
        ablation: see above; "none" returns the examples as they are.
        seed: of the drawing.
    """
    if ablation == "none":
        return examples
    if ablation not in ABLATIONS:
        raise ValueError(f"ablation is {ablation!r}, expected one of {ABLATIONS}: mend the name")
    rng = np.random.default_rng(seed)
    store = examples.train.histories.store
    if ablation == "random negatives":
        store = replace(store, item=_random_negatives(store, rng))
    elif ablation == "wrong polarity":
        store = replace(store, polarity=rng.permutation(store.polarity))

    def spoiled(part: ExampleSet) -> ExampleSet:
        histories = part.histories
        if ablation == "old negatives":
            histories = _with_old_negatives(histories)
        elif ablation == "shuffled order":
            histories = Shuffled(histories.store, histories.parts, seed)
        else:
            histories = replace(histories, store=store)
        return replace(part, histories=histories)

    sets = {name: spoiled(getattr(examples, name)) for name in ("train", "valid", "test")}
    return replace(examples, **sets)


def _random_negatives(store: HistoryStore, rng: np.random.Generator) -> Ints:
    negative = store.polarity == 0
    item = store.item.copy()
    item[negative] = rng.permutation(item[negative])
    return item


def _with_old_negatives(histories: Histories) -> Histories:
    """Ranges of both polarities, where the negatives' range starts at the user's first negative."""
    store = histories.store
    rows, positives = store.negatives, store.positives
    if len(histories.parts) == 2:
        positive, negative = histories.parts
        taken = negative.length
        # A range that is empty may start behind the last negative, where there is no row to ask for its user.
        some = np.append(rows, 0)[negative.start]
    else:
        (window,) = histories.parts
        if window.rows is not None:
            raise ValueError("'old negatives' needs histories with negatives, these are positive-only: take 'mixed'")
        low, high = np.searchsorted(positives, window.start), np.searchsorted(positives, window.end)
        positive = replace(window, rows=positives, start=low, end=high)
        taken = np.searchsorted(rows, window.end) - np.searchsorted(rows, window.start)
        some = np.minimum(window.start, len(store.user) - 1)
    start = np.where(taken > 0, np.searchsorted(rows, store.offsets[store.user[some]]), 0)
    return _Sorted(store, (positive, replace(positive, rows=rows, start=start, end=start + taken)))


class _Sorted(Histories):
    """Histories of two ranges that need not end at the same time."""

    def gather(self, index: Ints) -> tuple[Ints, NDArray[np.uint8], Ints]:
        """As `Histories.gather`."""
        parts = [part.of(index) for part in self.parts]
        rows = np.concatenate([part.expand()[1] for part in parts])
        owner = np.concatenate([np.repeat(np.arange(len(index)), part.length) for part in parts])
        rows = rows[np.lexsort((rows, owner))]
        offsets = np.concatenate([[0], np.cumsum(sum(part.length for part in parts))])
        return self.store.item[rows], self.store.polarity[rows], offsets


@dataclass(frozen=True, eq=False)
class Shuffled(Histories):
    """Histories whose events come in random order, the same one whenever an example is asked for.

    Attributes:
        seed: of the order.
    """

    seed: int = 0

    def gather(self, index: Ints) -> tuple[Ints, NDArray[np.uint8], Ints]:
        """As `Histories.gather`, but for the order within each history."""
        item, polarity, offsets = super().gather(index)
        order = np.arange(len(item))
        for example, start, end in zip(index, offsets[:-1], offsets[1:], strict=True):
            np.random.default_rng([self.seed, int(example)]).shuffle(order[start:end])
        return item[order], polarity[order], offsets
