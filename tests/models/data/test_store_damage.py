"""A store that was changed is refused in words; where a store may be put."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from mixpol_models.data import TimeSplit, open_store, resolve, write_store
from mixpol_models.data.locks import building
from mixpol_models.data.scan import LogScan
from mixpol_models.data.store import check_place

META = "mixpol_store.json"
REFUSED = r"is no readable store \(.*\): build it anew with `mixpol data prepare"


def scan(rows: int = 60) -> LogScan:
    rng = np.random.default_rng(0)
    columns = {"user": 5, "item": 9, "time": 20, "label": 2, "polarity": 2, "context": 3}
    frame = pl.DataFrame({name: rng.integers(0, high, rows) for name, high in columns.items()})
    return LogScan((frame.lazy(),), TimeSplit(), "test", "as given", "a test")


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return write_store(scan(), tmp_path / "store")


def without_checksums(store: Path) -> None:
    """As the first version wrote it."""
    meta = json.loads((store / META).read_text())
    del meta["checksums"]
    (store / META).write_text(json.dumps(meta | {"version": 1}))


def change(store: Path, name: str, place: int, value: int) -> None:
    array = np.load(store / f"{name}.npy")
    array[place] = value
    np.save(store / f"{name}.npy", array)


VALUES = [
    ("label", 3, 7), ("polarity", 3, 2), ("split", 3, 4), ("context", 0, 3), ("context", 0, -1), ("item", 5, 9),
    ("item", 5, -1), ("user", 0, -1), ("user", -1, 5), ("user", 20, 4), ("time", 1, -(2**62)), ("offsets", 1, -1),
    ("offsets", 2, 61), ("offsets", 0, 1), ("before", 9, 0), ("before", 0, 1), ("positives", 0, -1),
    ("negatives", -1, 60),
]  # fmt: skip


@pytest.mark.parametrize(("name", "place", "value"), VALUES)
@pytest.mark.parametrize("version", [1, 2])
def test_changed_values(store: Path, name: str, place: int, value: int, version: int):
    if version == 1:
        without_checksums(store)
    assert open_store(store).frame.height
    change(store, name, place, value)
    with pytest.raises(ValueError, match=REFUSED):
        open_store(store)


def test_a_changed_value_in_range(store: Path):
    label = np.load(store / "label.npy")
    change(store, "label", 3, 1 - label[3])
    with pytest.raises(ValueError, match=r"label\.npy was changed"):
        resolve(store, say=lambda line: None)
    assert open_store(store, check=False).frame["label"][3] == 1 - label[3]


def test_every_slice_is_checked(store: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("mixpol_models.data.store_format.SLICE", 7)
    without_checksums(store)
    whole = open_store(store).frame
    for name, place, value in VALUES:
        before = (store / f"{name}.npy").read_bytes()
        change(store, name, place, value)
        with pytest.raises(ValueError, match=REFUSED):
            open_store(store)
        (store / f"{name}.npy").write_bytes(before)
    assert open_store(store).frame.equals(whole)


@pytest.mark.parametrize("check", [True, False])
@pytest.mark.parametrize(
    "damage",
    [
        lambda file: file.write_bytes(b""),
        lambda file: file.write_bytes(b"\x93NUMPY"),
        lambda file: file.write_bytes(file.read_bytes()[:-9]),
        lambda file: np.save(file, np.load(file).astype(np.float64)),
        lambda file: np.save(file, np.load(file).astype(np.int32)),
        lambda file: np.save(file, np.load(file).astype(object), allow_pickle=True),
        lambda file: np.save(file, np.load(file)[None]),
        lambda file: np.save(file, np.load(file)[:-1]),
        lambda file: np.save(file, np.array(3)),
        lambda file: (file.unlink(), file.mkdir()),
    ],
)
@pytest.mark.parametrize("name", ["item", "offsets", "positives"])
def test_broken_arrays(store: Path, name: str, damage: Callable[[Path], object], check: bool):
    damage(store / f"{name}.npy")
    with pytest.raises(ValueError, match=REFUSED):
        open_store(store, check=check)


@pytest.mark.parametrize(
    "damage",
    [
        lambda meta: [],
        lambda meta: None,
        lambda meta: {},
        lambda meta: meta | {"version": "2"},
        lambda meta: meta | {"events": -1},
        lambda meta: meta | {"events": "60"},
        lambda meta: meta | {"events": 61},
        lambda meta: meta | {"log": 3},
        lambda meta: meta | {"log": meta["log"] | {"n_items": 3}},
        lambda meta: meta | {"log": meta["log"] | {"n_users": 4}},
        lambda meta: meta | {"log": meta["log"] | {"name": None}},
        lambda meta: meta | {"log": meta["log"] | {"colour": "red"}},
        lambda meta: meta | {"checksums": {}},
    ],
)
def test_a_broken_description(store: Path, damage: Callable):
    (store / META).write_text(json.dumps(damage(json.loads((store / META).read_text()))))
    with pytest.raises(ValueError, match=REFUSED):
        open_store(store)


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "\x00", "\xff"])
def test_no_description(store: Path, text: str):
    (store / META).write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=REFUSED):
        open_store(store)


def test_a_linked_output_stays_a_link(tmp_path: Path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "store").symlink_to("disk")
    write_store(scan(), tmp_path / "store")
    write_store(scan(), tmp_path / "store", force=True)
    assert (tmp_path / "store").is_symlink()
    assert (tmp_path / "disk" / META).is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk", "store"]


@pytest.mark.parametrize("place", [".", "dangling", "file", "file/store", "mine"])
def test_a_place_that_will_not_do_is_refused_before_the_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
):
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "file").touch()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("mixpol_models.data.store_build.Build.run", lambda self: pytest.fail("the build has begun"))
    for check in (check_place, lambda folder: write_store(scan(), folder)):
        with pytest.raises(OSError, match=r": (take|delete|give|make)"):
            check(place)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dangling", "file", "mine"]


def test_two_builds_of_one_store(tmp_path: Path):
    with (
        building(tmp_path / "store", "mixpol data prepare"),
        pytest.raises(RuntimeError, match="is being written by another"),
    ):
        write_store(scan(), tmp_path / "store")
    write_store(scan(), tmp_path / "store")


def test_a_build_after_an_interrupted_one_gives_the_same_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    expected = {file.name: file.read_bytes() for file in write_store(scan(), tmp_path / "expected").iterdir()}
    with monkeypatch.context() as patched:
        patched.setattr(
            "mixpol_models.data.store_build.NpyWriter.close", lambda self: (_ for _ in ()).throw(KeyboardInterrupt)
        )
        with pytest.raises(KeyboardInterrupt):
            write_store(scan(), tmp_path / "store")
    assert [path.name for path in tmp_path.iterdir()] == ["expected"]
    assert {file.name: file.read_bytes() for file in write_store(scan(), tmp_path / "store").iterdir()} == expected
