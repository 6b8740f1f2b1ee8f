"""The user's cache folder."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs


def cache_dir() -> Path:
    """MIXPOL_CACHE if set and not empty, else the platform's place for caches. It need not exist yet."""
    chosen = os.environ.get("MIXPOL_CACHE")
    return Path(chosen).expanduser() if chosen else Path(platformdirs.user_cache_dir("mixpol"))
