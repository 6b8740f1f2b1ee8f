"""Logs described by a YAML file."""

from datetime import datetime
from pathlib import Path

import polars as pl
import pytest
import yaml

from mixpol_models.data import load_described, open_store, resolve, write_store
from mixpol_models.data.described import scan_described

FRAME = pl.DataFrame(
    {
        "uid": ["b", "a", "a", "b", "b"],
        "iid": [900, 100, 500, 100, 900],
        "ts": [1_650_000_000 + day * 86_400 for day in (0, 1, 2, 3, 4)],
        "watch_ratio": [0.1, 0.5, 2.0, 0.2, None],
        "click": [1, 0, 1, 1, 0],
        "page": ["x", "y", "x", "x", "y"],
    }
)
DESCRIPTION = {
    "name": "my feed",
    "files": "*.parquet",
    "columns": {"user": "uid", "item": "iid", "time": "ts", "context": "page"},
    "polarity": "watch_ratio < 0.3: negative",
    "drop_incomplete": True,
}


def write(folder: Path, frame: pl.DataFrame = FRAME, **changes) -> Path:
    frame.write_parquet(folder / "events.parquet")
    text = yaml.safe_dump({k: v for k, v in (DESCRIPTION | changes).items() if v is not None})
    (folder / "log.yaml").write_text(text)
    return folder / "log.yaml"


def test_parquet(tmp_path: Path):
    log = load_described(write(tmp_path))
    assert log.frame.select("user", "item", "polarity", "label", "context").rows() == [
        (0, 0, 1, 1, 1),
        (0, 1, 1, 1, 0),
        (1, 2, 0, 0, 0),
        (1, 0, 0, 0, 0),
    ]
    assert log.dropped == {
        f"without {name}": int(name == "polarity") for name in ("user", "item", "time", "polarity", "label", "context")
    }
    assert (log.name, log.source, log.polarity_rule) == ("my feed", "log.yaml: 1 file", "watch_ratio < 0.3: negative")


def test_csv_label_and_several_files(tmp_path: Path):
    path = write(
        tmp_path, files=["a*.csv", "b.csv"], separator=";", label="click", drop_incomplete=False, polarity="click == 0"
    )
    FRAME[:2].write_csv(tmp_path / "a1.csv", separator=";")
    FRAME[2:].write_csv(tmp_path / "b.csv", separator=";")
    log = resolve(path, say=lambda line: None)
    assert log.frame["label"].to_list() == [0, 1, 1, 1, 0]
    assert log.frame["polarity"].to_list() == [1, 0, 0, 0, 1]
    assert log.source == "log.yaml: 2 files"


def test_splits(tmp_path: Path):
    days = {"train": [20220415, 20220416], "valid": [20220417, 20220417], "test": [20220418, 20220418]}
    log = load_described(write(tmp_path, split={"dates": days}, time_unit="s", polarity="click"))
    assert log.frame["split"].to_list() == ["train", "valid", "train", "test"]
    assert log.dropped["after the last test day"] == 1
    assert load_described(write(tmp_path, split={"tail": [1, 1]})).frame["split"].to_list() == ["valid", "test"] * 2
    users = load_described(write(tmp_path, split={"users": [0.4, 0.2], "seed": 3})).frame
    assert users.group_by("user").agg(pl.col("split").n_unique())["split"].to_list() == [1, 1]


@pytest.mark.parametrize("kind", ["datetime", "float", "us"])
def test_times(tmp_path: Path, kind: str):
    time = {
        "datetime": pl.from_epoch("ts", "s"),
        "float": pl.col("ts").cast(pl.Float64) + 0.0004,
        "us": pl.col("ts") * 1_000_000,
    }[kind]
    unit = {"datetime": None, "float": "s", "us": "us"}[kind]
    days = {"train": [20220415, 20220416], "valid": [20220417, 20220417], "test": [20220418, 20220419]}
    log = load_described(write(tmp_path, FRAME.with_columns(ts=time), time_unit=unit, split={"dates": days}))
    expected = datetime(2022, 4, 16, 5, 20).timestamp() - datetime(1970, 1, 1).timestamp()
    assert log.frame["time"][0] == expected * (1e6 if kind == "us" else 1e3)
    assert log.frame["split"].to_list() == ["train", "valid", "train", "test"]


def test_incomplete_rows_are_an_error_unless_dropped(tmp_path: Path):
    with pytest.raises(ValueError, match=r"column 'label' holds None|column 'polarity' holds None"):
        load_described(write(tmp_path, drop_incomplete=False))


def test_rows_that_differ_in_any_column_are_not_duplicates(tmp_path: Path):
    twice = pl.concat([FRAME, FRAME[:1], FRAME[:1].with_columns(click=pl.lit(0, pl.Int64))])
    log = load_described(write(tmp_path, twice))
    assert (log.n_duplicates, log.frame.height) == (1, 5)


def test_store(tmp_path: Path):
    scan = scan_described(write(tmp_path))
    log, stored = scan.load(), open_store(write_store(scan, tmp_path / "store", chunk_events=2))
    assert stored.frame.equals(log.frame)
    assert (stored.n_contexts, stored.dropped) == (log.n_contexts, log.dropped)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"files": "*.csv"}, r"files is \['\*.csv'\], expected patterns that match something"),
        ({"files": "*"}, "expected all .parquet or all .csv"),
        ({"columns": {"user": "uid", "item": "iid"}}, r"does not describe a log: columns.time: Field required"),
        ({"columns": DESCRIPTION["columns"] | {"time": "when"}}, r"columns.time is 'when', expected one of \['uid'"),
        ({"columns": DESCRIPTION["columns"] | {"time": "page"}}, r"columns.time is 'page', which is String"),
        ({"columns": DESCRIPTION["columns"] | {"time": "watch_ratio"}}, r"Float64; expected whole numbers"),
        ({"polarity": "watch < 1"}, r"log.yaml: polarity is 'watch < 1', which names the column 'watch'"),
        ({"label": "page > 1"}, r"log.yaml: label is"),
        ({"polarity": None}, "polarity: Field required"),
        ({"colour": "red"}, "colour: Extra inputs are not permitted"),
        ({"split": {"time": [0.8, 0.1], "tail": [1, 1]}}, r"split has \['time', 'tail'\], expected one of"),
        ({"split": {"time": [0.8, 0.3]}}, "expected positive shares"),
        ({"split": {"tail": [1, 1], "seed": 1}}, "expected it with users only"),
        ({"split": {"dates": {"train": [20220415, 20220416]}}}, r"split.dates.valid: Field required"),
        (
            {"split": {"dates": {k: [d, d] for k, d in (("train", 1), ("valid", 2), ("test", 3))}}},
            "split has dates, but time_unit is not given",
        ),
        ({"separator": ";;"}, "separator: String should have at most 1"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, changes: dict, message: str):
    with pytest.raises(ValueError, match=message):
        load_described(write(tmp_path, **changes))


@pytest.mark.parametrize("text", ["{", "- 1\n- 2\n", "!!python/object/apply:os.system ['true']\n"])
def test_not_a_description(tmp_path: Path, text: str):
    (tmp_path / "log.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"log.yaml (is not a readable YAML file|does not describe a log)"):
        resolve(tmp_path / "log.yaml")
    with pytest.raises(ValueError, match="not a readable YAML file"):
        resolve(tmp_path / "none.yaml")
