"""Ctrl-C, SIGTERM and SIGHUP: one way to end for every command, and one line on how to go on.

Light imports only: `mixpol` reads this before anything else.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else []))
_PATIENCE = 15.0


class Stopped(BaseException):
    """A signal asked this process to end. Not a KeyboardInterrupt, which libraries turn into statuses of their own.

    Args:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number

    @property
    def status(self) -> int:
        """Exit status, as shells count it: 130 after Ctrl-C, 143 after SIGTERM."""
        return 128 + self.number


class _Watch:
    """Signals that this process received, and its last words."""

    process = 0
    number = 0
    since = 0.0
    kept = ""
    command = ""


def watch() -> None:
    """Turns the signals into `Stopped` in the main thread, once; the first one counts, later ones change nothing.

    One that was ignored before, as under nohup, stays ignored.
    """
    if _Watch.process == os.getpid():
        return
    _Watch.process = os.getpid()
    for number in _SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _stop)


def _stop(number: int, frame: FrameType | None) -> None:
    if os.getpid() != _Watch.process:  # a fork, such as a worker of a data loader
        if number == signal.SIGINT:  # went to the whole group of processes; the parent decides what it means
            return
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
        return
    # While the first one is cleaned up after, a second one would leave things half done; much later it means that the
    # first one was lost in code that catches everything.
    if _Watch.number and time.monotonic() - _Watch.since < _PATIENCE:
        return
    _Watch.number, _Watch.since = number, time.monotonic()
    raise Stopped(number)


def check() -> None:
    """Raises `Stopped` again if a library has swallowed it. For loops over long steps.

    Raises:
        Stopped: a signal came.
    """
    if _Watch.number and _Watch.process == os.getpid():
        raise Stopped(_Watch.number)


def note(kept: str, command: str | None = None) -> None:
    """Text of `last_words` if this process has to end from here on.

    Args:
        kept: what is on disk, as a clause: "results/ has 3 of 12 runs".
        command: goes on from there; None is the command that runs.
    """
    _Watch.kept, _Watch.command = kept, command or ""


def kept() -> str:
    """The note, with the command that goes on; empty without one."""
    return f"{_Watch.kept}; go on with: {_Watch.command or this_command()}" if _Watch.kept else ""


def this_command() -> str:
    """The command line that runs, for a shell."""
    program = [os.path.basename(sys.argv[0])]
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if program == ["__main__.py"] and spec is not None:
        program = ["python", "-m", spec.parent]
    return shlex.join([*program, *sys.argv[1:]])


def shell(*arguments: object) -> str:
    """A `mixpol` command line, quoted for a shell."""
    return shlex.join(["mixpol", *map(str, arguments)])


def last_words(stopped: Stopped) -> str:
    """The line that a stopped command ends with."""
    name = "Ctrl-C" if stopped.number == signal.SIGINT else signal.Signals(stopped.number).name
    return f"Stopped by {name}: {kept() or f'nothing is kept; start again with: {this_command()}'}"


@contextmanager
def in_words() -> Iterator[None]:
    """Ends the process with `last_words` and the signal's status if a signal stops what is inside.

    Raises:
        SystemExit: a signal came.
    """
    watch()
    try:
        try:
            yield
        finally:
            check()
    except Stopped as stopped:
        for number in _SIGNALS:  # nothing is left to clean up, and the status is decided
            signal.signal(number, signal.SIG_IGN)
        _Watch.number = 0
        with suppress(OSError, ValueError):  # the terminal may be gone
            print(last_words(stopped), file=sys.stderr, flush=True)
        sys.exit(stopped.status)


def end_with_parent() -> None:
    """In a process of `multiprocessing`: ends it as soon as its parent is gone, however that ended. Starts a thread."""
    from multiprocessing import parent_process

    parent = parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True, name="end-with-parent").start()
