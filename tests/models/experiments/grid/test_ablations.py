"""Spoiled histories, event by event."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from mixpol_models.data import ExampleSet, InteractionLog, SequenceConfig, build_examples
from mixpol_models.experiments.grid.ablations import ABLATIONS, ablate

History = list[tuple[int, int]]


def histories(part: ExampleSet) -> list[History]:
    batch = part[np.arange(len(part))]
    pairs = list(zip(batch.item_ids.tolist(), batch.polarity.tolist(), strict=True))
    offsets = batch.offsets.tolist()
    return [pairs[a:b] for a, b in pairwise(offsets)]


def whole_past(log: InteractionLog) -> list[History]:
    return histories(build_examples(log, SequenceConfig(budget=10_000)).test)


@pytest.mark.parametrize("share", [None, 0.5])
@pytest.mark.parametrize("ablation", ABLATIONS)
def test_each_ablation_does_what_it_says(log: InteractionLog, ablation: str, share: float | None) -> None:
    examples = build_examples(log, SequenceConfig(budget=6, negative_share=share))
    spoiled = ablate(examples, ablation, seed=3)
    before, after, past = histories(examples.test), histories(spoiled.test), whole_past(log)
    assert np.array_equal(examples.test.item, spoiled.test.item)
    assert list(map(len, before)) == list(map(len, after))
    changed = sum(a != b for a, b in zip(before, after, strict=True))
    assert (changed > len(before) / 4) == (ablation != "none")
    for old, new, everything in zip(before, after, past, strict=True):
        positives = [event for event in old if event[1] == 1]
        if ablation == "random negatives":
            assert [mark for _, mark in new] == [mark for _, mark in old]
            assert [event for event in new if event[1] == 1] == positives
        elif ablation == "wrong polarity":
            assert [item for item, _ in new] == [item for item, _ in old]
        elif ablation == "old negatives":
            n = len(old) - len(positives)
            assert [event for event in new if event[1] == 1] == positives
            assert [event for event in new if event[1] == 0] == [event for event in everything if event[1] == 0][:n]
            kept = iter(everything)
            assert all(event in kept for event in new), "out of order"
        elif ablation == "shuffled order":
            assert sorted(new) == sorted(old)


def test_shuffled_order_stays_the_same(log: InteractionLog) -> None:
    """An ablated history does not depend on the batch or on the order of access."""
    part = ablate(build_examples(log, SequenceConfig(budget=6)), "shuffled order").test
    alone = histories(part)[5]
    batch = part[np.array([9, 5])]
    start, end = batch.offsets[1:].tolist()
    assert list(zip(batch.item_ids[start:end].tolist(), batch.polarity[start:end].tolist(), strict=True)) == alone


def test_positive_only_has_no_old_negatives(log: InteractionLog) -> None:
    examples = build_examples(log, SequenceConfig(kind="positive", budget=6))
    with pytest.raises(ValueError, match="these are positive-only"):
        ablate(examples, "old negatives")
    with pytest.raises(ValueError, match="ablation is 'odd'"):
        ablate(examples, "odd")
