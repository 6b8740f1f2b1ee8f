"""One writer a folder, and temporary folders that a killed process does not leave for ever."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

_MARK = ".lock"
# Not `_MARK`: a run may lock its temporary folder as any other.
_IN_USE = ".mixpol-in-use"


@contextlib.contextmanager
def locked(folder: Path, writer: str) -> Iterator[None]:
    """Keeps a second writer off a folder, whose files the first would overwrite. The lock ends with the process.

    Args:
        folder: made if it is not there; gets a file ".lock".
        writer: the command that writes, for the message.

    Raises:
        RuntimeError: another process, or another call in this one, holds it.
        OSError: the folder cannot be written, or its ".lock" is no plain file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    busy = f"{folder} is being written by another `{writer}`: wait for it, or take another --output"
    with _held(folder / _MARK, busy):
        yield


@contextlib.contextmanager
def building(target: Path, writer: str) -> Iterator[Path]:
    """An empty folder beside `target`, for what becomes it. No other process builds the same target meanwhile.

    The folder is removed at the end; what a killed process left is removed by the next call for the same target.

    Args:
        target: need not be there; its folder is made.
        writer: the command that writes, for the message.

    Raises:
        RuntimeError: another process, or another call in this one, builds it.
        OSError: the folder of `target` cannot be written.
    """
    parent = target.parent
    part, mark = parent / f".{target.name}.mixpol-part", parent / f".{target.name}.mixpol-lock"
    busy = f"{target} is being written by another `{writer}`: wait for it, or take another folder"
    try:
        parent.mkdir(parents=True, exist_ok=True)
        lock = contextlib.ExitStack()
        lock.enter_context(_held(mark, busy))
    except OSError as error:
        raise OSError(f"{target} cannot be made ({error}): take a folder that can be written") from error
    with lock:
        try:
            _remove(part)
            part.mkdir()
            yield part
        finally:
            _remove(part)
            # Before the lock ends: whoever has opened the file meanwhile sees that it is gone.
            mark.unlink(missing_ok=True)


def put_in_place(fresh: Path, target: Path, old: Path) -> None:
    """Renames a folder to `target`, and what was there to `old`. All three are on one file system."""
    replaced = target.exists()
    if replaced:
        target.rename(old)
    try:
        fresh.rename(target)
    except BaseException:
        if replaced:
            old.rename(target)
        raise


def target_of(folder: Path) -> Path:
    """The folder itself, links followed.

    Raises:
        OSError: no folder can be put in its place.
    """
    if folder.is_symlink() and not folder.exists():
        raise OSError(f"{folder} is a link to nothing ({os.readlink(folder)}): delete it, or make what it names")
    target = folder.resolve()
    here = Path.cwd()
    if target == here or target in here.parents:
        raise OSError(f"{folder} is the working folder or holds it, expected one of its own: give it a name, as store")
    if target.is_mount():
        raise OSError(f"{folder} is where a file system is mounted, which cannot be replaced: take a folder in it")
    return target


@contextlib.contextmanager
def temporary_folder(prefix: str) -> Iterator[Path]:
    """A folder among the system's temporary files, removed at the end.

    What killed processes of this user left under the same prefix is removed first.
    """
    import fcntl

    for left in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        _remove_if_left(left)
    folder = Path(tempfile.mkdtemp(prefix=prefix))
    fresh = folder / f"{_IN_USE}.new"
    with fresh.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        # Named when it is held, so that no other process takes the folder for one that was left.
        fresh.rename(folder / _IN_USE)
        try:
            yield folder
        finally:
            _remove(folder)


def _remove_if_left(folder: Path) -> None:
    """Removes a temporary folder whose lock no process holds."""
    # Others may remove it at the same time, and those of other users are none of ours.
    with contextlib.suppress(OSError, RuntimeError):
        if folder.is_symlink() or folder.stat().st_uid != os.getuid():
            return
        with _held(folder / _IN_USE, "in use", make=False):
            shutil.rmtree(folder)


@contextlib.contextmanager
def _held(file: Path, busy: str, *, make: bool = True) -> Iterator[None]:
    """Holds the lock on a file, whose content stays as it is; RuntimeError `busy` if another has it."""
    import fcntl

    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | (os.O_CREAT if make else 0)
    while True:
        if file.is_symlink():
            raise OSError(f"{file} is a link, expected a plain file: delete it")
        handle = os.open(file, flags, 0o666)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RuntimeError(busy) from None
            # Its holder may have deleted the file between our opening and locking it.
            if not _is_at(handle, file):
                continue
            yield
            return
        finally:
            os.close(handle)


def _is_at(handle: int, file: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.stat(file, follow_symlinks=False))
    except FileNotFoundError:
        return False


def _remove(folder: Path) -> None:
    if folder.is_symlink() or folder.is_file():
        folder.unlink()
    elif folder.exists():
        shutil.rmtree(folder)
