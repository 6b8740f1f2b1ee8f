"""NaN is a missing value in every source, and so are infinite ids and times."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import yaml
from data_helpers import CSV_HEADER, csv_row

from mixpol_models.data import load_described, load_kuaivideo, load_ratings, load_tencentgr
from mixpol_models.data.kuairand import PARQUET, load_kuairand
from mixpol_models.data.kuairec import load_kuairec
from mixpol_models.data.movielens import read_inter
from mixpol_models.data.rules import parse_rule
from mixpol_models.pnfrec.preparation import prepare
from mixpol_models.pnfrec.sources import read_kion, read_movielens, read_zvuk

NAN, INF = float("nan"), float("inf")
FRAME = pl.DataFrame(
    {"x": [1.0, NAN, None, 3.0, INF], "y": [NAN, 1.0, 2.0, 3.0, 1.0], "b": [True, False, None] + [True] * 2}
)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("x > 2", [False, None, None, True, True]),
        ("x >= 2", [False, None, None, True, True]),
        ("x < 2", [True, None, None, False, False]),
        ("x <= 2", [True, None, None, False, False]),
        ("x == 3", [False, None, None, True, False]),
        ("x != 3", [True, None, None, False, True]),
        ("x < 2: negative", [False, None, None, True, True]),
        ("not x > 2", [True, None, None, False, False]),
        ("x in [1, 3]", [True, None, None, True, False]),
        ("not x in [1, 3]", [False, None, None, False, True]),
        ("x > y", [None, None, None, False, True]),
        ("y > x", [None, None, None, False, False]),
        ("x == x", [True, None, None, True, True]),
        # Where the other side decides alone, the missing value does not matter.
        ("x > 2 or b", [True, None, None, True, True]),
        ("x > 2 and b", [False, False, None, True, True]),
    ],
)
def test_rules(rule: str, expected: list):
    assert FRAME.select(parse_rule(rule, FRAME.schema)).to_series().to_list() == expected


def describe(folder: Path, frame: pl.DataFrame, **changes) -> Path:
    frame.write_parquet(folder / "x.parquet")
    description = {"name": "x", "files": "x.parquet", "columns": {"user": "u", "item": "i", "time": "t"}}
    description |= {"polarity": "r < 0.3: negative", "drop_incomplete": True}
    (folder / "x.yaml").write_text(yaml.safe_dump(description | changes))
    return folder / "x.yaml"


WHOLE = {"u": [1.0, 1.0, 2.0], "i": [1.0, 2.0, 3.0], "t": [1.0, 2.0, 3.0], "c": [0.0, 1.0, 1.0], "r": [0.1, 0.9, 0.2]}


@pytest.mark.parametrize("value", [NAN, None, INF, -INF])
@pytest.mark.parametrize(("column", "role"), [("u", "user"), ("i", "item"), ("t", "time"), ("c", "context")])
def test_ids_and_times(tmp_path: Path, column: str, role: str, value: float | None):
    columns = {"user": "u", "item": "i", "time": "t", "context": "c"}
    frame = pl.DataFrame(WHOLE | {column: [*WHOLE[column][:2], value]})
    log = load_described(describe(tmp_path, frame, columns=columns, time_unit="s"))
    assert log.frame["polarity"].to_list() == [0, 1]
    assert log.dropped[f"without {role}"] == sum(log.dropped.values()) == 1
    assert (log.n_users, log.n_items) == (1, 2)
    with pytest.raises(ValueError, match=rf"column '{role}' holds None \(1 such rows\)"):
        load_described(describe(tmp_path, frame, columns=columns, time_unit="s", drop_incomplete=False))


def test_polarity_and_label(tmp_path: Path):
    frame = pl.DataFrame(WHOLE | {"r": [0.1, 0.9, NAN]})
    assert load_described(describe(tmp_path, frame, time_unit="s")).frame["polarity"].to_list() == [0, 1]
    log = load_described(describe(tmp_path, frame, polarity="i > 1", label="r > 0.3", time_unit="s"))
    assert (log.frame["label"].to_list(), log.dropped["without label"]) == ([0, 1], 1)


def test_tencentgr(tmp_path: Path):
    events = [{"item_id": i, "action_type": a, "timestamp": i} for i, a in ((1.0, NAN), (2.0, 1.0), (NAN, 2.0))]
    (tmp_path / "a" / "seq").mkdir(parents=True)
    pl.DataFrame({"user_id": [1], "seq": [events]}).write_parquet(tmp_path / "a" / "seq" / "1.parquet")
    (tmp_path / "b").mkdir()
    lines = [[1, i, None, None, a, 5] for i, a in ((1, NAN), (2, 1), (NAN, 2))]
    (tmp_path / "b" / "seq.jsonl").write_text(json.dumps(lines))
    for folder in ("a", "b"):
        log = load_tencentgr(tmp_path / folder)
        assert log.frame["polarity"].to_list() == [1]
        assert log.dropped == {"without an item or an action": 2}


def test_kuairand_parquet(tmp_path: Path):
    names = CSV_HEADER.split(",")
    row = [float(value) for value in csv_row(0, 1, 20220425, 1_000, 1, play=5).split(",")]
    window = pl.DataFrame([row], schema=names, orient="row").with_columns(long_view=NAN)
    window = window.with_columns(pl.exclude("long_view").cast(pl.Int64))
    window.write_parquet(tmp_path / PARQUET[1])
    past = pl.DataFrame(
        {"user_id": [0], "video_id": [1], "hist_pos": [0], "time_ms": [1], "long_view": [1], "is_like": [0]}
    )
    past.write_parquet(tmp_path / PARQUET[0])
    with pytest.raises(ValueError, match="'label' holds None"):
        load_kuairand(tmp_path, polarity="long_view > 0")
    past.with_columns(long_view=NAN).write_parquet(tmp_path / PARQUET[0])
    window.with_columns(long_view=1).write_parquet(tmp_path / PARQUET[1])
    with pytest.raises(ValueError, match="'label' holds None"):
        load_kuairand(tmp_path, polarity="long_view > 0")


def test_kuairec(tmp_path: Path):
    header = "user_id,video_id,play_duration,video_duration,time,date,timestamp,watch_ratio\n"
    rows = "1,1,5,5,x,20200705,1.5,0.5\n1,2,5,5,x,20200705,NaN,3\n1,3,5,5,x,20200705,inf,3\n1,4,5,5,x,20200705,2,NaN\n"
    (tmp_path / "big_matrix.csv").write_text(header + rows)
    log = load_kuairec(tmp_path)
    assert log.frame["item"].to_list() == [1]
    assert log.dropped == {"without a timestamp": 2, "without a watch_ratio": 1}


def test_kuaivideo(tmp_path: Path):
    for name in ("train.csv", "test.csv"):
        (tmp_path / name).write_text("user_id,item_id,is_click,pos_items,neg_items\n1,2,NaN,3,4\n")
    with pytest.raises(ValueError, match="'label' holds None"):
        load_kuaivideo(tmp_path)


def test_movielens(tmp_path: Path):
    (tmp_path / "ratings.csv").write_text("userId,movieId,rating,timestamp\n1,1,NaN,1\n1,2,5,2\n")
    with pytest.raises(ValueError, match="'label' holds None"):
        load_ratings(tmp_path, "ml-20m")
    (tmp_path / "x.inter").write_text(
        "user_id:token\titem_id:token\trating:float\ttimestamp:float\n1\t1\tNaN\t1\n1\t2\t5\t2\n"
    )
    with pytest.raises(ValueError, match="'label' holds None"):
        read_inter(tmp_path / "x.inter")
    with pytest.raises(ValueError, match=r"ml-20m: 1 of 2 rows have no positive \(empty or NaN\)"):
        prepare(read_movielens(tmp_path / "ratings.csv"), "ml-20m")


def test_next_item_sources(tmp_path: Path):
    # The first value with a fraction comes late: the types must not be those of the first rows.
    watched = [*["20"] * 200, "0.5", "NaN", "", "100"]
    rows = [f"1,{i},2021-05-11,{share}" for i, share in enumerate(watched)]
    (tmp_path / "interactions.csv").write_text("\n".join(["user_id,item_id,last_watch_dt,watched_pct", *rows]) + "\n")
    assert read_kion(tmp_path / "interactions.csv")["positive"].to_list() == [True] * 200 + [False] * 3 + [True]

    n = 12
    user, item = (array.ravel() for array in np.meshgrid(np.arange(2), np.arange(n)))
    plays = pl.DataFrame({"user_id": np.tile(user, 3), "track_id": np.tile(item, 3)}).with_columns(
        session_id=pl.int_range(pl.len()) // (2 * n), datetime=pl.lit(5), play_duration=NAN
    )
    plays.write_parquet(tmp_path / "zvuk-interactions.parquet")
    found = read_zvuk(tmp_path / "zvuk-interactions.parquet")
    assert found.height == 6 * n
    assert not found["positive"].any()
