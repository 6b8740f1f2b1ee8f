"""History impressions as training targets."""

from __future__ import annotations

import polars as pl

from mixpol_models.data import InteractionLog, build_examples
from mixpol_models.training import TrainConfig, prepare, with_history_targets


def log_of(contexts: list[int | None]) -> InteractionLog:
    frame = pl.DataFrame(
        {
            "user": [0] * 6,
            "item": [1, 2, 3, 4, 5, 6],
            "time": [1, 2, 3, 4, 5, 6],
            "label": [1, 0, 1, 0, 1, 0],
            "polarity": [1, 0, 1, 0, 1, 0],
            "split": ["history", "history", "train", "train", "valid", "test"],
            "context": contexts,
        }
    )
    return InteractionLog.from_frame(frame, name="test", polarity_rule="as given", source="a test")


def test_history_rows_become_examples_with_the_past_before_them() -> None:
    examples = build_examples(with_history_targets(log_of([None, None, 1, 0, 1, 0])))
    batch = next(iter(examples.train.loader(10)))
    assert batch.target_item.tolist() == [1, 2, 3, 4]
    assert batch.label.tolist() == [1, 0, 1, 0]
    assert batch.offsets.tolist() == [0, 0, 1, 3, 6]
    assert batch.item_ids.tolist() == [1, 1, 2, 1, 2, 3]


def test_an_unknown_context_is_not_context_0() -> None:
    log = with_history_targets(log_of([None, None, 1, 0, 1, 0]))
    assert log.n_contexts == 3
    assert log.frame["context"].to_list() == [2, 2, 1, 0, 1, 0]


def test_a_known_context_is_kept() -> None:
    log = with_history_targets(log_of([1, 0, 1, 0, 1, 0]))
    assert log.n_contexts == 2
    assert log.frame["context"].to_list() == [1, 0, 1, 0, 1, 0]


def test_a_log_without_contexts_gets_none() -> None:
    assert with_history_targets(log_of([0] * 6)).n_contexts == 1


def test_validation_and_test_rows_are_untouched() -> None:
    log = log_of([None, None, 1, 0, 1, 0])
    for sequence in ("mixed", "positive"):
        with_past, without = (
            prepare(log, TrainConfig(sequence=sequence, fusion="bias", train_on_history=on)) for on in (True, False)
        )
        assert (len(with_past.train), len(without.train)) == (4, 2)
        for part in ("valid", "test"):
            first, second = (next(iter(getattr(e, part).loader(10))) for e in (with_past, without))
            assert all((getattr(first, k) == getattr(second, k)).all() for k in vars(first))


def test_a_share_of_the_past_is_the_same_in_every_call() -> None:
    rows = 4000
    frame = pl.DataFrame({"user": range(rows), "item": [0] * rows, "time": [0] * rows, "label": [0, 1] * (rows // 2)})
    frame = frame.with_columns(polarity="label", split=pl.lit("history"))
    log = InteractionLog.from_frame(frame, name="test", polarity_rule="as given", source="a test")
    first, second = (with_history_targets(log, 0.25).frame["split"] for _ in range(2))
    assert first.equals(second)
    assert 900 < (first == "train").sum() < 1100
