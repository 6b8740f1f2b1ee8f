"""The user's cache folder, and what the environment says about data."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs

from mixpol_models.choices import DATA_NAMES, KUAIRAND_PURE


def cache_dir() -> Path:
    """MIXPOL_CACHE if set and not empty, else the platform's place for caches. It need not exist yet."""
    chosen = os.environ.get("MIXPOL_CACHE")
    return Path(chosen).expanduser() if chosen else Path(platformdirs.user_cache_dir("mixpol"))


def kuairand_cache() -> Path:
    """Where `mixpol data get` puts KuaiRand-Pure."""
    return cache_dir() / KUAIRAND_PURE


def asked_data(data: str | os.PathLike[str] | None) -> tuple[str, str]:
    """The data that a run is asked to use ("" for none), and by what: `data`, else MIXPOL_DATA."""
    return (os.fspath(data), "--data") if data else (os.environ.get("MIXPOL_DATA", ""), "MIXPOL_DATA")


def unknown_data(wish: str, origin: str, error: ValueError) -> ValueError:
    """The error for data that no source reads; `error` says what was looked for."""
    return ValueError(f"{origin} is {wish!r}, expected a folder with data or one of {DATA_NAMES}. {error}")
