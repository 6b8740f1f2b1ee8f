"""The preparation, on small files and on MovieLens-1M where it is there."""

from __future__ import annotations

import json
import os
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from mixpol_models.pnfrec.events import Split
from mixpol_models.pnfrec.preparation import assemble, drop_rare, halves, prepare
from mixpol_models.pnfrec.sources import (
    ML1M_ORDERED,
    load_split,
    read_amazon,
    read_kion,
    read_movielens,
    read_zvuk,
)

ML1M = Path(os.environ.get("MIXPOL_DATA", "")) / "ml_1m"
needs_ml1m = pytest.mark.skipif(
    not (os.environ.get("MIXPOL_DATA") and (ML1M / ML1M_ORDERED).is_file()),
    reason=f"MIXPOL_DATA has no ml_1m/{ML1M_ORDERED}",
)


@pytest.fixture(scope="module")
def ml1m() -> Split:
    return load_split("ml-1m", ML1M)


@needs_ml1m
def test_ml1m_counts(ml1m: Split) -> None:
    """Counts of the published preparation, and of the rebuilt train part."""
    counts = ml1m.counts
    assert (counts["users"], counts["items"], counts["events"]) == (6040, 3416, 999_611)
    assert (counts["train users"], counts["train items"], counts["train events"]) == (6010, 3414, 899_731)
    assert (counts["validation users"], counts["test users"]) == (343, 590)
    assert ml1m.n_items == 3706


@needs_ml1m
def test_ml1m_evaluated_users(ml1m: Split) -> None:
    positive = ml1m.test.positive[ml1m.test.last]
    assert (positive.sum(), (~positive).sum()) == (310, 244)
    assert len(ml1m.validation) == 312
    assert ml1m.validation.positive[ml1m.validation.last].all()
    assert not np.isin(ml1m.validation.user, ml1m.test.user).any()


@needs_ml1m
def test_ml1m_histories_go_on_from_train(ml1m: Split) -> None:
    train, test = ml1m.train, ml1m.test
    for row in (0, 100, len(test) - 1):
        start, end = test.offsets[row : row + 2]
        user = np.searchsorted(train.user, test.user[row])
        past = train.item[train.offsets[user] : train.offsets[user + 1]]
        assert test.item[start : start + len(past)].tolist() == past.tolist()
        # The published file has the rest.
        file = pl.read_parquet(ML1M / "pnfrec_test.parquet").filter(pl.col("user_id") == int(test.user[row]))
        assert sorted(test.item[start + len(past) : end]) == sorted(file["item_id"].cast(pl.Int64) + 1)


def test_halves_are_those_of_scikit_learn() -> None:
    """train_test_split(np.arange(11), test_size=0.5, random_state=42) of scikit-learn 1.x, as it printed them."""
    validation, test = halves(np.arange(11))
    assert validation.tolist() == [8, 4, 7, 3, 6]
    assert test.tolist() == [5, 0, 9, 10, 2, 1]


def test_halves_against_scikit_learn() -> None:
    model_selection = pytest.importorskip("sklearn.model_selection")
    users = np.arange(100, 1279)
    expected = model_selection.train_test_split(users, test_size=0.5, random_state=42)
    for ours, theirs in zip(halves(users), expected, strict=True):
        assert np.array_equal(ours, theirs)


def frame(rows: list[tuple[int, int, int, bool]]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=["user", "item", "time", "positive"], orient="row")


def test_rare_items_leave_first_and_users_once() -> None:
    # Item 9 has four users. User 5 has five items with it and four without. Item 1 then has four users left, and stays.
    rows = [(user, item, 0, True) for user in range(1, 5) for item in (1, 2, 3, 4, 5)]
    rows += [(5, item, 0, True) for item in (1, 2, 3, 4, 9)] + [(user, 9, 0, True) for user in (1, 2, 3)]
    rows += [(6, item, 0, True) for item in (2, 3, 4, 5)]
    kept = drop_rare(frame(rows))
    assert sorted(kept["user"].unique()) == [1, 2, 3, 4]
    assert sorted(kept["item"].unique()) == [1, 2, 3, 4, 5]


def test_parts_need_two_positives_and_a_past() -> None:
    train = frame(
        [*((user, item, item, True) for user in (1, 2) for item in (1, 2, 3)), (3, 1, 1, True), (3, 2, 2, False)]
    )
    negative_target = [(1, 4, 10, True), (1, 5, 11, True), (1, 6, 12, False)]
    one_positive = [(2, 4, 10, True), (2, 5, 11, False)]
    not_in_train = [(3, 4, 10, True), (3, 5, 11, True)]
    test = frame([*negative_target, *one_positive, *not_in_train])
    validation = frame([(2, 7, 12, True), (2, 6, 11, True)])
    split = assemble(train, validation, test, name="small", n_items=9, counts={})
    assert split.train.user.tolist() == [1, 2]
    assert split.test.user.tolist() == [1]
    assert split.test.item.tolist() == [1, 2, 3, 4, 5, 6]
    assert not split.test.positive[-1]
    assert split.validation.item.tolist() == [1, 2, 3, 6, 7]


def write_ratings(rng: np.random.Generator) -> list[tuple[int, int, float, int]]:
    """60 users with 12 of 20 items each, in order of time."""
    rows = [
        (user, item, float(rng.integers(1, 6)), int(rng.integers(1_000_000)))
        for user in range(60)
        for item in rng.choice(20, 12, replace=False).tolist()
    ]
    return [(user * 3, item * 7, rating, time) for user, item, rating, time in rows]


def test_published_steps_on_a_file(tmp_path: Path) -> None:
    """The whole way, against a slow reading of the steps."""
    rows = write_ratings(np.random.default_rng(0))
    path = tmp_path / "ratings.csv"
    path.write_text("userId,movieId,rating,timestamp\n" + "\n".join(",".join(map(str, row)) for row in rows))
    split = load_split("ml-20m", tmp_path)
    times = sorted(row[3] for row in rows)
    cut = times[round(0.9 * (len(times) - 1))]
    users = sorted({row[0] for row in rows})
    items = {item: i for i, item in enumerate(sorted({row[1] for row in rows}), 1)}
    before = {u: sorted((t, items[i], r >= 4) for v, i, r, t in rows if v == u and t < cut) for u in users}
    after = {u: sorted((t, items[i], r >= 4) for v, i, r, t in rows if v == u and t >= cut) for u in users}
    late = [u for u in users if after[u]]
    order = np.random.RandomState(42).permutation(len(late))
    chosen = [late[i] for i in order[: -(-len(late) // 2)]]
    test = [u for u in sorted(chosen) if sum(p for *_, p in after[u]) >= 2 and sum(p for *_, p in before[u]) >= 2]
    assert split.test.user.tolist() == [users.index(u) for u in test]
    assert split.test.item.tolist() == [item for u in test for _, item, _ in before[u] + after[u]]
    for row, user in enumerate(split.validation.user):
        assert split.validation.positive[split.validation.offsets[row + 1] - 1]
        assert users[user] not in chosen


def test_movielens_formats_agree(tmp_path: Path) -> None:
    (tmp_path / "ratings.dat").write_text("1::10::4::100\n2::11::3::101\n")
    (tmp_path / "ratings.csv").write_text("userId,movieId,rating,timestamp\n1,10,4.0,100\n2,11,3.5,101\n")
    dat, csv = read_movielens(tmp_path / "ratings.dat"), read_movielens(tmp_path / "ratings.csv")
    assert dat.equals(csv)
    assert dat["positive"].to_list() == [True, False]


def test_amazon(tmp_path: Path) -> None:
    path = tmp_path / "reviews_Toys_and_Games_5.json"
    reviews = [
        {"reviewerID": "A", "asin": "x", "overall": 5.0, "unixReviewTime": 2, "reviewText": "good", "helpful": [0, 1]},
        {"reviewerID": "B", "asin": "y", "overall": 4.0, "unixReviewTime": 1, "reviewText": "fair", "helpful": [1, 1]},
    ]
    path.write_text("\n".join(map(json.dumps, reviews)))
    found = read_amazon(path)
    assert found.rows() == [("A", "x", 2, True), ("B", "y", 1, False)]


def test_zvuk(tmp_path: Path) -> None:
    """Plays of one track in one session are added; users and tracks need more than five events."""
    start = datetime(2023, 1, 1)
    plays = [(user, track, 1, start + timedelta(seconds=track), 10.0) for user in range(6) for track in range(6)]
    plays += [(0, 0, 1, start + timedelta(days=1), 20.0), (0, 0, 2, start + timedelta(days=2), 29.0)]
    plays += [(7, track, 1, start, 40.0) for track in range(5)] + [(0, 99, 1, start, 40.0)]
    names = ["user_id", "track_id", "session_id", "datetime", "play_duration"]
    path = tmp_path / "zvuk-interactions.parquet"
    pl.DataFrame(plays, schema=names, orient="row").write_parquet(path)
    found = read_zvuk(path)
    assert 7 not in found["user"]
    assert 99 not in found["item"]
    assert found.filter((pl.col("user") == 0) & (pl.col("item") == 0))["positive"].to_list() == [True, False]
    assert found.height == 37


def test_kion(tmp_path: Path) -> None:
    path = tmp_path / "interactions.csv"
    path.write_text(
        "user_id,item_id,last_watch_dt,total_dur,watched_pct\n1,2,2021-05-11,4250,72.0\n1,3,2021-05-12,10,14.0\n"
        "2,3,2021-05-13,10,\n"
    )
    found = read_kion(path)
    assert found["positive"].to_list() == [True, False, False]
    assert np.diff(found["time"]).tolist() == [1, 1]


def test_messages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MIXPOL_DATA", raising=False)
    with pytest.raises(ValueError, match="dataset is 'books'"):
        load_split("books")
    with pytest.raises(ValueError, match="data is not given for kion"):
        load_split("kion")
    with pytest.raises(ValueError, match=r"with 0 files ratings\.csv"):
        load_split("ml-20m", tmp_path)
    (tmp_path / "ratings.csv").write_text("user,movieId,rating,timestamp\n1,2,3,4\n")
    with pytest.raises(ValueError, match="column 'userId' is not there"):
        load_split("ml-20m", tmp_path)
    with pytest.raises(ValueError, match="no events remain of 1"):
        prepare(frame([(1, 1, 1, True)]), "small")
