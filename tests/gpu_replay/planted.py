"""Triton kernels that are well made, each with a fault that can be planted."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import triton
import triton.language as tl

if TYPE_CHECKING:
    from gpu_replay.capture import Launch


def launched(kernel: Any, blocks: int, *arguments: Any, **options: Any) -> Launch:
    """Captures one launch of a kernel, as of a shipped configuration."""
    from gpu_replay.capture import launches

    with launches() as found:
        kernel[(blocks,)](*arguments, **options)
    (only,) = found
    return dataclasses.replace(only, configuration="planted")


@triton.jit
def product_kernel(x, weight, out, rows, D: tl.constexpr, TILE: tl.constexpr, CONFLICTS: tl.constexpr):
    """Products of scalars. CONFLICTS: the weight lies transposed in shared memory, as it does in global memory."""
    d = tl.arange(0, D)
    w = tl.load(weight + d[:, None] + d[None, :] * D) if CONFLICTS else tl.load(weight + d[:, None] * D + d[None, :])
    total = tl.zeros([TILE, D], tl.float32)
    for first in range(0, rows, TILE):
        at = first + tl.arange(0, TILE)
        total += tl.dot(tl.load(x + at[:, None] * D + d[None, :]), w, input_precision="ieee")
    tl.store(out + tl.arange(0, TILE)[:, None] * D + d[None, :], total)


@triton.jit
def pipeline_kernel(x, weight, out, rows, D: tl.constexpr, TILE: tl.constexpr, LOST: tl.constexpr):
    """Products of bfloat16 with loads ahead of their use. LOST: a barrier in the loop, across which none moves."""
    d = tl.arange(0, D)
    w = tl.load(weight + d[:, None] * D + d[None, :])
    total = tl.zeros([TILE, D], tl.float32)
    for first in range(0, rows, TILE):
        at = first + tl.arange(0, TILE)
        total += tl.dot(tl.load(x + at[:, None] * D + d[None, :]), w)
        if LOST:
            tl.debug_barrier()
    tl.store(out + tl.arange(0, TILE)[:, None] * D + d[None, :], total)


@triton.jit
def scatter_kernel(out, first, ends, columns, stride, COUNT: tl.constexpr):
    """Rows and columns by division, in a loop as long as an offset says."""
    p = tl.program_id(0)
    begin = tl.load(ends + p)
    end = tl.load(ends + p + 1)
    for l in range(begin, end, COUNT):
        at = l + tl.arange(0, COUNT)
        row, column = (at + first) // columns, (at + first) % columns
        tl.store(out + row.to(tl.int64) * stride + column, 1.0, mask=at < end)


@triton.jit
def granules_kernel(x, users, out, tiles, D: tl.constexpr, TILE: tl.constexpr):
    """A persistent block that takes tiles in turn; each row's user is loaded, and says where the row goes."""
    d = tl.arange(0, D)
    for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        at = tile * TILE + tl.arange(0, TILE)
        user = tl.load(users + at)
        tl.store(out + user[:, None] * D + d[None, :], tl.load(x + at[:, None] * D + d[None, :]))
