"""One writer a folder."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def locked(folder: Path, writer: str) -> Iterator[None]:
    """Keeps a second writer off a folder, whose files the first would overwrite. The lock ends with the process.

    Args:
        folder: made if it is not there; gets a file ".lock".
        writer: the command that writes, for the message.

    Raises:
        RuntimeError: another process, or another call in this one, holds it.
    """
    import fcntl

    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise RuntimeError(
                f"{folder} is being written by another `{writer}`: wait for it, or take another --output"
            ) from None
        yield
