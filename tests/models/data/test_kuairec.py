"""KuaiRec's matrices in the official form."""

from pathlib import Path

import pytest
from data_helpers import histories

from mixpol_models.data import DateSplit, SequenceConfig, UserSplit, build_examples, load_kuairec, resolve

HEADER = "user_id,video_id,play_duration,video_duration,time,date,timestamp,watch_ratio"


def row(user: int, video: int, timestamp: str, ratio: str) -> str:
    return f"{user},{video},4381,6067,2020-07-05 00:08:23.438,20200705.0,{timestamp},{ratio}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    data = tmp_path / "KuaiRec" / "data"
    data.mkdir(parents=True)
    big = [row(0, 10, f"{1593878903 + i}.4381", "0.5" if i % 3 else "2.5") for i in range(20)]
    big += [
        big[0],
        row(0, 11, "1593878903.5", "2.0"),
        row(1, 3, "1593878903.1", "3.0"),
        row(1, 3, "1593878903.1006", "3"),
    ]
    (data / "big_matrix.csv").write_text("\n".join([HEADER, *big]) + "\n")
    small = [
        row(14, 148, "1593898092.0", "0.7"),
        row(14, 149, "", "0.9"),
        row(14, 150, "NaN", "1.9"),
        row(15, 149, "1593898093.0", ""),
        row(15, 150, "1593898094.0", "NaN"),
        row(15, 151, "1593898095.0", "2.1").replace("2020-07-05 00:08:23.438", "").replace("20200705.0", ""),
        row(15, 152, "1593898096.0", "2.2"),
    ]
    (data / "small_matrix.csv").write_text("\n".join([HEADER, *small]) + "\n")
    return tmp_path


@pytest.mark.parametrize("sub", [".", "KuaiRec", "KuaiRec/data"])
def test_big(folder: Path, sub: str):
    log = load_kuairec(folder / sub)
    assert (log.frame.height, log.n_duplicates, log.n_users, log.n_items) == (23, 1, 2, 12)
    assert log.name == "KuaiRec big matrix"
    assert log.frame["time"].to_list()[:2] == [1593878903438, 1593878903500], "ms, rounded"
    assert log.frame["polarity"].sum() == 9, "2.0 is not above 2"
    assert set(log.frame["split"]) == {"train", "valid", "test"}


def test_near_equal_times_do_not_see_each_other(folder: Path):
    last = build_examples(load_kuairec(folder, split=UserSplit(0.5, 0.1)), SequenceConfig())
    parts = {name: len(getattr(last, name)) for name in ("train", "valid", "test")}
    assert sum(parts.values()) == 23
    user_1 = [part for part in (last.train, last.valid, last.test) if 1 in part.user]
    assert [part.histories.lengths[part.user == 1].tolist() for part in user_1] == [[0, 1]]


def test_rows_without_time_or_ratio_are_dropped_and_counted(folder: Path):
    log = load_kuairec(folder, "small")
    assert log.dropped == {"without a timestamp": 2, "without a watch_ratio": 2}
    assert log.frame["item"].to_list() == [148, 151, 152]
    assert "(2 without a timestamp, 2 without a watch_ratio dropped)" in log.describe()


@pytest.mark.parametrize(
    ("rule", "positives"),
    [("watch_ratio >= 2.0", 10), ("watch_ratio < 0.7: negative", 10), ("play_duration < 5000", 23)],
)
def test_other_rules(folder: Path, rule: str, positives: int):
    log = load_kuairec(folder, "big", polarity=rule)
    assert log.frame["polarity"].sum() == positives
    assert log.polarity_rule == rule


def test_histories(folder: Path):
    examples = build_examples(load_kuairec(folder, "small"), SequenceConfig())
    assert histories(examples.test) == {(15, 152): [(151, 1)]}


def test_resolve(folder: Path):
    said: list[str] = []
    assert resolve(folder, say=said.append).name == "KuaiRec big matrix"
    assert resolve(f"kuairec:{folder}", say=said.append).name == "KuaiRec big matrix"
    assert len(said) == 2


def test_what_is_wrong_is_said(folder: Path, tmp_path: Path):
    with pytest.raises(ValueError, match="matrix is 'medium', expected 'big' or 'small'"):
        load_kuairec(folder, "medium")
    with pytest.raises(ValueError, match=r"no KuaiRec; expected big_matrix.csv or small_matrix.csv in it or in data"):
        load_kuairec(tmp_path / "elsewhere")
    (folder / "KuaiRec/data/small_matrix.csv").write_text("user_id,video_id\n1,2\n")
    with pytest.raises(ValueError, match=r"small_matrix.csv: no column \['play_duration'"):
        load_kuairec(folder, "small")
    (folder / "KuaiRec/data/small_matrix.csv").write_text(HEADER + "\n" + row(0, 1, "yesterday", "1"))
    with pytest.raises(ValueError, match=r"small_matrix.csv: not readable as KuaiRec"):
        load_kuairec(folder, "small")


def test_split_by_days(folder: Path):
    path = folder / "KuaiRec/data/big_matrix.csv"
    # The big matrix has whole dates.
    rows = path.read_text().replace("20200705.0", "20200705").splitlines()
    rows[-1] = rows[-1].replace("20200705", "20200706")
    path.write_text("\n".join(rows) + "\n")
    days = DateSplit((20200704, 20200705), (20200706, 20200706), (20200707, 20200708))
    log = load_kuairec(folder, split=days)
    assert dict(log.frame.group_by("split").len().iter_rows()) == {"train": 22, "valid": 1}
