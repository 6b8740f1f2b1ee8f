"""Reading ids in Triton kernels: clamped to their table, and reported where they are outside."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def table_row(ids, at, keep, rows, reports, ARGUMENT: tl.constexpr):  # type: ignore[no-untyped-def]
    """int64 rows of a table for ids at places `at`, 0 at pads. ARGUMENT, STEP: see `reports`.

    Clamped before anything narrows them: a hashed id of 64 bits would else pass for some row.
    """
    row = tl.load(ids + at, mask=keep, other=0).to(tl.int64)
    bad = keep & ((row < 0) | (row >= rows))
    tl.store(reports + at * 0, at.to(tl.int64) * 8 + ARGUMENT, mask=bad)  # of several one is seen, whole
    return tl.minimum(tl.maximum(row, 0), rows - 1)


@triton.jit
def table_row_again(ids, at, keep, rows):  # type: ignore[no-untyped-def]
    """The same rows in a backward, whose forward has reported."""
    row = tl.load(ids + at, mask=keep, other=0).to(tl.int64)
    return tl.minimum(tl.maximum(row, 0), rows - 1)
