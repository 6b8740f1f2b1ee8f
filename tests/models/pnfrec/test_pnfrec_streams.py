"""Training sequences, on histories that can be checked by eye."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mixpol_models.pnfrec.events import Events
from mixpol_models.pnfrec.streams import Stream


def history(items: list[int], signs: str) -> Events:
    return Events(np.array(items), np.array([s == "+" for s in signs]), np.array([0, len(items)]), np.array([0]))


@pytest.mark.parametrize(
    ("kind", "limit", "inputs", "labels"),
    [
        ("positive", 9, [1, 3], [3, 5]),
        ("positive", 1, [3], [5]),
        ("negative", 9, [2, 4], [4, 6]),
        ("all", 9, [1, 2, 3, 4, 5], [2, 3, 4, 5, 6]),
        ("all", 2, [4, 5], [5, 6]),
        ("mixed", 9, [1, 2, 3, 4], [3, 3, 5, 5]),
        ("mixed", 2, [3, 4], [5, 5]),
    ],
)
def test_inputs_and_labels(kind: str, limit: int, inputs: list[int], labels: list[int]) -> None:
    stream = Stream.of(history([1, 2, 3, 4, 5, 6], "+-+-+-"), kind, limit)  # type: ignore[arg-type]
    assert stream.item.tolist() == inputs
    assert stream.label.tolist() == labels


def test_label_polarity() -> None:
    stream = Stream.of(history([1, 2, 3], "+-+"), "all", 9)
    assert stream.polarity.tolist() == [1, 0]
    assert stream.label_positive.tolist() == [False, True]


def test_a_users_labels_are_its_own(events: Events) -> None:
    for kind in ("positive", "negative", "all", "mixed"):
        stream = Stream.of(events, kind, 3)  # type: ignore[arg-type]
        for user in range(len(events)):
            own = events.item[events.offsets[user] : events.offsets[user + 1]]
            labels = stream.label[stream.offsets[user] : stream.offsets[user + 1]]
            assert len(labels) <= 3
            assert np.isin(labels, own).all()


def test_one_negative_is_a_label_only(events: Events) -> None:
    stream = Stream.of(events, "negative", 5)
    assert np.diff(stream.offsets).tolist() == [3, 0, 1, 4, 0]


def test_batches_are_packed_in_the_order_asked_for(events: Events) -> None:
    stream = Stream.of(events, "positive", 4)
    tokens = stream.batch(torch.tensor([3, 1]))
    assert tokens.lengths.tolist() == [4, 1]
    assert tokens.position.tolist() == [0, 1, 2, 3, 0]
    assert tokens.pad(tokens.item)[1, 1:].tolist() == [0, 0, 0]
    assert torch.equal(tokens.pack(tokens.pad(tokens.item)), tokens.item)
    assert torch.equal(tokens.item[4:], stream.item[stream.offsets[1] : stream.offsets[2]])


def test_nobody_has_tokens(events: Events) -> None:
    tokens = Stream.of(events, "negative", 5).batch(torch.tensor([1, 4]))
    assert len(tokens.item) == 0
    assert tokens.pad(tokens.item).shape == (2, 1)
