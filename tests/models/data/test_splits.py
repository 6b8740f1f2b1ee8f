"""What each split promises."""

import numpy as np
import polars as pl
import pytest

from mixpol_models.data import TailSplit, TimeSplit, UserSplit
from mixpol_models.data.scan import LogScan
from mixpol_models.data.splits import Split, by_time


def splits(split: Split, **columns) -> pl.DataFrame:
    frame = pl.LazyFrame(columns | {"label": [0] * len(columns["user"])})
    scan = LogScan((frame.with_columns(polarity="label"),), split, "test", "", "")
    return scan.load().frame


@pytest.mark.parametrize("n", [1, 2, 3, 10, 99, 100, 1001])
def test_time_split_is_by_time(n: int):
    times = np.random.default_rng(n).integers(-50, 50, n)
    frame = splits(TimeSplit(0.7, 0.2), user=[0] * n, item=range(n), time=times)
    expected = frame.select("time").with_columns(by_time(0.7, 0.2))["split"]
    assert frame["split"].cast(str).to_list() == expected.to_list()


def test_users_are_whole_and_shared_out():
    n = 100
    user = np.repeat(np.arange(n), 3)
    frame = splits(UserSplit(0.8, 0.1), user=user, item=range(3 * n), time=[0] * 3 * n)
    per_user = frame.group_by("user").agg(pl.col("split").unique())["split"].list
    assert per_user.len().to_list() == [1] * n
    assert dict(per_user.first().value_counts().iter_rows()) == {"train": 80, "valid": 10, "test": 10}
    again = splits(UserSplit(0.8, 0.1), user=user, item=range(3 * n), time=[0] * 3 * n)
    other = splits(UserSplit(0.8, 0.1, seed=1), user=user, item=range(3 * n), time=[0] * 3 * n)
    assert again["split"].equals(frame["split"])
    assert not other["split"].equals(frame["split"])


def test_tails_are_each_users_own():
    user, time = [0] * 5 + [1] * 2 + [2], [1, 2, 3, 4, 5, 9, 8, 7]
    frame = splits(TailSplit(valid=2, test=1), user=user, item=range(8), time=time)
    tail = ["train", "train", "valid", "valid", "test"]
    assert frame["split"].to_list() == [*tail, "valid", "test", "test"]


def test_tied_tails_share_a_split():
    frame = splits(TailSplit(), user=[0] * 4, item=range(4), time=[1, 2, 2, 2])
    assert frame["split"].to_list() == ["train", "test", "test", "test"]


@pytest.mark.parametrize("build", [lambda: TimeSplit(0.9, 0.1), lambda: UserSplit(0, 0.1), lambda: TailSplit(0, 1)])
def test_shares_are_checked(build):
    with pytest.raises(ValueError, match="expected"):
        build()
