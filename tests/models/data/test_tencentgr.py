"""TencentGR in both forms."""

import json
import pickle
from pathlib import Path

import polars as pl
import pytest
from data_helpers import histories

from mixpol_models.data import (
    DateSplit,
    SequenceConfig,
    TailSplit,
    build_examples,
    load_tencentgr,
    open_store,
    resolve,
    write_store,
)
from mixpol_models.data.tencentgr import scan_tencentgr

# user -> (item, action, s)
USERS = {
    1: [(5, 0, 100), (6, 1, 110), (6, 0, 110), (7, 2, 130)],
    2: [(5, 0, 90), (5, 0, 90), (8, 1, 140)],
    3: [],
}


class Trap:
    def __reduce__(self):
        return (Path.touch, (Path("unpickled"),))


@pytest.fixture
def parquet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "TencentGR-1M"
    (folder / "seq").mkdir(parents=True)
    event = pl.Struct({"item_id": pl.Int64, "action_type": pl.Int32, "timestamp": pl.Int64})
    for k, users in enumerate(([1, 2], [3])):
        seq = [[dict(zip(("item_id", "action_type", "timestamp"), e, strict=True)) for e in USERS[u]] for u in users]
        frame = pl.DataFrame({"user_id": users, "seq": seq}, schema={"user_id": pl.Int64, "seq": pl.List(event)})
        frame.write_parquet(folder / "seq" / f"part-{k:05d}.parquet")
    (folder / "indexer.pkl").write_bytes(pickle.dumps(Trap()))
    return tmp_path


def lines(text_users: bool) -> str:
    result = []
    for user, events in USERS.items():
        name = f"user_{user:03d}" if text_users else user
        profile = [name, None, {"103": 4, "106": [1, 2]}, None, None, 50]
        shown = [[name, item, None, {"100": 2, "122": "5"}, action, time] for item, action, time in events]
        result.append(json.dumps([profile, *shown]))
    return "\n".join(result) + "\n"


def test_parquet(parquet: Path):
    log = load_tencentgr(parquet)
    assert (log.frame.height, log.n_users, log.n_items) == (7, 3, 9), "from the ids; nothing else is opened"
    assert log.n_duplicates == 0, "an ad shown twice is two exposures"
    assert log.source == "2 files in seq/"
    assert not Path("unpickled").exists()
    assert histories(build_examples(log, SequenceConfig()).test) == {(2, 8): [(5, 0), (5, 0)]}
    assert log.frame["polarity"].sum() == 3
    assert load_tencentgr(parquet, polarity="action_type == 2").frame["polarity"].sum() == 1


@pytest.mark.parametrize("text_users", [False, True])
def test_jsonl_is_the_same(parquet: Path, tmp_path: Path, text_users: bool):
    old = tmp_path / "old"
    old.mkdir()
    (old / "seq.jsonl").write_text(lines(text_users))
    (old / "indexer.pkl").write_bytes(pickle.dumps(Trap()))
    log = load_tencentgr(old)
    assert log.dropped == {"without an item or an action": 3}
    shift = 1 if text_users else 0
    assert log.frame.with_columns(pl.col("user") + shift).equals(load_tencentgr(parquet).frame)
    assert not Path("unpickled").exists()
    stored = open_store(write_store(scan_tencentgr(old), tmp_path / "store", chunk_events=2))
    assert stored.frame.equals(log.frame)


def test_tails(parquet: Path):
    log = load_tencentgr(parquet, split=TailSplit())
    # Equal times share a split.
    assert log.frame["split"].to_list() == ["train", "valid", "valid", "test", "valid", "valid", "test"]


def test_resolve(parquet: Path):
    said: list[str] = []
    assert resolve(parquet / "TencentGR-1M", say=said.append).name == "TencentGR"
    assert said[0].startswith("data: TencentGR: 7 events")


def test_what_is_wrong_is_said(tmp_path: Path):
    with pytest.raises(ValueError, match=r"no TencentGR; expected seq/\*.parquet or seq.jsonl in it"):
        load_tencentgr(tmp_path)
    (tmp_path / "seq.jsonl").write_text("[]\n{\n")
    with pytest.raises(ValueError, match=r"seq.jsonl, line 2: not a list of"):
        load_tencentgr(tmp_path)
    (tmp_path / "seq").mkdir()
    pl.DataFrame({"user_id": [1], "seq": [[1, 2]]}).write_parquet(tmp_path / "seq" / "0.parquet")
    with pytest.raises(ValueError, match=r"expected user_id and seq, a list of item_id"):
        load_tencentgr(tmp_path)


def test_split_by_days(parquet: Path):
    days = DateSplit((19691231, 19691231), (19700101, 19700101), (19700102, 19700102))
    assert set(load_tencentgr(parquet, split=days).frame["split"]) == {"valid"}
