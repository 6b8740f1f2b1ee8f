"""MovieLens-100K as the PyPI wheel of RecBole ships it; positive means a rating of at least 4.

GroupLens allows research use and no redistribution without permission: the ratings stay in the user's cache.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path

import polars as pl

from mixpol_models.data.cache import cache_dir
from mixpol_models.data.locks import temporary_folder
from mixpol_models.data.log import InteractionLog
from mixpol_models.data.scan import without_nan
from mixpol_models.data.splits import by_time
from mixpol_models.files import write_atomically

NAME = "MovieLens-100K"
REQUIREMENT = "recbole==1.2.1"
WHEEL_SHA256 = "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407"
MEMBER = "recbole/dataset_example/ml-100k/ml-100k.inter"
MEMBER_SHA256 = "4edb74e2a81178c2ba9ff381495f754f996c4aea351b1272ca36b43da0935eff"

_COLUMNS = {
    "user_id:token": "user",
    "item_id:token": "item",
    "rating:float": "rating",
    "timestamp:float": "time",
}


class SourceUnavailable(RuntimeError):
    """A data source cannot be had here and now; the message says why."""


def load_ml100k(cache: Path | None = None) -> InteractionLog:
    """Reads MovieLens-100K from the cache, which pip fills (2 MB) when it has to.

    Args:
        cache: folder; by default the user's cache.

    Raises:
        SourceUnavailable: it is not in the cache and pip cannot get it.
    """
    return read_inter(fetch_inter(cache))


def is_cached(cache: Path | None = None) -> bool:
    """Whether `load_ml100k` needs no network."""
    path = _path(cache)
    return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == MEMBER_SHA256


def fetch_inter(cache: Path | None = None, *, timeout: float = 120.0) -> Path:
    """Puts ml-100k.inter into the cache, unless it is there and whole.

    Args:
        cache: folder; by default the user's cache.
        timeout: of pip, in s.
    """
    if not is_cached(cache):
        with temporary_folder("mixpol-pip-") as folder:
            content = _member(_pip_download(folder, timeout))
        try:
            write_atomically(_path(cache), content)
        except OSError as error:
            raise SourceUnavailable(f"{NAME}: the cache cannot be written ({error}): set MIXPOL_CACHE") from error
    return _path(cache)


def read_inter(path: Path) -> InteractionLog:
    """Reads a RecBole .inter file of ratings; times in s, split by global time quantiles 80 / 10 / 10 %."""
    frame = pl.read_csv(path, separator="\t")
    if list(frame.columns) != list(_COLUMNS):
        raise ValueError(f"{path}: columns are {frame.columns}, expected {list(_COLUMNS)}: not the file it should be")
    rating = pl.col("rating")
    frame = without_nan(frame.rename(_COLUMNS)).with_columns(
        (pl.col("user", "item").rank("dense") - 1).cast(pl.Int64),
        pl.col("time").cast(pl.Int64),
        label=(rating >= 4),
        polarity=(rating >= 4),
    )
    return InteractionLog.from_frame(
        frame.with_columns(by_time()), name=NAME, polarity_rule="a rating of at least 4", source=path.name
    )


def _path(cache: Path | None) -> Path:
    return (cache or cache_dir()) / "ml-100k" / "ml-100k.inter"


def _pip_download(folder: Path, timeout: float) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"]
    command += ["--disable-pip-version-check", "--quiet", "--dest", str(folder), REQUIREMENT]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SourceUnavailable(f"{NAME}: pip did not bring {REQUIREMENT}: {error}") from error
    wheels = list(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        lines = [line for line in done.stderr.splitlines() if line.strip() and not line.startswith("WARNING")]
        raise SourceUnavailable(
            f"{NAME}: pip could not download {REQUIREMENT}: {' '.join(lines[-1:]) or 'no reason given'}"
        )
    return wheels[0]


def _member(wheel: Path) -> bytes:
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if digest != WHEEL_SHA256:
        raise SourceUnavailable(f"{NAME}: sha256 of {wheel.name} is {digest}, expected {WHEEL_SHA256}: not used")
    with zipfile.ZipFile(wheel) as archive:
        return archive.read(MEMBER)
