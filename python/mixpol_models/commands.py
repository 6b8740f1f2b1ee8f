"""Helpers of the commands: expected errors as messages, and their console."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from mixpol_models import stopping

if TYPE_CHECKING:
    from rich.console import Console

INSTALL = "pip install 'mixpol-kernels[models]'"
_OPTIONAL = {
    "typer", "rich", "lightning", "torchmetrics", "polars", "matplotlib", "yaml", "pydantic", "httpx", "platformdirs"
}  # fmt: skip


@contextmanager
def plainly() -> Iterator[None]:
    """Turns expected errors into one message and an exit status."""
    import typer
    from rich.console import Console

    def stop(message: str, status: int) -> None:
        stopping.check()  # a library may have made an error of a signal
        Console(stderr=True).print(message, style="bold red", highlight=False, markup=False, soft_wrap=True)
        raise typer.Exit(status)

    try:
        yield
    except typer.Exit:  # a RuntimeError too
        raise
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _OPTIONAL:
            raise
        stop(f"mixpol needs packages that are not installed (first: {error.name}): {INSTALL}", 1)
    except OSError as error:
        stop(f"{error}{f'. {stopping.kept()}' if stopping.kept() else ''}", 1)
    except (ValueError, RuntimeError) as error:
        if not _is_ours(error):
            raise
        stop(str(error), 2 if isinstance(error, ValueError) else 1)


def wide_console(width: int = 110) -> Console:
    """A console of the terminal's width; of `width` in a pipe, which has none and would get 80 columns."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else width)


def _is_ours(error: BaseException) -> bool:
    """Whether this project's code raised it, for the user to read; of other errors the traceback says more."""
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    name = "" if place is None else place.tb_frame.f_globals.get("__name__", "")
    return name.partition(".")[0] in ("mixpol_models", "mixpol_kernels")
