"""Wrong values that kernels met, ids outside their tables say: an error at the next call, without a wait.

A kernel cannot raise. It clamps such an id, so that nothing out of bounds is read, and writes the id's place to one
word of pinned host memory, which the host looks at before each launch that reads ids. In a CUDA graph a replay writes
the same word, and the next call outside of it, or `check_device_errors`, raises. Imports no triton.
"""

from __future__ import annotations

import ctypes
import functools

import torch
from torch import Tensor

from mixpol_kernels.library import INTERPRETING

_ID = "an id outside its table, whose first or last row was read in its place"
_TIME = "a time that is NaN or below the one before it, of the same user"
_OFFSET = "an offset that falls, or a first or last one that is not 0 or the number of times"
# As kernels number them, from 1: arguments, and what is reported of them.
ARGUMENTS = {
    "item_ids": _ID,
    "polarity": _ID,
    "extra_ids": _ID,
    "positive_times": _TIME,
    "negative_times": _TIME,
    "positive_offsets": _OFFSET,
    "negative_offsets": _OFFSET,
}
STEP = 8  # a report is STEP times the place in the flattened argument, plus the argument's number


@functools.cache
def word() -> Tensor:
    """[1] int64: the last report of any device, 0 for none. Kernels write to it as to memory of their own."""
    return torch.zeros(1, dtype=torch.int64, pin_memory=not INTERPRETING)


@functools.cache
def _cell() -> ctypes.c_int64:
    """The same memory; to read it costs no call of torch."""
    return ctypes.c_int64.from_address(word().data_ptr())


def raise_reported() -> None:
    """Raises what kernels have reported up to now, once.

    Raises:
        RuntimeError: a value was wrong; see ARGUMENTS.
    """
    cell = _cell()
    if report := cell.value:
        cell.value = 0
        place, number = divmod(report, STEP)
        name = list(ARGUMENTS)[number - 1]
        raise RuntimeError(
            f"{name} of an earlier call had {ARGUMENTS[name]}, at position {place} of the flattened tensor; results "
            "since then are wrong. Kernels on a GPU cannot raise: check values before the call"
        )


def check_device_errors() -> None:
    """Waits for the GPU, then raises if a Triton kernel met a wrong value since the last such error.

    That is an id outside its table, in place of which the first or the last row is read, or times and offsets of
    `interleave` that are out of order. Without this call the error comes with a later call of an op that reads ids or
    times. To be called where a program waits anyway, at the end of an epoch say, or after replays of a CUDA graph. The
    CUDA C++ kernels need none: they end the program.

    Raises:
        RuntimeError: a value was wrong; the message names the argument and the position.

    Example:
        >>> import mixpol_kernels as mk
        >>> mk.check_device_errors()
    """
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()
    if word.cache_info().currsize:
        raise_reported()
