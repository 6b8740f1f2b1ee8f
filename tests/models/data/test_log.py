import polars as pl
import pytest

from mixpol_models.data import InteractionLog, SequenceConfig, build_examples
from mixpol_models.data.splits import by_time


def frame(**columns) -> pl.DataFrame:
    base = {"user": [0, 0], "item": [1, 0], "time": [2, 1], "label": [1, 0], "polarity": [1, 0]}
    return pl.DataFrame(base | {"split": ["train", "history"]} | columns)


def build(*frames: pl.DataFrame) -> InteractionLog:
    return InteractionLog.from_frame(*frames, name="test", polarity_rule="as given", source="a test")


def test_sorts_types_and_sizes():
    log = build(frame(context=[3, None]))
    assert log.frame["time"].to_list() == [1, 2]
    assert log.frame["context"].to_list() == [0, 3]
    assert log.frame.schema["polarity"] == pl.UInt8
    assert (log.n_users, log.n_items, log.n_contexts, log.n_duplicates) == (1, 2, 4, 0)
    assert "1 / 0 / 0 train" in log.describe()


def test_context_is_optional():
    assert build(frame()).n_contexts == 1


@pytest.mark.parametrize(
    ("columns", "column"),
    [
        ({"user": [-1, 0]}, "user"),
        ({"item": [0.5, 1.0]}, "item"),
        ({"time": [None, 1]}, "time"),
        ({"time": ["2022", "2023"]}, "time"),
        ({"label": [2, 0]}, "label"),
        ({"polarity": [256, 0]}, "polarity"),
        ({"split": ["train", "dev"]}, "split"),
        ({"context": [None, 0]}, "context"),
    ],
)
def test_bad_columns_are_named(columns: dict, column: str):
    with pytest.raises(ValueError, match=f"'{column}'.*expected"):
        build(frame(**columns))


def test_missing_column_is_named():
    with pytest.raises(ValueError, match="label"):
        build(frame().drop("label"))


def test_drops_exact_duplicates_only():
    """A raw column that differs keeps a row, though the log's own columns are equal."""
    twice = frame(time=[5, 5], item=[1, 1], label=[1, 1], polarity=[1, 1], split=["train", "train"])
    assert build(twice).n_duplicates == 1
    assert build(twice).frame.height == 1
    assert build(twice.with_columns(play=pl.Series([0, 7]))).frame.height == 2


def test_dropping_duplicates_agrees_with_polars():
    events = pl.DataFrame({"user": [0, 1, 0, 1, 0] * 9, "item": [0, 1, 2] * 15, "time": [0] * 44 + [1]})
    events = events.with_columns(label=0, polarity=0, split=pl.lit("train"), play=pl.Series([None, 1, 1] * 15))
    assert build(events).frame.height == events.unique().height


def test_empty_log():
    log = build(frame().clear())
    assert (log.n_users, log.n_items) == (0, 0)
    for sequence in (SequenceConfig(), SequenceConfig(kind="positive"), SequenceConfig(negative_share=0.5)):
        examples = build_examples(log, sequence)
        assert len(examples.train) == 0
        assert list(examples.train.batches(4)) == []
        assert examples.train[[]].offsets.tolist() == [0]


def test_split_by_time_keeps_equal_times_together():
    splits = pl.DataFrame({"time": [0] * 50 + [1] * 38 + [2] * 12}).with_columns(by_time())
    assert splits.unique().height == splits["time"].n_unique()
    counts = pl.DataFrame({"time": range(100)}).select(by_time()).to_series().value_counts()
    assert dict(counts.iter_rows()) == {"train": 80, "valid": 10, "test": 10}


def test_split_shares_are_checked():
    with pytest.raises(ValueError, match=r"train=0\.9"):
        by_time(0.9, 0.1)
