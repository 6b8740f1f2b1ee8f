"""The gradient of a looked-up table in Triton: rows of a gradient summed for each id, the same bits every time.

Ids are sorted stably, so that equal ones, a segment, lie together in the order of their positions. Programs take RUN
sorted places each, whatever the ids are: a segment inside a run is summed there; one that spans several leaves at most
two sums a run, and these are summed as the places were, until one run is left. So a hot item is as parallel as any. Of
a table of few rows, of polarities say, nothing is sorted: fixed programs look for each row's positions.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mixpol_kernels.history import Layout
from mixpol_kernels.library import INTERPRETING
from mixpol_kernels.ops.registry import Arguments
from mixpol_kernels.ops.triton import devices, shared

RUN = 8 if INTERPRETING else 32  # sorted places of a program, of one warp: a scan then needs no barrier
COLUMNS = 16 if INTERPRETING else 64  # of a program, at most
FEW = 16  # rows of a table that is not worth sorting
# Programs for each row of a table of few. A fixed number: bits depend on the inputs, not on the machine.
PROGRAMS = 4 if INTERPRETING else 256
TILE = 16 if INTERPRETING else 64


@triton.jit
def _add_in_segment(begins_a, sum_a, begins_b, sum_b):  # type: ignore[no-untyped-def]
    """Inclusive sums that start anew where a segment begins."""
    return begins_a | begins_b, tl.where(begins_b != 0, sum_b, sum_a + sum_b)


@triton.jit(do_not_specialize=["count", "table_rows"])
def sum_runs(  # type: ignore[no-untyped-def]
    rows, keys, order, sums, left_keys, left, count, table_rows,
    D: tl.constexpr, BD: tl.constexpr, SORTED: tl.constexpr, RUN: tl.constexpr,
):  # fmt: skip
    """One run of RUN places, BD columns of it: sums of the segments that lie in it to `sums` [table_rows, D].

    What a segment that began before leaves goes to `left` [2 runs, D] at 2 run, of one that goes on to 2 run + 1; and
    their keys to `left_keys`, `table_rows` where there is none. SORTED: a place's row is not at the place but `order`
    says where. Keys of `table_rows` are nobody's, and come in anywhere between segments.
    """
    blocks: tl.constexpr = (D + BD - 1) // BD
    run = (tl.program_id(0) // blocks).to(tl.int64)
    d = tl.program_id(0) % blocks * BD + tl.arange(0, BD)
    begin = run * RUN
    i = begin + tl.arange(0, RUN)
    here = i < count
    last = tl.minimum(begin + RUN, count) - 1
    key = tl.load(keys + i, mask=here, other=table_rows)
    valid = key < table_rows
    at = i
    if SORTED:
        at = tl.load(order + i, mask=here, other=0)
    x = tl.load(rows + at[:, None] * D + d[None, :], mask=valid[:, None] & (d < D)[None, :], other=0.0).to(tl.float32)
    before = tl.load(keys + i - 1, mask=here & (i > begin), other=-1)
    begins = tl.where(before == key, tl.zeros([RUN], tl.int32), 1)[:, None] + tl.zeros([RUN, BD], tl.int32)
    _, total = tl.associative_scan((begins, x), 0, _add_in_segment)
    after = tl.load(keys + i + 1, mask=i < last, other=-1)
    ends = valid & (after != key)

    first_key = tl.load(keys + begin)
    last_key = tl.load(keys + last)
    continues = (tl.load(keys + tl.maximum(begin - 1, 0)) == first_key) & (begin > 0)
    goes_on = (tl.load(keys + tl.minimum(last + 1, count - 1)) == last_key) & (last + 1 < count)
    to_next = ends & (i == last) & goes_on
    to_before = ends & (key == first_key) & continues & (to_next == 0)
    whole = ends & (to_next == 0) & (to_before == 0)
    columns = (d < D)[None, :]
    tl.store(sums + key.to(tl.int64)[:, None] * D + d[None, :], total, mask=whole[:, None] & columns)
    to = left + 2 * run * D + d[None, :] + tl.zeros([RUN, 1], tl.int64)
    tl.store(to, total, mask=to_before[:, None] & columns)
    tl.store(to + D, total, mask=to_next[:, None] & columns)
    # One segment from end to end: a sum for the next run, and a zero of the same key, so that they stay together.
    through = continues & goes_on & (first_key == last_key) & (last_key < table_rows)
    tl.store(left + 2 * run * D + d, tl.zeros([BD], tl.float32), mask=through & (d < D))
    if tl.program_id(0) % blocks == 0:
        some = through | (tl.sum(to_before.to(tl.int32), 0) > 0)
        tl.store(left_keys + 2 * run, tl.where(some, first_key, table_rows))
        some = tl.sum(to_next.to(tl.int32), 0) > 0
        tl.store(left_keys + 2 * run + 1, tl.where(some, last_key, table_rows))


@triton.jit(do_not_specialize=["count", "table_rows"])
def sum_few(  # type: ignore[no-untyped-def]
    rows, keys, slabs, count, table_rows, stride,
    D: tl.constexpr, BD: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Σ of the rows with one key, in tiles p, p + P, ... of program p of P, to a slab [table_rows, D]."""
    blocks: tl.constexpr = (D + BD - 1) // BD
    wanted = tl.program_id(1) // blocks
    d = tl.program_id(1) % blocks * BD + tl.arange(0, BD)
    tile = tl.arange(0, TILE)
    total = tl.zeros([TILE, BD], tl.float32)
    for i0 in range(tl.program_id(0) * TILE, count, tl.num_programs(0) * TILE):
        i = (i0 + tile).to(tl.int64)
        ours = tl.load(keys + i, mask=i < count, other=table_rows) == wanted
        at = rows + i[:, None] * D + d[None, :]
        total += tl.load(at, mask=ours[:, None] & (d < D)[None, :], other=0.0).to(tl.float32)
    to = slabs + tl.program_id(0).to(tl.int64) * stride + wanted * D + d
    tl.store(to, tl.sum(total, 0), mask=d < D)


def dense(a: Arguments) -> Tensor:
    """`mixpol::table_grad_dense`, in float32 whatever the gradient's dtype. Nothing waits for the device."""
    grads: Tensor = a.grad_tokens.contiguous()
    width, rows = grads.shape[-1], int(a.table_rows)
    keys = _keys(a)
    if grads.numel() and 0 < rows <= FEW:
        return _sum_few(grads, keys, rows)
    sums: Tensor = grads.new_zeros((rows, width), dtype=torch.float32)
    if not grads.numel():
        return sums
    keys, order = keys.sort(stable=True)
    _sum_runs(grads, keys, order, sums)
    return sums


def sparse(a: Arguments) -> tuple[Tensor, Tensor]:
    """`mixpol::table_grad_sparse`. Waits for the device once, which alone knows how many different ids there are."""
    grads: Tensor = a.grad_tokens.contiguous()
    keys, order = _keys(a).sort(stable=True)
    begins = keys < a.table_rows
    begins[1:] &= keys[1:] != keys[:-1]
    unique = keys[begins].long()  # the one wait
    sums: Tensor = grads.new_empty((len(unique), grads.shape[-1]), dtype=torch.float32)
    places = (begins.cumsum(0, dtype=keys.dtype) - 1).masked_fill(keys == a.table_rows, len(unique))
    _sum_runs(grads, places, order, sums)
    return unique, sums


def _keys(a: Arguments) -> Tensor:
    """[N] rows of the table, `table_rows` at pads; of 32 bits where these do, which halves the sorting.

    Ids outside the table are clamped, as when they are read.
    """
    batch = next((t.shape[0] for t in (a.lengths, a.mask) if t is not None), 0)
    keep = Layout(batch, tuple(a.ids.shape), a.offsets, a.lengths, a.mask).keep()
    keys: Tensor = a.ids.reshape(-1).long().clamp(0, max(a.table_rows - 1, 0))
    if keep is not None:
        keys = torch.where(keep, keys, a.table_rows)
    small: bool = a.table_rows < 2**31 - 1
    return keys.int() if small else keys


def _sum_runs(grads: Tensor, keys: Tensor, order: Tensor, sums: Tensor) -> None:
    """Rows of `grads` by sorted keys, each level's leftovers again: launches by the number of places alone."""
    width, count, rows = grads.shape[-1], len(keys), grads
    if not sums.numel():
        return
    columns = min(devices.block(width), COLUMNS)
    with torch.cuda.device_of(grads):
        while True:
            runs = triton.cdiv(count, RUN)
            left_keys, left = keys.new_empty(2 * runs), sums.new_empty(2 * runs, width)
            sum_runs[(runs * triton.cdiv(width, columns),)](
                rows, keys, order if rows is grads else None, sums, left_keys, left, count, sums.shape[0],
                D=width, BD=columns, SORTED=rows is grads, RUN=RUN, num_warps=1,
            )  # fmt: skip
            if runs == 1:
                return
            rows, keys, count = left, left_keys, 2 * runs


def _sum_few(grads: Tensor, keys: Tensor, rows: int) -> Tensor:
    width, count = grads.shape[-1], len(keys)
    columns = min(devices.block(width), COLUMNS)
    programs = min(triton.cdiv(count, TILE), PROGRAMS)
    slabs = grads.new_empty((programs, rows * width), dtype=torch.float32)
    sums = grads.new_empty((rows, width), dtype=torch.float32)
    with torch.cuda.device_of(grads):
        sum_few[(programs, rows * triton.cdiv(width, columns))](
            grads, keys, slabs, count, rows, rows * width, D=width, BD=columns, TILE=TILE, num_warps=4
        )
        shared.sum_slabs[(triton.cdiv(rows * width, 64),)](
            slabs, sums, programs, rows * width, rows * width, ROWS=16, COLUMNS=64, num_warps=4
        )
    return sums
