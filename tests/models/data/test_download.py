"""Downloads against a server on this machine that cuts, lies and refuses; archives that try to break out."""

import hashlib
import io
import stat
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from mixpol_models.data import resolve
from mixpol_models.data.download import DownloadError, download, extract, get_kuairand_pure

CONTENT = bytes(range(256)) * 400
CHECKSUM = "md5:" + hashlib.md5(CONTENT).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """Serves `server.content`; `server.plan` holds what goes wrong with the next requests."""

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        self.server.ranges.append(asked)
        trouble = self.server.plan.pop(0) if self.server.plan else ""
        if trouble.isdigit():
            self.send_error(int(trouble))
            return
        content = self.server.content
        first = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and trouble != "no ranges" else None
        if first is not None and first >= len(content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(200 if first is None else 206)
        if first is not None:
            told = first + 1 if trouble == "wrong range" else first
            self.send_header("Content-Range", f"bytes {told}-{len(content) - 1}/{len(content)}")
        body = content[first or 0 :]
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if trouble == "cut" else body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.content, server.plan, server.ranges = CONTENT, [], []
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def client() -> Iterator[httpx.Client]:
    with httpx.Client(trust_env=False, timeout=5.0) as client:
        yield client


@pytest.fixture
def get(server: ThreadingHTTPServer, client: httpx.Client, tmp_path: Path):
    def get(**options) -> bytes:
        arguments = {"checksum": CHECKSUM, "pause": 0.0, "client": client} | options
        return download(f"http://127.0.0.1:{server.server_port}/file", tmp_path / "file", **arguments).read_bytes()

    return get


def test_whole_file_with_progress(server: ThreadingHTTPServer, get, tmp_path: Path):
    steps: list[tuple[int, int | None]] = []
    assert get(progress=lambda done, total: steps.append((done, total))) == CONTENT
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert steps == sorted(steps)
    assert steps[-1] == (len(CONTENT), len(CONTENT))
    assert get() == CONTENT
    assert server.ranges == [None], "what is there and whole is not fetched again"


def test_sha256(get):
    assert get(checksum="sha256:" + hashlib.sha256(CONTENT).hexdigest()) == CONTENT


def test_resumes_after_a_cut(server: ThreadingHTTPServer, get):
    server.plan = ["cut", "cut"]
    assert get() == CONTENT
    half = len(CONTENT) // 2
    assert server.ranges == [None, f"bytes={half}-", f"bytes={half + half // 2}-"]


def test_resumes_in_a_later_run(server: ThreadingHTTPServer, get, tmp_path: Path):
    server.plan = ["cut"]
    with pytest.raises(DownloadError, match=r"no success in 1 attempts.*resume at byte 51,200"):
        get(attempts=1)
    assert not (tmp_path / "file").exists()
    steps: list[int] = []
    assert get(progress=lambda done, total: steps.append(done)) == CONTENT
    assert server.ranges[-1] == "bytes=51200-"
    assert steps[0] > 51_200


def test_starts_afresh_without_ranges(server: ThreadingHTTPServer, get, tmp_path: Path):
    (tmp_path / "file.part").write_bytes(CONTENT[:1000])
    server.plan = ["no ranges"]
    assert get() == CONTENT


def test_starts_afresh_on_a_wrong_range(server: ThreadingHTTPServer, get, tmp_path: Path):
    (tmp_path / "file.part").write_bytes(CONTENT[:1000])
    server.plan = ["wrong range"]
    assert get() == CONTENT
    assert server.ranges == ["bytes=1000-", None]


def test_whole_part_is_taken(server: ThreadingHTTPServer, get, tmp_path: Path):
    (tmp_path / "file.part").write_bytes(CONTENT)
    assert get() == CONTENT
    assert len(server.ranges) == 1


@pytest.mark.parametrize("stale", [b"x" * 1000, b"x" * len(CONTENT), b"x" * (len(CONTENT) + 5)])
def test_stale_part_is_replaced(get, tmp_path: Path, stale: bytes):
    (tmp_path / "file.part").write_bytes(stale)
    assert get() == CONTENT


def test_wrong_checksum(server: ThreadingHTTPServer, get, tmp_path: Path):
    server.content = CONTENT + b"!"
    with pytest.raises(DownloadError, match=r"md5 of .* is .*, expected .*: deleted"):
        get()
    assert list(tmp_path.iterdir()) == []
    assert len(server.ranges) == 1


def test_busy_server_is_asked_again(server: ThreadingHTTPServer, get):
    server.plan = ["503", "429"]
    assert get() == CONTENT


def test_missing_file_is_not_asked_again(server: ThreadingHTTPServer, get):
    server.plan = ["404"]
    with pytest.raises(DownloadError, match="answers 404"):
        get()
    assert len(server.ranges) == 1


def test_too_large(get, tmp_path: Path):
    with pytest.raises(DownloadError, match="larger than 1,000 bytes"):
        get(max_bytes=1000)
    assert not (tmp_path / "file").exists()


def test_checksum_form(get):
    with pytest.raises(ValueError, match="checksum is 'crc32:1', expected"):
        get(checksum="crc32:1")


def tar(path: Path, members: dict[str, bytes | tarfile.TarInfo]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            if isinstance(content, tarfile.TarInfo):
                archive.addfile(content)
            else:
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return path


def zipped(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.mark.parametrize("make", [tar, zipped])
def test_extract(tmp_path: Path, make):
    archive = make(tmp_path / "archive", {"./a/b.csv": b"1", "c.csv": b"22"})
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "old").touch()
    extract(archive, folder)
    assert {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()} == {
        "a/b.csv": b"1",
        "c.csv": b"22",
    }
    assert sorted(p.name for p in tmp_path.iterdir()) == ["archive", "out"]


@pytest.mark.parametrize("make", [tar, zipped])
@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "/evil", "C:/evil", "..\\evil"])
def test_extract_refuses_to_leave_the_folder(tmp_path: Path, make, name: str):
    inside = tmp_path / "inside"
    inside.mkdir()
    archive = make(tmp_path / "archive", {"good": b"1", name: b"evil"})
    with pytest.raises(ValueError, match="leaves the folder"):
        extract(archive, inside / "out")
    assert list(inside.iterdir()) == []
    assert sorted(p.name for p in tmp_path.iterdir()) == ["archive", "inside"]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_extract_refuses_links_and_devices(tmp_path: Path, kind: bytes):
    archive = tar(tmp_path / "archive", {"link": special("link", kind, "/etc"), "link/x": b"evil"})
    with pytest.raises(ValueError, match="link or a device"):
        extract(archive, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_extract_refuses_links_in_zip(tmp_path: Path):
    link = zipfile.ZipInfo("link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "archive", "w") as archive:
        archive.writestr(link, "/etc")
    with pytest.raises(ValueError, match="link or a device"):
        extract(tmp_path / "archive", tmp_path / "out")


@pytest.mark.parametrize("make", [tar, zipped])
def test_extract_refuses_bombs(tmp_path: Path, make):
    archive = make(tmp_path / "archive", {"small": b"1", "zeros": bytes(1_000_000)})
    with pytest.raises(ValueError, match="over 999,999 bytes"):
        extract(archive, tmp_path / "out", max_bytes=999_999)
    assert not (tmp_path / "out").exists()


def test_extract_refuses_broken_archives(tmp_path: Path):
    archive = tar(tmp_path / "archive", {"a": CONTENT})
    archive.write_bytes(archive.read_bytes()[:-200])
    with pytest.raises(ValueError, match="not a readable archive"):
        extract(archive, tmp_path / "out")
    archive.write_bytes(b"<html>")
    with pytest.raises(ValueError, match="not a readable archive"):
        extract(archive, tmp_path / "out")


def test_kuairand_pure_from_archive_to_log(
    server: ThreadingHTTPServer, client: httpx.Client, kuairand_csv: Path, tmp_path: Path
):
    with tarfile.open(tmp_path / "made.tar.gz", "w:gz") as archive:
        archive.add(kuairand_csv / "KuaiRand-Pure", "KuaiRand-Pure")
    server.content = (tmp_path / "made.tar.gz").read_bytes()
    source = {
        "url": f"http://127.0.0.1:{server.server_port}/KuaiRand-Pure.tar.gz",
        "checksum": "md5:" + hashlib.md5(server.content).hexdigest(),
        "client": client,
    }
    folder = get_kuairand_pure(**source)
    assert [path.name for path in folder.parent.iterdir()] == ["kuairand-pure"], "the archive is gone"
    said: list[str] = []
    assert resolve(say=said.append).n_duplicates == 1
    assert "found in the cache" in said[0]
    assert get_kuairand_pure(**source) == folder
    assert len(server.ranges) == 1
    assert get_kuairand_pure(**source, force=True) == folder
    assert len(server.ranges) == 2


def test_kuairand_pure_must_be_in_the_archive(server: ThreadingHTTPServer, client: httpx.Client, tmp_path: Path):
    server.content = tar(tmp_path / "other.tar.gz", {"README": b"1"}).read_bytes()
    checksum = "md5:" + hashlib.md5(server.content).hexdigest()
    url = f"http://127.0.0.1:{server.server_port}/x"
    with pytest.raises(ValueError, match="does not hold the expected files"):
        get_kuairand_pure(tmp_path / "cache", url=url, checksum=checksum, client=client)
    assert not (tmp_path / "cache" / "kuairand-pure").exists()
