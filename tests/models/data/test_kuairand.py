"""KuaiRand-Pure: both forms, the split, and the published facts."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from data_helpers import CSV_HEADER, csv_row, histories

from mixpol_models.data import DateSplit, InteractionLog, SequenceConfig, TimeSplit, build_examples, load_kuairand

POSITIVE = pl.col("label").cast(pl.Int64)


@pytest.fixture(scope="module")
def log(real_kuairand: Path) -> InteractionLog:
    return load_kuairand(real_kuairand)


def test_published_facts(log: InteractionLog):
    examples = log.frame.filter(pl.col("split") != "history")
    assert log.n_duplicates == 2_750
    assert examples.height == 92_034
    assert examples["label"].sum() == 28_946
    counts = dict(log.frame.group_by("split").len().iter_rows())
    assert counts == {"history": 817_187, "train": 56_141, "valid": 15_319, "test": 20_574}
    history = log.frame.filter(pl.col("split") == "history")
    assert history["polarity"].sum() == 291_496
    assert (log.n_users, log.n_items, log.n_contexts) == (27_285, 7_583, 15)


def test_published_floor(log: InteractionLog):
    """Item rate x user rate, trained on history and 25 to 28 April: AUC .7403 on 29 and 30 April."""
    held_out = pl.col("split").is_in(["valid", "test"])
    train, test = log.frame.filter(~held_out), log.frame.filter(held_out)
    mean = train["label"].mean()
    for key, weight in (("item", 20), ("user", 10)):
        rate = (POSITIVE.sum() + weight * mean) / (pl.len() + weight)
        test = test.join(train.group_by(key).agg(rate.alias(f"{key}_rate")), on=key, how="left")
    score = test.select(pl.col("item_rate").fill_null(mean) * pl.col("user_rate").fill_null(mean)).to_series()
    rank, label = score.rank().to_numpy(), test["label"].to_numpy().astype(bool)
    n_pos, n_neg = label.sum(), (~label).sum()
    auc = (rank[label].sum() - n_pos * (n_pos + 1) / 2) / (n_pos * n_neg)
    assert auc == pytest.approx(0.7403, abs=5e-5)


def test_real_rows_at_the_time_of_the_last_history_event_do_not_see_it(log: InteractionLog):
    history = log.frame.filter(pl.col("split") == "history").group_by("user").agg(last=pl.col("time").max())
    train = build_examples(log, SequenceConfig(budget=50)).train
    order = log.frame.filter(pl.col("split") == "train").join(history, on="user", how="left", maintain_order="left")
    tied = order.select((pl.col("time") == pl.col("last")).fill_null(False).arg_true()).to_series().to_numpy()
    past = log.frame.filter(pl.col("split") == "history")
    assert len(tied) == 3
    for i in tied:
        events = past.filter(pl.col("user") == int(train.user[i]))
        assert train.histories.lengths[i] == min(50, events.height - 1)
        assert train[[i]].item_ids.tolist() == events["item"].to_list()[:-1][-50:]


def test_real_histories_have_the_published_lengths(log: InteractionLog):
    """README of the data, 1.5: over both held-out days a median of 51 events (uncut), 0.4 % without any."""
    examples = build_examples(log, SequenceConfig(budget=10_000))
    lengths = np.concatenate([examples.valid.histories.lengths, examples.test.histories.lengths])
    assert np.median(lengths) == pytest.approx(51, abs=1)
    assert (lengths == 0).mean() == pytest.approx(0.004, abs=1e-3)


@pytest.mark.parametrize("sub", [".", "KuaiRand-Pure", "KuaiRand-Pure/data"])
def test_official_csv(kuairand_csv: Path, sub: str):
    log = load_kuairand(kuairand_csv / sub)
    assert log.n_duplicates == 1
    counts = dict(log.frame.group_by("split").len().iter_rows())
    assert counts == {"history": 4, "train": 4, "valid": 2, "test": 1}
    assert log.frame.filter(pl.col("item") == 4)["context"].to_list() == [2, 2]
    assert log.frame["time"].max() == 7_000, "rows after the last test day are dropped"


def test_official_csv_histories(kuairand_csv: Path):
    examples = build_examples(load_kuairand(kuairand_csv), SequenceConfig(budget=4))
    assert histories(examples.test) == {(1, 9): [(3, 1), (7, 1)]}
    assert histories(examples.valid)[0, 8] == [(4, 0), (4, 0), (5, 1), (6, 0)]
    last_but_two = examples.train[[2]]
    assert last_but_two.target_item.tolist() == [5]
    assert last_but_two.item_ids.tolist() == [2, 3, 4, 4], "strictly before: not item 6, which has the same time"


def test_other_days(kuairand_csv: Path):
    days = DateSplit(train=(20220409, 20220424), valid=(20220425, 20220430), test=(20220501, 20220508))
    counts = dict(load_kuairand(kuairand_csv, days).frame.group_by("split").len().iter_rows())
    assert counts == {"train": 4, "valid": 7, "test": 1}


def test_days_must_not_overlap():
    with pytest.raises(ValueError, match="expected train before valid before test"):
        DateSplit(train=(20220425, 20220429))


def write_parquet(folder: Path, window_times: list[int]) -> None:
    past = {"user_id": [0] * 3, "hist_pos": [7, 8, 9], "video_id": [1, 2, 3], "long_view": [1, 0, 1]}
    pl.DataFrame(past | {"time_ms": [None, None, 1_000]}).write_parquet(folder / "history_before_20220425.parquet")
    n = len(window_times)
    window = {
        "user_id": [0] * n,
        "video_id": list(range(10, 10 + n)),
        "date": [20220425] * n,
        "time_ms": window_times,
    }
    zero = [
        "hourmin",
        "is_click",
        "is_like",
        "is_follow",
        "is_comment",
        "is_forward",
        "is_hate",
        "is_profile_enter",
    ]
    zero += [
        "is_rand",
        "long_view",
        "play_time_ms",
        "duration_ms",
        "profile_stay_time",
        "comment_stay_time",
        "tab",
    ]
    window |= {name: [0] * n for name in zero}
    pl.DataFrame(window).write_parquet(folder / "window_20220425_0430.parquet")


def test_parquet_history_precedes_the_window(tmp_path: Path):
    write_parquet(tmp_path, [1_000, 1_001, 5_000])
    seen = histories(build_examples(load_kuairand(tmp_path)).train)
    assert seen[0, 10] == [(1, 1), (2, 0)], "the last event has the same time"
    assert seen[0, 11] == [(1, 1), (2, 0), (3, 1), (10, 0)]
    assert seen[0, 12] == [(1, 1), (2, 0), (3, 1), (10, 0), (11, 0)]


def test_parquet_with_unknowable_order_is_refused(tmp_path: Path):
    write_parquet(tmp_path, [999])
    with pytest.raises(ValueError, match=r"later than their user's first row.*official CSV"):
        load_kuairand(tmp_path)


def test_no_data_there(tmp_path: Path):
    with pytest.raises(ValueError, match=r"no KuaiRand-Pure; expected history_before.*mend the path"):
        load_kuairand(tmp_path)


def test_unreadable_files(kuairand_csv: Path):
    path = kuairand_csv / "KuaiRand-Pure/data/log_standard_4_22_to_5_08_pure.csv"
    path.write_text("user_id,video_id\n1,2\n")
    with pytest.raises(ValueError, match="not readable as KuaiRand-Pure"):
        load_kuairand(kuairand_csv)


RELEASES = {
    "KuaiRand-1K": ["log_standard_4_08_to_4_21_1k", "log_standard_4_22_to_5_08_1k"],
    "KuaiRand-27K": [
        f"log_standard_{days}_27k_part{part}" for days in ("4_08_to_4_21", "4_22_to_5_08") for part in (1, 2)
    ],
}


@pytest.mark.parametrize("release", RELEASES)
def test_other_releases(tmp_path: Path, release: str):
    data = tmp_path / release / "data"
    data.mkdir(parents=True)
    for k, name in enumerate(RELEASES[release]):
        rows = [csv_row(0, 10 + k, 20220425 + k, 1_000 * k, k % 2)]
        (data / f"{name}.csv").write_text("\n".join([CSV_HEADER, *rows]) + "\n")
    log = load_kuairand(tmp_path)
    assert log.name == release
    assert log.frame["item"].to_list() == list(range(10, 10 + len(RELEASES[release])))
    (data / f"{RELEASES[release][-1]}.csv").unlink()
    with pytest.raises(ValueError, match="no KuaiRand-Pure"):
        load_kuairand(tmp_path)


def with_random(folder: Path) -> Path:
    """Two rows of the random log, in the window and after it; the last column but one is is_rand."""
    rows = [csv_row(0, 20, 20220426, 4_500, 1), csv_row(1, 21, 20220430, 6_900, 0), csv_row(1, 22, 20220503, 9_000, 0)]
    rows = [row.rpartition(",")[0].rpartition(",")[0] + ",1," + row.rpartition(",")[2] for row in rows]
    path = folder / "KuaiRand-Pure/data/log_random_4_22_to_5_08_pure.csv"
    path.write_text("\n".join([CSV_HEADER, *rows]) + "\n")
    return folder


def test_random_log(kuairand_csv: Path):
    plain = load_kuairand(kuairand_csv)
    folder = with_random(kuairand_csv)
    assert load_kuairand(folder).frame.equals(plain.frame), "left out by default"
    included = load_kuairand(folder, random="include")
    assert included.frame.filter(pl.col("item") >= 20)["split"].to_list() == ["train", "test"]
    assert included.dropped == {"after the last test day": 2}
    test = load_kuairand(folder, random="test")
    assert test.frame.filter(split="test")["item"].to_list() == [20, 21, 22], "of any day"
    assert test.frame.filter(pl.col("item") == 9)["split"].to_list() == ["history"], "was a test row"
    assert test.frame.filter(split="train").height == plain.frame.filter(split="train").height


def test_random_log_must_be_there(kuairand_csv: Path, tmp_path: Path):
    with pytest.raises(ValueError, match=r"random is 'test', expected .*log_random_4_22_to_5_08_pure.csv"):
        load_kuairand(kuairand_csv, random="test")
    with pytest.raises(ValueError, match="random is 'maybe', expected 'exclude'"):
        load_kuairand(kuairand_csv, random="maybe")
    (tmp_path / "parquet").mkdir()
    write_parquet(tmp_path / "parquet", [2_000])
    with pytest.raises(ValueError, match="holds the parquet form: use the official CSV"):
        load_kuairand(tmp_path / "parquet", random="include")


def test_polarity_rules(kuairand_csv: Path):
    log = load_kuairand(kuairand_csv, polarity="play_time_ms < 5: negative")
    assert log.polarity_rule == "play_time_ms < 5: negative"
    played = log.frame.filter(pl.col("polarity") == 1)
    assert played["item"].to_list() == [4], "the near-duplicate with 7 ms"
    assert log.frame["label"].equals(log.frame["polarity"].rename("label"))
    with pytest.raises(ValueError, match=r"names the column 'is_clicked'"):
        load_kuairand(kuairand_csv, polarity="is_clicked")


def test_the_parquet_history_knows_two_actions_only(tmp_path: Path, real_kuairand: Path):
    with pytest.raises(ValueError, match=r"names the column 'is_click'; expected one of \['is_like', 'long_view'\]"):
        load_kuairand(real_kuairand, polarity="is_click")
    liked = load_kuairand(real_kuairand, polarity="is_like or long_view")
    assert liked.frame["polarity"].sum() > 291_496 + 28_946


def test_other_splits(kuairand_csv: Path):
    log = load_kuairand(kuairand_csv, TimeSplit(0.5, 0.2))
    assert log.frame.height == 12
    assert log.dropped == {}
