"""Writing of results: whole files or none, to places that are checked before the work starts."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file beside `path` to write, which takes its place when the context ends without an error.

    So `path` is there whole, or as it was: also on a full disk, after a kill, and after a loss of power.

    Args:
        path: its folder is made if it is not there. The file in progress keeps the ending.

    Example:
        >>> with replacing(folder / "picture.png") as fresh:
        ...     figure.savefig(fresh)
    """
    path = Path(os.path.realpath(path))  # a link stays a link
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix)
    os.close(handle)
    fresh = Path(name)
    try:
        yield fresh
        with fresh.open("rb+") as file:
            os.fsync(file.fileno())
        fresh.chmod(_mode(path))
        os.replace(fresh, path)
        _sync_folder(path.parent)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise


def write_atomically(path: Path, content: bytes | str) -> None:
    """Writes a file that others see whole or not at all; see `replacing`. Text is UTF-8."""
    with replacing(path) as fresh:
        fresh.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)


def check_output_folder(path: str | Path, name: str = "output") -> None:
    """Whether a folder can be made or written to. Makes nothing.

    Args:
        path: the folder, which need not be there.
        name: of the argument, for the message.

    Raises:
        ValueError: something on the way is a file, or cannot be written to.
    """
    path = Path(path)
    for place in (path, *path.parents):
        if os.path.lexists(place):
            break
    if not place.is_dir():
        what = "a link to nothing" if place.is_symlink() and not place.exists() else "a file"
        raise ValueError(f"{name} was {str(path)!r} and {place} is {what}; expected a folder: give another path")
    _check_writable(place, path, name)


def check_output_file(path: str | Path, name: str = "output") -> None:
    """Whether a file can be written. Makes nothing.

    Args:
        path: the file, which is replaced if it is there; its folder need not be there.
        name: of the argument, for the message.

    Raises:
        ValueError: it is a folder, or its own folder can neither be made nor written to.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{name} was {str(path)!r}, which is a folder; expected a file: add a name")
    check_output_folder(path.parent, name)


def check_free(folder: str | Path, files: Sequence[str], ways: str, name: str = "output") -> None:
    """Refuses a folder that holds earlier results, which would be overwritten.

    Args:
        folder: where the results go.
        files: names by which results are known.
        ways: what to do instead, for the message.
        name: of the argument, for the message.

    Raises:
        ValueError: one of the files is there.
    """
    there = [file for file in files if os.path.lexists(Path(folder) / file)]
    if there:
        raise ValueError(
            f"{name} was {str(folder)!r}, which holds earlier results ({', '.join(there)}); expected a new or empty "
            f"folder: {ways}"
        )


def results_folder(asked: str | Path | None, default: str | Path, files: Sequence[str], force: bool = False) -> Path:
    """The folder of a command whose results are replaced by nothing but `force`. Makes nothing.

    Args:
        asked: the `--output` given, if one was.
        default: else this one, or the first of default-2, default-3, ... that is free.
        files: names by which earlier results are known.
        force: write over them.

    Raises:
        ValueError: `asked` cannot be a folder or holds earlier results, or `force` is given without it.
    """
    if asked is None:
        if force:
            raise ValueError("force was given without output; expected both: a default folder is always a new one")
        check_output_folder(default)
        return first_free(Path(default))
    check_output_folder(asked)
    if not force:
        check_free(asked, files, "replace them with --force, or give another folder")
    return Path(asked)


def first_free(folder: Path) -> Path:
    """`folder`, or folder-2, folder-3, ...: the first that is not there or is empty."""
    for number in count(1):
        place = folder if number == 1 else folder.with_name(f"{folder.name}-{number}")
        if not os.path.lexists(place) or (place.is_dir() and not any(place.iterdir())):
            return place
    raise AssertionError("unreachable")


def claim(folder: Path) -> Path:
    """Makes a folder of `first_free` that no other process gets at the same time."""
    while True:
        place = first_free(folder)
        with suppress(FileExistsError):
            if place.is_dir():
                place.rmdir()  # empty; whoever makes it anew has it
            place.mkdir(parents=True)
            return place


def _check_writable(folder: Path, path: Path, name: str) -> None:
    try:
        # Asked by doing: permission bits do not tell of file systems that are mounted to be read.
        handle, probe = tempfile.mkstemp(dir=folder, prefix=".mixpol-")
    except OSError as error:
        raise ValueError(
            f"{name} was {str(path)!r} and {folder} cannot be written to ({error.strerror}): give another path"
        ) from None
    os.close(handle)
    os.unlink(probe)


def _mode(path: Path) -> int:
    """Permissions of a file that is replaced, else those that a new file gets."""
    if path.exists():
        return path.stat().st_mode & 0o777
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


def _sync_folder(folder: Path) -> None:
    with suppress(OSError):  # some file systems refuse it
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
