"""`mixpol_kernels.interleave` and the histories of training examples are one rule."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from data_helpers import Event, log_of
from hypothesis import given, settings
from hypothesis import strategies as st

import mixpol_kernels
from mixpol_models.data import InteractionLog, SequenceConfig, build_examples

sequences = st.builds(SequenceConfig, budget=st.integers(1, 8), negative_share=st.none() | st.floats(0, 1))


def events_of(polarity_in_item: bool) -> st.SearchStrategy[list[Event]]:
    """(user, item, time, polarity) with ties; positives may have the larger items, so that they come second."""

    def event(user: int, item: int, time: int, polarity: int) -> Event:
        return user, item + 10 * polarity * polarity_in_item, time, polarity

    draw = st.builds(event, st.integers(0, 2), st.integers(0, 4), st.integers(0, 9), st.integers(0, 1))
    return st.lists(draw, min_size=1, max_size=40)


def times(log: InteractionLog) -> torch.Tensor:
    return torch.from_numpy(log.frame["time"].to_numpy().copy())


def rows(log: InteractionLog) -> torch.Tensor:
    return torch.arange(log.frame.height)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize(("clock", "polarity_in_item"), [(times, True), (rows, False)], ids=["times", "rows"])
@given(data=st.data(), sequence=sequences)
@settings(max_examples=150, deadline=None)
def test_agrees_with_the_histories(
    clock: Callable[[InteractionLog], torch.Tensor],
    polarity_in_item: bool,
    backend: str,
    data: st.DataObject,
    sequence: SequenceConfig,
) -> None:
    """A log breaks ties by item, then negatives first. Its rows are a clock without ties."""
    log = log_of(data.draw(events_of(polarity_in_item)))
    train = build_examples(log, sequence).train
    batch = train[list(range(len(train)))]
    user, time, item, polarity = (
        torch.from_numpy(log.frame[name].to_numpy().copy()) for name in ("user", "time", "item", "polarity")
    )
    lists: dict[str, torch.Tensor] = {}
    columns = []
    for sign, name in ((1, "positive"), (0, "negative")):
        past = (user == user[:, None]) & (time < time[:, None]) & (polarity == sign)  # [targets, events]
        index = past.nonzero()[:, 1]
        lists[f"{name}_times"] = clock(log)[index]
        lists[f"{name}_offsets"] = torch.cat([torch.zeros(1, dtype=torch.int64), past.sum(1).cumsum(0)])
        columns.append(item[index])
    mixed = mixpol_kernels.interleave(
        **lists, budget=sequence.budget, negative_share=sequence.negative_share, backend=backend
    )
    assert torch.equal(mixed.offsets, batch.offsets)
    assert torch.equal(mixed.take(*columns), batch.item_ids)
    assert torch.equal(mixed.polarity, batch.polarity)
