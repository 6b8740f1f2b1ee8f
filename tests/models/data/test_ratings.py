"""MovieLens 1M and 20M in GroupLens's form, and the ordered parquet."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from data_helpers import REAL_DATA

from mixpol_models.data import DateSplit, SequenceConfig, TailSplit, build_examples, load_ratings, resolve
from mixpol_models.data.ratings import ORDERED

# user, movie, rating, s
RATINGS = [(1, 1193, 5, 978300760), (1, 661, 3, 978302109), (1, 914, 4, 978302109), (2, 1193, 2, 978298413)]


@pytest.fixture
def dat(tmp_path: Path) -> Path:
    (tmp_path / "ml-1m").mkdir()
    (tmp_path / "ml-1m" / "ratings.dat").write_text("".join("::".join(map(str, row)) + "\n" for row in RATINGS))
    return tmp_path


@pytest.fixture
def csv(tmp_path: Path) -> Path:
    rows = "".join(f"{user},{movie},{rating - 0.5},{time}\n" for user, movie, rating, time in RATINGS)
    (tmp_path / "ml-20m").mkdir()
    (tmp_path / "ml-20m" / "ratings.csv").write_text("userId,movieId,rating,timestamp\n" + rows)
    return tmp_path


@pytest.fixture(scope="session")
def real_ml1m() -> Path:
    if not (REAL_DATA / "ml_1m" / ORDERED).is_file():
        pytest.skip(f"no ml_1m/{ORDERED} in MIXPOL_DATA or ../shared/data")
    return REAL_DATA


def test_dat(dat: Path):
    log = load_ratings(dat)
    assert log.name == "MovieLens-1M"
    assert log.frame["user"].to_list() == [0, 0, 0, 1]
    assert log.frame["item"].to_list() == [2, 0, 1, 2], "movies in the order of their ids"
    assert log.frame["time"].to_list() == [978300760, 978302109, 978302109, 978298413]
    assert log.frame["polarity"].to_list() == [1, 0, 1, 0]
    assert build_examples(log, SequenceConfig()).test.histories.lengths.max() == 1, "ties do not see each other"


def test_csv(csv: Path):
    log = load_ratings(csv, polarity="rating < 2: negative")
    assert log.name == "MovieLens-20M"
    assert log.frame["polarity"].to_list() == [1, 1, 1, 0]
    assert resolve(csv, say=lambda line: None).frame["polarity"].to_list() == [1, 0, 0, 0]


def test_release_is_chosen(dat: Path, csv: Path):
    said: list[str] = []
    assert resolve(dat, say=said.append).name == "MovieLens-1M"
    assert said[0] == f"data: {dat} holds ml-1m, and ml-20m: take those with e.g. ml-20m:{dat}"
    assert resolve(f"ml-20m:{dat}", say=said.append).name == "MovieLens-20M"
    with pytest.raises(ValueError, match="release is 'ml-2m'"):
        load_ratings(dat, "ml-2m")


def test_nothing_there(tmp_path: Path):
    with pytest.raises(ValueError, match=r"no MovieLens; expected ratings.dat or ml1m_full_ordered.parquet in it"):
        load_ratings(tmp_path, "ml-1m")


@pytest.mark.parametrize("text", ["1::2::5\n", "1::2::five::3\n"])
def test_unreadable(dat: Path, text: str):
    (dat / "ml-1m" / "ratings.dat").write_text(text)
    with pytest.raises(ValueError, match=r"ratings.dat"):
        load_ratings(dat)


def test_split_by_days(dat: Path):
    days = DateSplit((20001231, 20001231), (20010101, 20010101), (20010102, 20010102))
    assert load_ratings(dat, split=days).frame["split"].to_list() == ["train", "train", "train", "train"]
    days = DateSplit((20001230, 20001230), (20001231, 20001231), (20010101, 20010102))
    assert load_ratings(dat, split=days).frame["split"].to_list() == ["valid", "valid", "valid", "valid"]


def ordered(folder: Path) -> Path:
    """Two users: one with interpolated, equal times, one without any."""
    frame = pl.DataFrame(
        {
            "user_id": [7, 7, 7, 7, 9, 9],
            "movie_id": [50, 40, 30, 20, 20, 10],
            "rating": [5, 4, 3, 2, 1, 5],
            "pos": [0, 1, 2, 3, 0, 1],
            "ratings_dat_row": [3, 2, 1, 0, 5, 4],
            "ts_est": [100, 100, 100, 102, None, None],
        }
    )
    frame.write_parquet(folder / ORDERED)
    return folder


def test_ordered_keeps_the_order(tmp_path: Path):
    log = load_ratings(ordered(tmp_path))
    assert log.dropped == {"of users without any known time": 2}
    assert log.frame["time"].to_list() == [100, 101, 102, 103]
    assert log.frame["item"].to_list() == [3, 2, 1, 0]
    assert "order exact, times estimated" in log.source
    assert load_ratings(tmp_path, keep_order=False).frame["time"].to_list() == [100, 100, 100, 102]


def test_ordered_tails_need_no_times(tmp_path: Path):
    log = load_ratings(ordered(tmp_path), split=TailSplit())
    assert log.frame["split"].to_list() == ["train", "train", "valid", "test", "valid", "test"]
    assert log.frame["item"].to_list() == [4, 3, 2, 1, 1, 0]


def test_real_facts(real_ml1m: Path):
    log = load_ratings(real_ml1m, "ml-1m", split=TailSplit())
    assert (log.frame.height, log.n_users, log.n_items, log.n_duplicates) == (1_000_209, 6_040, 3_706, 0)
    assert log.frame["polarity"].sum() == 575_281
    counts = dict(log.frame.group_by("split").len().iter_rows())
    assert counts["valid"] == counts["test"] == 6_040


def test_real_order_is_the_files(real_ml1m: Path):
    raw = pl.read_parquet(real_ml1m / "ml_1m" / ORDERED).sort("user_id", "pos")
    log = load_ratings(real_ml1m, "ml-1m", split=TailSplit())
    movies = np.unique(raw["movie_id"])
    assert np.array_equal(movies[log.frame["item"].to_numpy()], raw["movie_id"].to_numpy())
    assert (
        log.frame["rating" if "rating" in log.frame.columns else "polarity"].to_list() == (raw["rating"] >= 4).to_list()
    )
    moved = (log.frame["time"] - raw["timestamp"]).drop_nulls()
    assert moved.min() == 0
    assert moved.max() < 120, "known times move by seconds"
