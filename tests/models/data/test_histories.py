"""What an impression may see."""

import numpy as np
import pytest
from data_helpers import Event, histories, log_of
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from mixpol_models.data import SequenceConfig, build_examples

SEQUENCES = [
    SequenceConfig(budget=3),
    SequenceConfig(kind="positive", budget=3),
    SequenceConfig(budget=3, negative_share=0.5),
]


def slow_history(events: list[Event], target: Event, sequence: SequenceConfig) -> list[tuple[int, int]]:
    """The definition, one example at a time."""
    past = sorted((e for e in set(events) if e[0] == target[0] and e[2] < target[2]), key=lambda e: (e[2], e[1], e[3]))
    positives, negatives = [e for e in past if e[3]], [e for e in past if not e[3]]
    if sequence.kind == "positive":
        chosen = positives[-sequence.budget :]
    elif sequence.negative_share is None:
        chosen = past[-sequence.budget :]
    else:
        n_negative = min(len(negatives), sequence.n_negative)
        n_positive = min(len(positives), sequence.budget - n_negative)
        n_negative = min(len(negatives), sequence.budget - n_positive)
        newest = set(positives[len(positives) - n_positive :] + negatives[len(negatives) - n_negative :])
        chosen = [e for e in past if e in newest]
    return [(e[1], e[3]) for e in chosen]


sequences = st.one_of(
    st.builds(SequenceConfig, budget=st.integers(1, 8), kind=st.sampled_from(["mixed", "positive"])),
    st.builds(SequenceConfig, budget=st.integers(1, 8), negative_share=st.floats(0, 1)),
)
events_of_few = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 4), st.integers(0, 9), st.integers(0, 1)),
    min_size=1,
    max_size=40,
)


@given(events=events_of_few, sequence=sequences, data=st.data())
@settings(max_examples=100, deadline=None)
def test_agrees_with_the_definition(events: list[Event], sequence: SequenceConfig, data: st.DataObject):
    log = log_of(events)
    train = build_examples(log, sequence).train
    targets = list(log.frame.select("user", "item", "time", "polarity").iter_rows())
    index = data.draw(st.lists(st.integers(0, len(targets) - 1), max_size=12))
    batch = train[index]
    ends = batch.offsets.tolist()
    for b, i in enumerate(index):
        inside = slice(ends[b], ends[b + 1])
        history = list(zip(batch.item_ids[inside].tolist(), batch.polarity[inside].tolist(), strict=True))
        assert history == slow_history(events, targets[i], sequence)
    assert np.array_equal(np.diff(ends), train.histories.lengths[index])


@pytest.mark.parametrize("sequence", SEQUENCES, ids=str)
def test_a_planted_future_event_is_not_seen(sequence: SequenceConfig):
    past: list[Event] = [(0, 1, 10, 1), (0, 2, 20, 0), (1, 3, 15, 1), (0, 4, 30, 1)]
    later: Event = (0, 5, 60, 1)
    planted: list[Event] = [(0, 90, 40, 1), (0, 91, 30, 0), (0, 92, 30, 1)]
    clean = histories(build_examples(log_of([*past, later]), sequence).train)
    seen = histories(build_examples(log_of([*past, later, *planted]), sequence).train)
    for event in past:
        assert seen[event[0], event[1]] == clean[event[0], event[1]]
    assert (90, 1) in seen[0, 5], "the plant itself must work: a later impression sees it"


@pytest.mark.parametrize("sequence", SEQUENCES, ids=str)
def test_equal_times_never_see_each_other(sequence: SequenceConfig):
    seen = histories(build_examples(log_of([(0, 1, 10, 1), (0, 2, 20, 1), (0, 3, 20, 1)]), sequence).train)
    assert seen == {(0, 1): [], (0, 2): [(1, 1)], (0, 3): [(1, 1)]}


@pytest.mark.parametrize("sequence", SEQUENCES, ids=str)
def test_users_do_not_mix(sequence: SequenceConfig):
    seen = histories(build_examples(log_of([(0, 1, 10, 1), (1, 2, 20, 1), (2, 3, 5, 0), (2, 4, 6, 1)]), sequence).train)
    below = [(3, 0)] if sequence.kind == "mixed" else []
    assert seen == {(0, 1): [], (1, 2): [], (2, 3): [], (2, 4): below}


EVENTS: list[Event] = [(0, t, t, int(t % 3 == 0)) for t in range(30)] + [(0, 99, 99, 1)]


def last(sequence: SequenceConfig) -> list[tuple[int, int]]:
    return histories(build_examples(log_of(EVENTS), sequence).train)[0, 99]


def test_mixed_takes_the_most_recent():
    assert last(SequenceConfig(budget=6)) == [(t, int(t % 3 == 0)) for t in range(24, 30)]


def test_positive_only_reaches_further_back():
    positive = last(SequenceConfig(kind="positive", budget=6))
    assert positive == [(t, 1) for t in (12, 15, 18, 21, 24, 27)]
    assert positive[0] < last(SequenceConfig(budget=6))[0]


def test_share_takes_the_newest_of_each_and_merges():
    history = last(SequenceConfig(budget=6, negative_share=0.5))
    assert history == [(21, 1), (24, 1), (26, 0), (27, 1), (28, 0), (29, 0)]


def test_unfilled_quota_goes_to_the_other_polarity():
    history = last(SequenceConfig(budget=25, negative_share=0.2))
    assert len(history) == 25
    assert sum(polarity for _, polarity in history) == 10, "all positives there are"
    history = last(SequenceConfig(budget=25, negative_share=1.0))
    assert len(history) == 25
    assert sum(1 - polarity for _, polarity in history) == 20, "all negatives there are"


def test_events_are_stored_once():
    examples = build_examples(log_of(EVENTS), SequenceConfig(budget=5))
    assert examples.train.histories.store is examples.test.histories.store
    assert len(examples.train.histories.store.item) == len(EVENTS)


def test_quota_rounds_half_up():
    assert [SequenceConfig(budget=5, negative_share=r).n_negative for r in (0.0, 0.1, 0.3, 0.5, 1.0)] == [
        0,
        1,
        2,
        3,
        5,
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"budget": 0}, "budget is 0, expected at least 1"),
        ({"negative_share": 1.5}, r"negative_share is 1\.5, expected None or a share"),
        ({"negative_share": float("nan")}, "negative_share is nan"),
        ({"negative_share": 0.5, "kind": "positive"}, "use kind='mixed'"),
        ({"kind": "all"}, "kind"),
        ({"bugdet": 5}, "bugdet"),
    ],
)
def test_bad_sequences_are_named(arguments: dict, message: str):
    with pytest.raises(ValidationError, match=message):
        SequenceConfig(**arguments)
