"""Which data to use: the first source that is there, said aloud."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from mixpol_models.data import kuairand, movielens, synthetic
from mixpol_models.data.cache import cache_dir
from mixpol_models.data.log import InteractionLog

KUAIRAND_CACHE = "kuairand-pure"
NAMES = (KUAIRAND_CACHE, "ml-100k", "synthetic")


def resolve(data: str | os.PathLike[str] | None = None, *, say: Callable[[str], None] = print) -> InteractionLog:
    """The log to use: `data` or MIXPOL_DATA, else the cache, MovieLens-100K by pip, a synthetic log.

    KuaiRand-Pure is never downloaded here; `mixpol data get kuairand-pure` does that.

    Args:
        data: a folder with KuaiRand-Pure (see `load_kuairand`), or one of `NAMES` for exactly that source.
            None or "" reads MIXPOL_DATA, which counts as unset when empty.
        say: gets one line for every source tried.

    Raises:
        ValueError: `data` or MIXPOL_DATA is given but holds no readable data.
        SourceUnavailable: `data` names a source that cannot be had.
    """
    wish, origin = (os.fspath(data), "--data") if data else (os.environ.get("MIXPOL_DATA", ""), "MIXPOL_DATA")
    if wish:
        return _wished(wish, origin, say)

    cached = cache_dir() / KUAIRAND_CACHE
    if kuairand.find_kuairand(cached):
        return _from_cache(cached, "--data and MIXPOL_DATA are not set; found in the cache", say)
    try:
        return _ml100k("--data and MIXPOL_DATA are not set, no KuaiRand-Pure in the cache", say)
    except movielens.SourceUnavailable as error:
        say(f"data: {error}")
        return _said(synthetic.synthetic_log(), "no other source is there", say)


def _wished(wish: str, origin: str, say: Callable[[str], None]) -> InteractionLog:
    reason = f"from {origin}={wish}"
    if wish == "ml-100k":
        return _ml100k(reason, say)
    if wish == "synthetic":
        return _said(synthetic.synthetic_log(), reason, say)
    if wish == KUAIRAND_CACHE:
        cached = cache_dir() / KUAIRAND_CACHE
        if not kuairand.find_kuairand(cached):
            raise movielens.SourceUnavailable(
                f"{origin} is {wish!r}, expected it in the cache {cached}: run `mixpol data get {wish}`"
            )
        return _from_cache(cached, reason, say)
    try:
        return _said(kuairand.load_kuairand(Path(wish).expanduser()), reason, say)
    except ValueError as error:
        raise ValueError(f"{origin} is {wish!r}, expected a folder with data or one of {NAMES}. {error}") from error


def _from_cache(cached: Path, reason: str, say: Callable[[str], None]) -> InteractionLog:
    try:
        return _said(kuairand.load_kuairand(cached), reason, say)
    except ValueError as error:
        raise ValueError(f"{error}. Run `mixpol data get {KUAIRAND_CACHE} --force`, or delete {cached}") from error


def _ml100k(reason: str, say: Callable[[str], None]) -> InteractionLog:
    if not movielens.is_cached():
        say(f"data: fetching {movielens.NAME} (2 MB) with pip, once")
    return _said(movielens.load_ml100k(), reason, say)


def _said(log: InteractionLog, reason: str, say: Callable[[str], None]) -> InteractionLog:
    say(f"data: {log.describe()} ({reason})")
    return log
