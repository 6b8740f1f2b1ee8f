"""A log built piece by piece on disk is the log in memory, bit for bit."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixpol_models.data import (
    DateSplit,
    InteractionLog,
    SequenceConfig,
    TailSplit,
    TimeSplit,
    UserSplit,
    build_examples,
    open_store,
    resolve,
    write_store,
)
from mixpol_models.data.kuairand import scan_kuairand
from mixpol_models.data.scan import LogScan
from mixpol_models.data.stream_check import measure

ARRAYS = ("user", "time", "item", "polarity", "offsets", "before", "positives", "negatives")
SEQUENCES = [SequenceConfig(budget=3), SequenceConfig(kind="positive", budget=3), SequenceConfig(negative_share=0.5)]
SPLITS = [
    TimeSplit(0.5, 0.3),
    UserSplit(0.4, 0.3, seed=3),
    TailSplit(2, 1),
    DateSplit((20220401, 20220402), (20220403, 20220403), (20220404, 20220405)),
]


def scan_of(rows: int, seed: int, split, *, two: bool = False, text: bool = False) -> LogScan:
    """A log with duplicates, near-duplicates, ties, gaps, rows to drop, and maybe a table of history rows."""
    rng = np.random.default_rng(seed)
    frame = pl.DataFrame(
        {
            "user": rng.integers(0, 12, rows) * 3,
            "item": rng.integers(0, 30, rows) * 2,
            "time": rng.integers(-5, 40, rows),
            "label": rng.integers(0, 2, rows),
            "polarity": rng.integers(0, 2, rows),
            "context": rng.integers(0, 3, rows),
            "raw": rng.integers(0, 2, rows),
            "date": 20220401 + rng.integers(0, 7, rows),
        }
    )
    frame = pl.concat([frame, frame[: rows // 3]])
    if text:
        frame = frame.with_columns(user=pl.format("u{}", "user"))
    past = frame.select("user", "item", pl.col("time") - 50, "label", "polarity", split=pl.lit("history"))
    frames = (past.lazy(), frame.lazy()) if two else (frame.lazy(),)
    drop = {"at time 7": pl.col("time") == 7, "of item 4": pl.col("item") == 4}
    return LogScan(frames, split, "test", "as given", "a test", drop=drop, renumber=("user", "item") if text else ())


def assert_same(log: InteractionLog, stored: InteractionLog) -> None:
    assert stored.frame.equals(log.frame)
    assert stored.frame.schema == log.frame.schema
    for name in ("name", "n_users", "n_items", "n_contexts", "polarity_rule", "source", "n_duplicates", "dropped"):
        assert getattr(stored, name) == getattr(log, name), name
    ours, mapped = log.history_store(), stored.history_store()
    assert mapped is stored.stored
    for name in ARRAYS:
        a, b = getattr(ours, name), getattr(mapped, name)
        assert a.dtype == b.dtype, name
        assert np.array_equal(a, b), name


@pytest.mark.parametrize("split", SPLITS, ids=lambda split: type(split).__name__)
@pytest.mark.parametrize("two", [False, True])
@pytest.mark.parametrize("text", [False, True])
def test_same_as_in_memory(tmp_path: Path, split, two: bool, text: bool):
    scan = scan_of(400, 1, split, two=two, text=text)
    log = scan.load()
    assert log.n_duplicates > 50
    assert log.dropped["at time 7"] > 0
    assert log.dropped["of item 4"] > 0
    assert_same(log, open_store(write_store(scan, tmp_path / "store", chunk_events=37)))


@settings(max_examples=6, deadline=None)
@given(rows=st.integers(0, 60), seed=st.integers(0, 99), chunk=st.integers(9, 80), split=st.sampled_from(SPLITS))
def test_any_size_and_chunk(tmp_path_factory: pytest.TempPathFactory, rows: int, seed: int, chunk: int, split):
    scan = scan_of(rows, seed, split, text=True)
    folder = tmp_path_factory.mktemp("any") / "store"
    assert_same(scan.load(), open_store(write_store(scan, folder, chunk_events=chunk)))


def test_examples_are_the_same(tmp_path: Path):
    scan = scan_of(500, 2, TimeSplit())
    stored = resolve(write_store(scan, tmp_path / "store", chunk_events=50), say=lambda line: None)
    for sequence in SEQUENCES:
        ours, theirs = build_examples(scan.load(), sequence), build_examples(stored, sequence)
        for part in ("train", "valid", "test"):
            for a, b in zip(getattr(ours, part).batches(64), getattr(theirs, part).batches(64), strict=True):
                assert all(getattr(a, name).equal(getattr(b, name)) for name in vars(a))


def test_columns_are_mapped_not_read(tmp_path: Path):
    log = open_store(write_store(scan_of(300, 3, TimeSplit()), tmp_path / "store"))
    assert isinstance(log.stored.item, np.memmap)
    assert isinstance(log.stored.negatives, np.memmap)
    assert np.shares_memory(log.frame["item"].to_numpy(), log.stored.item)


def test_a_part_of_a_stored_log_has_its_own_histories(tmp_path: Path):
    from dataclasses import replace

    log = open_store(write_store(scan_of(300, 3, TimeSplit()), tmp_path / "store"))
    part = replace(log, frame=log.frame.filter(pl.col("user") != 6))
    assert part.history_store() is not log.stored
    assert 6 not in part.history_store().user
    other_splits = replace(log, frame=log.frame.with_columns(split=pl.lit("train", log.frame.schema["split"])))
    assert other_splits.history_store() is log.stored


def test_kuairand(kuairand_csv: Path, tmp_path: Path):
    scan = scan_kuairand(kuairand_csv)
    assert_same(scan.load(), open_store(write_store(scan, tmp_path / "store", chunk_events=3)))


def test_real_kuairand(real_kuairand: Path, tmp_path: Path):
    scan = scan_kuairand(real_kuairand)
    assert_same(scan.load(), open_store(write_store(scan, tmp_path / "store", chunk_events=300_000)))


def test_a_folder_in_use_is_kept(tmp_path: Path):
    scan = scan_of(50, 0, TimeSplit())
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("dear")
    for force in (False, True):
        with pytest.raises(FileExistsError, match=r"delete it, or give another folder$"):
            write_store(scan, tmp_path / "mine", force=force)
    write_store(scan, tmp_path / "store")
    with pytest.raises(FileExistsError, match="or use --force"):
        write_store(scan, tmp_path / "store")
    write_store(scan, tmp_path / "store", force=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "store"], "nothing else is left behind"


def test_a_failed_build_leaves_nothing(tmp_path: Path):
    scan = scan_of(50, 0, TimeSplit())
    scan = LogScan((scan.frames[0].with_columns(polarity=2),), TimeSplit(), "test", "", "")
    with pytest.raises(ValueError, match="'polarity' holds 2"):
        write_store(scan, tmp_path / "store")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("user", [[None, 0], [-1, 0], ["a", "b"]])
def test_bad_users_are_named(tmp_path: Path, user: list):
    frame = pl.LazyFrame({"user": user, "item": [1, 1], "time": [1, 2], "label": [0, 1], "polarity": [0, 1]})
    with pytest.raises(ValueError, match=r"'user'.*expected"):
        write_store(LogScan((frame,), TimeSplit(), "test", "", ""), tmp_path / "store")


@pytest.mark.parametrize("damage", ["version", "missing", "short", "json"])
def test_a_damaged_store_is_refused(tmp_path: Path, damage: str):
    folder = write_store(scan_of(50, 0, TimeSplit()), tmp_path / "store")
    meta = json.loads((folder / "mixpol_store.json").read_text())
    if damage == "version":
        (folder / "mixpol_store.json").write_text(json.dumps(meta | {"version": 99}))
    elif damage == "json":
        (folder / "mixpol_store.json").write_text("{")
    elif damage == "missing":
        (folder / "item.npy").unlink()
    else:
        np.save(folder / "item.npy", np.zeros(3, dtype=np.int64))
    with pytest.raises(ValueError, match=r"no readable store.*mixpol data prepare"):
        resolve(folder)


def test_the_measurement_runs(tmp_path: Path):
    result = measure(tmp_path, 3_000, chunk_events=1_000)
    assert result["read_rows"] == 3_000 - 30
    assert result["read_duplicates"] == 30
    assert result["build_peak_bytes"] > 0
    assert result["store_bytes"] > 3_000 * 40
