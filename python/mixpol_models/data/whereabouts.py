"""Which data a run would use, without reading them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from mixpol_models.choices import DATA_NAMES, KUAIRAND_PURE, ML_100K, SYNTHETIC
from mixpol_models.data.cache import asked_data, cache_dir, kuairand_cache, unknown_data


def whereabouts(data: str | os.PathLike[str] | None = None) -> str:
    """Says where `sources.resolve` would find its log, in a line.

    Args:
        data: as in `sources.resolve`.

    Raises:
        ValueError: `data` or MIXPOL_DATA is given, and nothing known is there.
    """
    wish, origin = asked_data(data)
    cached = kuairand_cache()
    if not wish:
        reason = "--data and MIXPOL_DATA are not set"
        if cached.is_dir() and _sources().kuairand.find_kuairand(cached):
            return f"kuairand-pure in {cached} ({reason}; found in the cache)"
        return f"ml-100k, {_ml100k()}, else synthetic ({reason}, no KuaiRand-Pure in the cache)"
    if wish == SYNTHETIC:
        return f"synthetic, drawn when it is used (from {origin})"
    if wish == ML_100K:
        return f"ml-100k, {_ml100k()} (from {origin})"
    if wish == KUAIRAND_PURE:
        if not cached.is_dir() or not _sources().kuairand.find_kuairand(cached):
            raise ValueError(f"{origin} is {wish!r}, expected it in the cache {cached}: run `mixpol data get {wish}`")
        return f"kuairand-pure in {cached} (from {origin})"
    return f"{_on_disk(wish, origin)} (from {origin})"


def _on_disk(wish: str, origin: str) -> str:
    name, colon, rest = wish.partition(":")
    if not any(place.exists() for place in _places(wish)):
        raise ValueError(
            f"{origin} is {wish!r}, where there is nothing; expected a folder with data or one of {DATA_NAMES}"
        )
    sources = _sources()
    if colon and name in sources.SOURCES:
        place = Path(rest).expanduser()
        if not sources.SOURCES[name].find(place):
            raise ValueError(f"{origin} is {wish!r}, expected in that folder: {sources.SOURCES[name].files}")
        return f"{name} in {place}"
    place = Path(wish).expanduser()
    if sources.store.is_store(place):
        return f"the store {place}"
    try:
        if place.suffix in sources.described.SUFFIXES:  # its rows decide types: not read here
            return f"{sources.described.find_described(place)[0].name} in {place}"
        scan = sources.recognise(place, say=lambda line: None)
    except ValueError as error:
        raise unknown_data(wish, origin, error) from error
    return f"{scan.name} in {place}"


def _places(wish: str) -> list[Path]:
    """Paths that `data` may mean: itself, or that of NAME:PATH."""
    return [Path(text).expanduser() for text in (wish, wish.partition(":")[2]) if text]


def _ml100k() -> str:
    there = (cache_dir() / "ml-100k" / "ml-100k.inter").is_file()
    return "in the cache" if there else "which pip would fetch once (2 MB)"


def _sources() -> Any:
    # Late: it imports polars.
    from mixpol_models.data import sources

    return sources
