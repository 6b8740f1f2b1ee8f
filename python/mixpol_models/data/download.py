"""KuaiRand-Pure from its archive into the cache: resumed, checked, unpacked safely. Only on request.

Credit and licence (CC BY-SA 4.0): Gao et al., KuaiRand, CIKM 2022, doi 10.1145/3511808.3557624.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
import tarfile
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO

import httpx

from mixpol_models.choices import KUAIRAND_PURE
from mixpol_models.data.cache import cache_dir
from mixpol_models.data.kuairand import find_kuairand
from mixpol_models.data.locks import building, put_in_place, target_of

KUAIRAND_URL = "https://zenodo.org/records/10439422/files/KuaiRand-Pure.tar.gz"
# As the Zenodo record and the authors' README state it.
KUAIRAND_CHECKSUM = "md5:0820331067a3784d9691136f772b35a7"

Progress = Callable[[int, int | None], None]
GIB = 2**30
_MOST_MEMBERS = 100_000


class DownloadError(RuntimeError):
    """A download failed for good; the message says why and what to do."""


def get_kuairand_pure(
    cache: Path | None = None,
    *,
    progress: Progress | None = None,
    force: bool = False,
    url: str = KUAIRAND_URL,
    checksum: str = KUAIRAND_CHECKSUM,
    client: httpx.Client | None = None,
) -> Path:
    """Downloads (47 MB) and unpacks (194 MB) the official KuaiRand-Pure, unless it is in the cache.

    Args:
        cache: folder; by default the user's cache.
        progress: called with bytes done and bytes in total (None if not known).
        force: fetch again even if it is there.
        url, checksum, client: for mirrors and tests.

    Returns:
        The folder that `load_kuairand` reads.

    Raises:
        DownloadError: see `download`.
        ValueError: see `extract`.
        OSError: the cache cannot be written.
        RuntimeError: another process fetches it.
    """
    cache = cache or cache_dir()
    folder = cache / KUAIRAND_PURE
    if find_kuairand(folder) and not force:
        return folder
    target = target_of(folder)
    with building(target, "mixpol data get") as part:
        archive = download(url, cache / "KuaiRand-Pure.tar.gz", checksum=checksum, progress=progress, client=client)
        _extract(archive, target, part, 4 * GIB, find_kuairand)
        archive.unlink()
    return folder


def download(
    url: str,
    target: Path,
    *,
    checksum: str,
    progress: Progress | None = None,
    attempts: int = 5,
    pause: float = 1.0,
    max_bytes: int = GIB,
    client: httpx.Client | None = None,
) -> Path:
    """Downloads a file; what an interrupted run has left in `target`.part is resumed.

    Args:
        url: where from.
        target: the file, which appears only whole and checked; if it is there already, nothing is fetched.
        checksum: "md5:..." or "sha256:...".
        progress: called with bytes done and bytes in total (None if not known).
        attempts: how often to try when the connection breaks or the server is busy.
        pause: before the second attempt, in s; doubles with each further one.
        max_bytes: refuse more than this.
        client: the HTTP client; by default one with a timeout of 30 s that follows redirects.

    Raises:
        DownloadError: refused, out of attempts, too large, or the wrong checksum.
    """
    algorithm, _, expected = checksum.partition(":")
    if algorithm not in ("md5", "sha256") or not expected:
        raise ValueError(f"checksum is {checksum!r}, expected 'md5:...' or 'sha256:...': take it from the publisher")
    if target.exists() and _digest(target, algorithm) == expected:
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    own = client is None
    client = client or httpx.Client(timeout=30.0, follow_redirects=True)
    try:
        resumed = _fetch(client, url, part, progress, attempts, pause, max_bytes)
        digest = _digest(part, algorithm)
        if digest != expected and resumed:
            # The server's file may have changed between the pieces.
            part.unlink()
            _fetch(client, url, part, progress, attempts, pause, max_bytes)
            digest = _digest(part, algorithm)
    finally:
        if own:
            client.close()
    if digest != expected:
        part.unlink()
        raise DownloadError(
            f"{algorithm} of {url} is {digest}, expected {expected}: deleted; try again, or another source"
        )
    os.replace(part, target)
    return target


def extract(
    archive: Path,
    folder: Path,
    *,
    max_bytes: int = 4 * GIB,
    required: Callable[[Path], object] = lambda folder: True,
) -> None:
    """Unpacks a .tar.gz or .zip; `folder` appears only whole, in place of an older one.

    Only plain files and folders with relative names inside are accepted; links, devices, "..", absolute names
    and more than `max_bytes` are refused, and nothing is left behind.

    Args:
        archive: the file.
        folder: where to.
        max_bytes: unpacked, in all.
        required: must be true of the unpacked folder.

    Raises:
        ValueError: the archive is damaged, encrypted or not to be trusted, or lacks what is required.
        OSError: `folder` cannot be made or replaced.
        RuntimeError: another process unpacks there.
    """
    target = target_of(folder)
    with building(target, "extract") as part:
        _extract(archive, target, part, max_bytes, required)


def _extract(archive: Path, target: Path, part: Path, max_bytes: int, required: Callable[[Path], object]) -> None:
    fresh = part / "new"
    fresh.mkdir()
    _unpack(archive, fresh, max_bytes)
    if not required(fresh):
        raise ValueError(f"{archive.name}: does not hold the expected files: not used; fetch it again")
    put_in_place(fresh, target, part / "old")


class _Refused(ValueError):
    """An archive that can be read, but whose content is not wanted."""


@contextmanager
def _reading(archive: Path) -> Iterator[None]:
    """Damaged archives make their readers fail in many ways; what fails in writing is no fault of theirs."""
    try:
        yield
    except _Refused:
        raise
    except Exception as error:
        raise ValueError(
            f"{archive.name}: not a readable archive ({error or type(error).__name__}): fetch it again"
        ) from error


def _unpack(archive: Path, folder: Path, max_bytes: int) -> None:
    unpacked = 0
    archive.open("rb").close()  # says what is wrong if it is not there
    members = _members(archive)
    for number in count():
        with _reading(archive):
            member = next(members, None)
        if member is None:
            return
        name, size, content = member
        if number == _MOST_MEMBERS:
            raise ValueError(f"{archive.name}: has over {_MOST_MEMBERS:,} members: not unpacked; do not trust it")
        outside = name.startswith("/") or ".." in PurePosixPath(name).parts
        if outside or "\\" in name or "\0" in name or PureWindowsPath(name).drive:
            raise ValueError(f"{archive.name}: member {name!r} leaves the folder: not unpacked; do not trust it")
        too_large = f"{archive.name}: unpacks to over {max_bytes:,} bytes: not unpacked; raise max_bytes"
        if unpacked + size > max_bytes:
            raise ValueError(too_large)
        path = folder / name
        try:
            (path if content is None else path.parent).mkdir(parents=True, exist_ok=True)
            file = None if content is None else path.open("xb")
        except (FileExistsError, NotADirectoryError) as error:
            twice = f"{archive.name}: member {name!r} is there twice: not unpacked; do not trust it"
            raise ValueError(twice) from error
        if content is None or file is None:
            continue
        with content, file:
            while True:
                with _reading(archive):
                    block = content.read(1 << 20)
                if not block:
                    break
                # What a member holds need not be what it says.
                unpacked += len(block)
                if unpacked > max_bytes:
                    raise ValueError(too_large)
                file.write(block)


def _members(archive: Path) -> Iterator[tuple[str, int, IO[bytes] | None]]:
    """Name, size in bytes, and content (None for a folder) of each member."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as file:
            for entry in file.infolist():
                kind = stat.S_IFMT(entry.external_attr >> 16)
                if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                    raise _Refused(_not_plain(archive, entry.filename))
                if entry.flag_bits & 1:
                    raise _Refused(
                        f"{archive.name}: member {entry.filename!r} is encrypted: not unpacked; unpack it by hand, or "
                        "take an archive without a password"
                    )
                yield entry.filename, entry.file_size, None if entry.is_dir() else file.open(entry)
        return
    with tarfile.open(archive, "r:*") as file:
        for member in file:
            if not (member.isfile() or member.isdir()):
                raise _Refused(_not_plain(archive, member.name))
            yield member.name, member.size, file.extractfile(member)


def _not_plain(archive: Path, name: str) -> str:
    return f"{archive.name}: member {name!r} is a link or a device: not unpacked; do not trust it"


def _fetch(
    client: httpx.Client,
    url: str,
    part: Path,
    progress: Progress | None,
    attempts: int,
    pause: float,
    max_bytes: int,
) -> bool:
    """Fills `part`; returns whether anything in it came from an earlier request."""
    resumed = False
    reason: Exception | None = None
    for attempt in range(max(attempts, 1)):
        if attempt:
            time.sleep(pause * 2 ** (attempt - 1))
        try:
            resumed |= _fetch_rest(client, url, part, progress, max_bytes)
            return resumed
        except httpx.HTTPStatusError as error:
            code = error.response.status_code
            if code < 500 and code not in (408, 429):
                raise DownloadError(f"{url} answers {code}: nothing to resume; check the address") from error
            reason = error
        except httpx.TransportError as error:
            reason = error
    raise DownloadError(
        f"{url}: no success in {attempts} attempts ({reason!r}): run again to resume at byte {_size(part):,}"
    ) from reason


def _fetch_rest(client: httpx.Client, url: str, part: Path, progress: Progress | None, max_bytes: int) -> bool:
    """One request for what `part` lacks; returns whether it had something."""
    done = _size(part)
    # Identity: a decoded transfer would spoil both ranges and checksum.
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={done}-"} if done else {})
    with client.stream("GET", url, headers=headers) as response:
        if response.status_code == 416:
            # Either the part is whole, which the checksum will tell, or it is not a part of this file.
            if _content_range(response) == (None, done):
                return True
            part.unlink()
            raise httpx.ReadError("the part does not fit the file on the server; starting afresh")
        response.raise_for_status()
        length = int(response.headers["Content-Length"]) if "Content-Length" in response.headers else None
        if response.status_code == 206:
            first, total = _content_range(response)
            if first != done:
                part.unlink()
                raise httpx.ReadError(f"asked for bytes from {done}, got them from {first}; starting afresh")
        else:
            done, total = 0, length
        _refuse_large(url, total or 0, max_bytes)
        resumed = done > 0
        with part.open("ab" if resumed else "wb") as file:
            for chunk in response.iter_raw():
                done += len(chunk)
                _refuse_large(url, done, max_bytes)
                file.write(chunk)
                if progress:
                    progress(done, total)
    return resumed


def _content_range(response: httpx.Response) -> tuple[int | None, int | None]:
    """First byte and total of a Content-Range header, None where it does not say."""
    match = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(?:(\d+)|\*)", response.headers.get("Content-Range", ""))
    first, total = match.groups() if match else (None, None)
    return int(first) if first else None, int(total) if total else None


def _refuse_large(url: str, n_bytes: int, max_bytes: int) -> None:
    if n_bytes > max_bytes:
        raise DownloadError(f"{url} is larger than {max_bytes:,} bytes: stopped; check the address, or raise max_bytes")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _digest(path: Path, algorithm: str) -> str:
    with path.open("rb") as file:
        # MD5 is what the publisher gives: it tells damage, and https has told the host.
        return hashlib.file_digest(file, lambda: hashlib.new(algorithm, usedforsecurity=False)).hexdigest()
