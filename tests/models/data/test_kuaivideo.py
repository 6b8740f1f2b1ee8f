"""KuaiVideo_x1: two lists per row."""

from pathlib import Path

import pytest
from data_helpers import histories

from mixpol_models.data import (
    KuaiVideoColumns,
    SequenceConfig,
    build_examples,
    load_kuaivideo,
    open_store,
    resolve,
    write_store,
)
from mixpol_models.data.kuaivideo import scan_kuaivideo

HEADER = "group_id,timestamp,user_id,item_id,is_click,is_like,pos_items,neg_items"
TRAIN = [
    "0,30,a,7,1,0,1^2^3,4^5",
    "0,10,a,8,0,0,1^2^3,4^5",
    "0,10,a,8,0,0,1^2^3,4^5",
    "1,20,b,9,1,0,,6",
    "2,20,c,9,0,0,,",
]
TEST = ["0,40,a,9,0.0,0,1^2^3,4^5", "1,50,b,7,1.0,0,,6"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    data = tmp_path / "KuaiVideo_x1"
    data.mkdir()
    for name, rows in (("train", TRAIN), ("test", TEST)):
        (data / f"{name}.csv").write_text("\n".join([HEADER, *rows]) + "\n")
    return tmp_path


def names(log_items: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Items are numbered from 0 in the order of their names 1 ... 9."""
    return [(item + 1, polarity) for item, polarity in log_items]


def test_histories_are_the_lists(folder: Path):
    log = load_kuaivideo(folder)
    assert (log.n_users, log.n_items, log.n_duplicates) == (3, 9, 0)
    counts = dict(log.frame.group_by("split").len().iter_rows())
    assert counts.pop("history") == 6
    assert counts.pop("test") == 2
    assert sum(counts.values()) == 5
    seen = sorted(names(past) for past in histories(build_examples(log, SequenceConfig()).test).values())
    # Newest last; the k-th newest of both lists at one time, then by item.
    assert seen == [[(1, 1), (2, 1), (4, 0), (3, 1), (5, 0)], [(6, 0)]]
    newest = histories(build_examples(log, SequenceConfig(budget=2)).test).values()
    assert [(3, 1), (5, 0)] in [names(past) for past in newest]


def test_histories_are_the_samples_when_there_is_a_time(folder: Path):
    log = load_kuaivideo(folder, columns=KuaiVideoColumns(time="timestamp"))
    assert log.frame.height == 6, "without a row that is there twice"
    assert (log.n_users, log.n_items, log.n_duplicates) == (3, 3, 1)
    seen = histories(build_examples(log, SequenceConfig()).test)
    assert seen == {(0, 2): [(1, 0), (0, 1)], (1, 0): [(2, 1)]}


def test_valid_users_are_whole(folder: Path):
    splits = [load_kuaivideo(folder, valid=0.5, seed=seed).frame.filter(split="valid") for seed in range(8)]
    assert {rows.height for rows in splits} > {0, 3}
    train_users = load_kuaivideo(folder, valid=0.5, seed=1).frame.filter(split="train")["user"]
    valid_users = load_kuaivideo(folder, valid=0.5, seed=1).frame.filter(split="valid")["user"]
    assert not set(train_users) & set(valid_users)


def test_other_columns(folder: Path):
    path = folder / "KuaiVideo_x1"
    for name in ("train", "test"):
        text = (path / f"{name}.csv").read_text().replace("pos_items", "clicked").replace("^", " ")
        (path / f"{name}.csv").write_text(text)
    columns = KuaiVideoColumns(positives="clicked", separator=" ")
    assert load_kuaivideo(path, columns=columns).frame.height == 13
    with pytest.raises(
        ValueError, match=r"no column \['pos_items'\], the file has \['group_id', .*name them in `columns`"
    ):
        load_kuaivideo(path)
    with pytest.raises(ValueError, match="there is none of"):
        resolve(path)


def test_store_and_resolve(folder: Path, tmp_path: Path):
    scan = scan_kuaivideo(folder)
    assert open_store(write_store(scan, tmp_path / "s", chunk_events=2)).frame.equals(scan.load().frame)
    assert resolve(folder, say=lambda line: None).name == "KuaiVideo_x1"


def test_nothing_there(tmp_path: Path):
    with pytest.raises(ValueError, match=r"no KuaiVideo_x1; expected train.csv and test.csv with a column pos_items"):
        load_kuaivideo(tmp_path)
