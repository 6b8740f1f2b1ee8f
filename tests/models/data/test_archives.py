"""Archives that are damaged, encrypted or not to be trusted: refused in words, and nothing is left behind."""

import contextlib
import io
import random
import shutil
import tarfile
import zipfile
from pathlib import Path

import pytest

from mixpol_models.data.download import extract, get_kuairand_pure
from mixpol_models.data.locks import building

FORMS = ["tar", "tar.gz", "tar.bz2", "tar.xz", "zip", "stored zip"]


def archive_of(path: Path, form: str, members: list[tuple[str, bytes]]) -> Path:
    if "zip" in form:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED if "stored" in form else zipfile.ZIP_DEFLATED) as archive:
            for name, content in members:
                archive.writestr(name, content)
        return path
    with tarfile.open(path, f"w:{form.partition('.')[2]}") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def refused(archive: Path, folder: Path, message: str, **options) -> None:
    with pytest.raises(ValueError, match=rf"{archive.name}: .*{message}"):
        extract(archive, folder, **options)
    assert list(folder.parent.iterdir()) == []


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    return tmp_path / "in" / "out"


@pytest.mark.parametrize("form", FORMS)
def test_damaged(tmp_path: Path, place: Path, form: str, source: random.Random):
    members = [(f"folder/{i}.csv", source.randbytes(300)) for i in range(4)]
    archive = archive_of(tmp_path / "archive", form, members)
    whole = archive.read_bytes()
    damaged = [whole[: source.randrange(len(whole))] for _ in range(10)]
    for _ in range(30):
        changed = bytearray(whole)
        for _ in range(source.randint(1, 3)):
            changed[source.randrange(len(whole))] = source.randrange(256)
        damaged.append(bytes(changed))
    n_refused = n_whole = 0
    for content in damaged:
        archive.write_bytes(content)
        try:
            extract(archive, place, required=lambda folder: len(list(folder.glob("folder/*.csv"))) == 4)
        except ValueError as error:
            n_refused += str(error).startswith("archive: ") and not place.exists()
        assert set(place.parent.iterdir()) <= {place}
        n_whole += place.exists()
        shutil.rmtree(place, ignore_errors=True)
    assert n_refused + n_whole == 40
    assert n_refused > 10


def test_encrypted(tmp_path: Path, place: Path):
    archive = archive_of(tmp_path / "archive", "zip", [("a.csv", b"1" * 100)])
    content = bytearray(archive.read_bytes())
    # The bit that says so, in the local header and in the directory.
    content[6] |= 1
    content[content.index(b"PK\x01\x02") + 8] |= 1
    archive.write_bytes(content)
    refused(archive, place, "member 'a.csv' is encrypted: not unpacked")


def test_unknown_compression(tmp_path: Path, place: Path):
    archive = archive_of(tmp_path / "archive", "zip", [("a.csv", b"1" * 100)])
    content = bytearray(archive.read_bytes())
    content[8] = content[content.index(b"PK\x01\x02") + 10] = 77
    archive.write_bytes(content)
    refused(archive, place, "not a readable archive .*compression")


@pytest.mark.parametrize("form", ["tar", "tar.xz", "zip"])
@pytest.mark.parametrize("second", ["a", "a/b"])
def test_a_member_twice(tmp_path: Path, place: Path, form: str, second: str):
    members = [("a", b"1"), (second, b"2")]
    with (
        pytest.warns(UserWarning, match="Duplicate name")
        if form == "zip" and second == "a"
        else contextlib.nullcontext()
    ):
        archive = archive_of(tmp_path / "archive", form, members)
    refused(archive, place, f"member '{second}' is there twice")


def test_too_many_members(tmp_path: Path, place: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("mixpol_models.data.download._MOST_MEMBERS", 3)
    extract(archive_of(tmp_path / "archive", "zip", [(f"{i}", b"") for i in range(3)]), tmp_path / "few")
    refused(archive_of(tmp_path / "archive", "zip", [(f"{i}", b"") for i in range(4)]), place, "over 3 members")


def test_bomb(tmp_path: Path, place: Path):
    for form in FORMS:
        archive = archive_of(tmp_path / "archive", form, [("small", b"1"), ("zeros", bytes(1_000_000))])
        refused(archive, place, "over 999,999 bytes", max_bytes=999_999)


def test_not_a_folder(tmp_path: Path):
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    archive = archive_of(tmp_path / "archive", "zip", [("a", b"1")])
    with pytest.raises(OSError, match="is a link to nothing"):
        extract(archive, tmp_path / "dangling")
    extract(archive, tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "a").read_bytes() == b"1"


def test_one_process_fetches_at_a_time(tmp_path: Path):
    with (
        building(tmp_path / "kuairand-pure", "mixpol data get"),
        pytest.raises(RuntimeError, match="written by another `mixpol data get`"),
    ):
        get_kuairand_pure(tmp_path, url="http://127.0.0.1:1/x")
