"""The log of a run: the data asked for, recognised by its files, or else the first source that is there."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mixpol_models.choices import KUAIRAND_PURE, ML_100K, SYNTHETIC
from mixpol_models.data import described, kuairand, kuairec, kuaivideo, movielens, ratings, store, synthetic, tencentgr
from mixpol_models.data.cache import asked_data, kuairand_cache, unknown_data
from mixpol_models.data.log import InteractionLog
from mixpol_models.data.scan import LogScan


@dataclass(frozen=True)
class Source:
    """A data set on disk.

    Attributes:
        find: what it takes for the source in a folder, if anything.
        scan: describes the log in a folder.
        files: what `find` looks for, in words.
    """

    find: Callable[[Path], Any]
    scan: Callable[..., LogScan]
    files: str


def _ratings(release: ratings.Release) -> Source:
    return Source(
        lambda folder: ratings.find_ratings(folder, release),
        lambda folder, **options: ratings.scan_ratings(folder, release, **options),
        " or ".join(ratings.FILES[release]),
    )


# In this order they are looked for; the keys are what may stand before the colon of NAME:PATH.
SOURCES = {
    "kuairand": Source(
        kuairand.find_kuairand,
        kuairand.scan_kuairand,
        f"{kuairand.EARLY}_*.csv with its sequel, or {kuairand.PARQUET[0]}",
    ),
    "kuairec": Source(kuairec.find_kuairec, kuairec.scan_kuairec, kuairec.LOOKED_FOR),
    "tencentgr": Source(tencentgr.find_tencentgr, tencentgr.scan_tencentgr, tencentgr.LOOKED_FOR),
    "kuaivideo": Source(kuaivideo.find_kuaivideo, kuaivideo.scan_kuaivideo, kuaivideo.LOOKED_FOR),
    "ml-1m": _ratings("ml-1m"),
    "ml-20m": _ratings("ml-20m"),
}


def resolve(data: str | os.PathLike[str] | None = None, *, say: Callable[[str], None] = print) -> InteractionLog:
    """The log to use: `data` or MIXPOL_DATA, else the cache, MovieLens-100K by pip, a synthetic log.

    Nothing but MovieLens-100K is downloaded here; `mixpol data get kuairand-pure` fetches KuaiRand-Pure.

    Args:
        data: a folder with one of `SOURCES` (the first of them that is there) or a store (see `store`), NAME:FOLDER for
            exactly that source, a YAML file that describes a log (see `described`), or one of "kuairand-pure",
            "ml-100k" and "synthetic". None or "" reads MIXPOL_DATA, which counts as unset when empty.
        say: gets one line for every source tried, and one on other data in the folder.

    Raises:
        ValueError: `data` or MIXPOL_DATA is given but holds no readable data.
        SourceUnavailable: `data` names a source that cannot be had.
    """
    wish, origin = asked_data(data)
    if wish:
        return _wished(wish, origin, say)
    cached = kuairand_cache()
    if kuairand.find_kuairand(cached):
        return _from_cache(cached, "--data and MIXPOL_DATA are not set; found in the cache", say)
    try:
        return _ml100k("--data and MIXPOL_DATA are not set, no KuaiRand-Pure in the cache", say)
    except movielens.SourceUnavailable as error:
        say(f"data: {error}")
        return _said(synthetic.synthetic_log(), "no other source is there", say)


def recognise(data: str | os.PathLike[str], *, say: Callable[[str], None] = print, **options: Any) -> LogScan:
    """The log at a place on disk, not read yet.

    Args:
        data: a folder, NAME:FOLDER or a YAML file, as in `resolve`.
        say: gets a line if a folder holds several sources.
        options: of the source's scan function, such as `polarity` and `split`; none for a YAML file.

    Raises:
        ValueError: nothing known is there; the message lists what was looked for.
    """
    wish = os.fspath(data)
    name, colon, rest = wish.partition(":")
    if colon and name in SOURCES:
        return SOURCES[name].scan(Path(rest).expanduser(), **options)
    place = Path(wish).expanduser()
    if place.suffix in described.SUFFIXES:
        if options:
            raise ValueError(f"{sorted(options)} given with {wish}, expected none: say it in the file")
        return described.scan_described(place)
    there = [name for name, source in SOURCES.items() if source.find(place)]
    if not there:
        looked = "; ".join(f"{name}: {source.files}" for name, source in SOURCES.items())
        raise ValueError(
            f"In {str(place)!r} and its usual sub-folders there is none of: {looked}. Mend the path, name the source "
            "as in kuairec:FOLDER, give a YAML file that describes the log, or run `mixpol data get kuairand-pure` and "
            "leave it out"
        )
    if len(there) > 1:
        say(f"data: {place} holds {there[0]}, and {', '.join(there[1:])}: take those with e.g. {there[1]}:{place}")
    return SOURCES[there[0]].scan(place, **options)


def _wished(wish: str, origin: str, say: Callable[[str], None]) -> InteractionLog:
    reason = f"from {origin}={wish}"
    if wish == ML_100K:
        return _ml100k(reason, say)
    if wish == SYNTHETIC:
        return _said(synthetic.synthetic_log(), reason, say)
    if wish == KUAIRAND_PURE:
        cached = kuairand_cache()
        if not kuairand.find_kuairand(cached):
            raise movielens.SourceUnavailable(
                f"{origin} is {wish!r}, expected it in the cache {cached}: run `mixpol data get {wish}`"
            )
        return _from_cache(cached, reason, say)
    try:
        if store.is_store(Path(wish).expanduser()):
            return _said(store.open_store(Path(wish).expanduser()), reason, say)
        scan = recognise(wish, say=say)
        if scan.columns:
            say(f"data: columns of {wish}: {scan.columns}")
        return _said(scan.load(), reason, say)
    except ValueError as error:
        raise unknown_data(wish, origin, error) from error


def _from_cache(cached: Path, reason: str, say: Callable[[str], None]) -> InteractionLog:
    try:
        return _said(kuairand.load_kuairand(cached), reason, say)
    except ValueError as error:
        raise ValueError(f"{error}. Run `mixpol data get {KUAIRAND_PURE} --force`, or delete {cached}") from error


def _ml100k(reason: str, say: Callable[[str], None]) -> InteractionLog:
    if not movielens.is_cached():
        say(f"data: fetching {movielens.NAME} (2 MB) with pip, once")
    return _said(movielens.load_ml100k(), reason, say)


def _said(log: InteractionLog, reason: str, say: Callable[[str], None]) -> InteractionLog:
    say(f"data: {log.describe()} ({reason})")
    return log
