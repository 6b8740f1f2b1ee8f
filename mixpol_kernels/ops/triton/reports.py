"""Ids outside their tables that kernels met: an error at the next call, without a wait; imports no triton.

A kernel cannot raise. It clamps such an id, so that nothing out of bounds is read, and writes the id's place to one
word of pinned host memory, which the host looks at before each launch that reads ids. In a CUDA graph a replay writes
the same word, and the next call outside of it, or `check_device_errors`, raises.
"""

from __future__ import annotations

import ctypes
import functools

import torch
from torch import Tensor

from mixpol_kernels.library import INTERPRETING

ARGUMENTS = ("item_ids", "polarity", "extra_ids")  # as kernels number them, from 1
STEP = 8  # a report is STEP times the id's place in the flattened ids, plus the argument's number


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
        RuntimeError: an id was outside its table.
    """
    cell = _cell()
    if report := cell.value:
        cell.value = 0
        place, number = divmod(report, STEP)
        raise RuntimeError(
            f"{ARGUMENTS[number - 1]} of an earlier call had an id outside its table at position {place} of its "
            "flattened ids; the row next to it was read in its place, so that results since then are wrong: check ids "
            "against the number of rows before the call"
        )


def check_device_errors() -> None:
    """Waits for the GPU, then raises if a Triton kernel met an id outside its table since the last such error.

    The kernels read the first or the last row in place of such an id and go on: without this call the error comes
    with a later call of an op that reads ids. To be called where a program waits anyway, at the end of an epoch say,
    or after replays of a CUDA graph. The CUDA C++ kernels need none: they end the program.

    Raises:
        RuntimeError: an id was outside its table.

    Example:
        >>> import mixpol_kernels as mk
        >>> mk.check_device_errors()
    """
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()
    if word.cache_info().currsize:
        raise_reported()
