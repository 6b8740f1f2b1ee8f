"""One writer a folder; nothing is overwritten, nothing is left behind."""

import os
import tempfile
from pathlib import Path

import pytest

from mixpol_models.data.locks import building, locked, put_in_place, target_of, temporary_folder


def test_a_folder_has_one_writer(tmp_path: Path):
    with (
        locked(tmp_path / "run", "mixpol train"),
        pytest.raises(RuntimeError, match=r"run is being written by another `mixpol train`"),
        locked(tmp_path / "run", "mixpol train"),
    ):
        pass
    with locked(tmp_path / "run", "mixpol train"):
        pass


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_the_lock_changes_no_other_file(tmp_path: Path, link):
    (tmp_path / "thesis.txt").write_text("dear")
    (tmp_path / "run").mkdir()
    link(tmp_path / "thesis.txt", tmp_path / "run" / ".lock")
    if link is os.symlink:
        with pytest.raises(OSError, match=r"\.lock is a link, expected a plain file"), locked(tmp_path / "run", "x"):
            pass
    else:
        with locked(tmp_path / "run", "x"):
            pass
    assert (tmp_path / "thesis.txt").read_text() == "dear"


def test_a_link_to_nothing_makes_no_file(tmp_path: Path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").symlink_to(tmp_path / "made")
    with pytest.raises(OSError, match="is a link"), locked(tmp_path / "run", "x"):
        pass
    assert not (tmp_path / "made").exists()


def test_building_twice_is_refused(tmp_path: Path):
    target = tmp_path / "store"
    with building(target, "mixpol data prepare") as part:
        (part / "file").write_text("mine")
        with (
            pytest.raises(RuntimeError, match=r"store is being written by another `mixpol data prepare`"),
            building(target, "mixpol data prepare"),
        ):
            pass
        with building(tmp_path / "other", "mixpol data prepare"):
            pass
        assert (part / "file").read_text() == "mine"
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_is_cleared(tmp_path: Path):
    target = tmp_path / "store"
    # What a kill leaves: the files without the lock.
    (tmp_path / ".store.mixpol-part").mkdir()
    (tmp_path / ".store.mixpol-part" / "spool").write_text("half")
    (tmp_path / ".store.mixpol-lock").touch()
    with building(target, "x") as part:
        assert list(part.iterdir()) == []
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_build_leaves_nothing(tmp_path: Path):
    def build() -> None:
        with building(tmp_path / "store", "x") as part:
            (part / "file").touch()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build()
    assert list(tmp_path.iterdir()) == []


def test_a_parent_that_cannot_be_written(tmp_path: Path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(OSError, match=r"store cannot be made .*: take a folder that can be written"),
        building(tmp_path / "file" / "store", "x"),
    ):
        pass


def test_what_was_there_comes_back(tmp_path: Path):
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "file").touch()
    with pytest.raises(FileNotFoundError):
        put_in_place(tmp_path / "none", tmp_path / "store", tmp_path / "old")
    assert (tmp_path / "store" / "file").is_file()


def test_targets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "dangling").symlink_to("nowhere")
    assert target_of(tmp_path / "link") == tmp_path / "real"
    with pytest.raises(OSError, match=r"dangling is a link to nothing \(nowhere\)"):
        target_of(tmp_path / "dangling")
    monkeypatch.chdir(tmp_path / "real")
    for place in (".", "..", str(tmp_path)):
        with pytest.raises(OSError, match="is the working folder or holds it"):
            target_of(Path(place))
    with pytest.raises(OSError, match="file system is mounted"):
        target_of(Path("/proc"))


def test_temporary_folders_that_were_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for name in ("mixpol-log-left", "mixpol-log-others"):
        (tmp_path / name).mkdir()
    (tmp_path / "mixpol-log-left" / ".mixpol-in-use").touch()
    (tmp_path / "mixpol-log-left" / "log").touch()
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / ".mixpol-in-use").touch()
    (tmp_path / "mixpol-log-link").symlink_to("target")
    with temporary_folder("mixpol-log-") as first, temporary_folder("mixpol-log-") as second:
        kept = {"mixpol-log-others", "mixpol-log-link", "target"}
        assert {path.name for path in tmp_path.iterdir()} == {*kept, first.name, second.name}
        with locked(first, "mixpol train"):
            pass
    assert {path.name for path in tmp_path.iterdir()} == kept
