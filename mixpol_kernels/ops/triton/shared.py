"""Parts of Triton kernels: layouts, masked loads, sums without atomics.

LAYOUT: 0 jagged (offsets), 1 lengths, 2 mask, 3 full.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def extent(offsets, lengths, user, length, LAYOUT: tl.constexpr):
    """Of one user: the first row in token order, how many positions may be kept, and how many there are.

    Values outside the history are clamped to it, since a kernel cannot raise: nothing out of bounds is read.
    """
    if LAYOUT == 0:
        first = tl.minimum(tl.maximum(tl.load(offsets + user), 0), length)
        kept = tl.minimum(tl.maximum(tl.load(offsets + user + 1), first), length) - first
        positions = kept
    else:
        first = user * length
        positions = length
        kept = length
        if LAYOUT == 1:
            kept = tl.minimum(tl.maximum(tl.load(lengths + user), 0), length)
    return first, kept, positions


@triton.jit
def kept_tokens(mask, first, l, kept, LAYOUT: tl.constexpr):
    keep = l < kept
    if LAYOUT == 2:
        keep = keep & (tl.load(mask + first + l, mask=keep, other=0) != 0)
    return keep


@triton.jit
def vector(pointer, at, COUNT: tl.constexpr):
    return tl.load(pointer + at, mask=at < COUNT, other=0.0).to(tl.float32)


@triton.jit
def add_to(at, value, inside):
    tl.store(at, tl.load(at, mask=inside, other=0.0) + value, mask=inside)


@triton.jit
def sum_slabs(slabs, sums, rows, columns, stride, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """sums[c] = Σ_r slabs[r, c], in one order whatever the machine."""
    c = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    r = tl.arange(0, ROWS)
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for r0 in range(0, rows, ROWS):
        at = slabs + (r0 + r).to(tl.int64)[:, None] * stride + c[None, :]
        total += tl.load(at, mask=(r0 + r < rows)[:, None] & (c < columns)[None, :], other=0.0)
    tl.store(sums + c, tl.sum(total, 0), mask=c < columns)
