"""Histories that stop where the test days begin."""

from __future__ import annotations

import polars as pl
import pytest

from mixpol_models.data import InteractionLog, SequenceConfig, build_examples
from mixpol_models.experiments.frozen_history import frozen_test


@pytest.fixture
def events() -> InteractionLog:
    frame = pl.DataFrame(
        {
            "user": [0, 0, 0, 0, 0, 1, 1],
            "item": [1, 2, 3, 4, 5, 6, 7],
            "time": [1, 2, 3, 4, 5, 1, 2],
            "label": [1, 0, 1, 0, 1, 1, 0],
            "polarity": [1, 0, 1, 0, 1, 1, 0],
            "split": ["train", "train", "valid", "test", "test", "test", "test"],
        }
    )
    return InteractionLog.from_frame(frame, name="test", polarity_rule="as given", source="a test")


@pytest.mark.parametrize(
    ("sequence", "ids"),
    [
        (SequenceConfig(kind="mixed"), [1, 2, 3]),
        (SequenceConfig(kind="mixed", budget=2), [2, 3]),
        (SequenceConfig(kind="positive"), [1, 3]),
        (SequenceConfig(kind="mixed", budget=2, negative_share=0.5), [2, 3]),
    ],
)
def test_every_test_row_of_a_user_sees_the_same(
    events: InteractionLog, sequence: SequenceConfig, ids: list[int]
) -> None:
    examples = build_examples(events, sequence)
    batch = next(iter(frozen_test(examples).loader(10)))
    assert batch.target_item.tolist() == [4, 5, 6, 7]
    assert batch.offsets.tolist() == [0, len(ids), 2 * len(ids), 2 * len(ids), 2 * len(ids)]
    assert batch.item_ids.tolist() == ids * 2


def test_the_live_examples_are_untouched(events: InteractionLog) -> None:
    examples = build_examples(events)
    frozen_test(examples)
    assert next(iter(examples.test.loader(10))).offsets.tolist() == [0, 3, 7, 7, 8]
