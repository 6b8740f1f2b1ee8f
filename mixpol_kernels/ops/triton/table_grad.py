"""The gradient of a looked-up table in Triton, for GPUs without the compiled CUDA kernels: sorted segments, no atomics.

Ids are sorted stably, so that equal ones lie together in the order of their positions; the program of the first of
them adds their rows in an order that depends on the inputs alone.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mixpol_kernels.history import Layout
from mixpol_kernels.ops.registry import Arguments
from mixpol_kernels.ops.triton import devices


@triton.jit
def sum_segments(  # type: ignore[no-untyped-def]
    grads, ids, order, ends, places, sums, table_rows,
    D: tl.constexpr, BD: tl.constexpr, SPARSE: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Of the segment that begins at sorted place `program_id`, if one does: Σ grads[position] to its row of `sums`."""
    place = tl.program_id(0).to(tl.int64)
    item = tl.load(ids + place)
    before = tl.load(ids + tl.maximum(place - 1, 0))
    if (item < table_rows) & ((place == 0) | (before != item)):
        d = tl.arange(0, BD)
        r = tl.arange(0, ROWS)
        end = tl.load(ends + place)
        total = tl.zeros([ROWS, BD], tl.float32)
        for p0 in range(place, end, ROWS):
            inside = p0 + r < end
            position = tl.load(order + p0 + r, mask=inside, other=0)
            at = grads + position[:, None] * D + d[None, :]
            total += tl.load(at, mask=inside[:, None] & (d < D)[None, :], other=0.0)
        row = item
        if SPARSE:
            row = tl.load(places + place) - 1
        tl.store(sums + row * D + d, tl.sum(total, 0), mask=d < D)


def dense(a: Arguments) -> Tensor:
    """`mixpol::table_grad_dense`."""
    values, order = _sorted(a)
    sums: Tensor = a.grad_tokens.new_zeros((a.table_rows, a.grad_tokens.shape[-1]), dtype=torch.float32)
    _sum(a.grad_tokens, values, order, None, sums, a.table_rows)
    return sums


def sparse(a: Arguments) -> tuple[Tensor, Tensor]:
    """`mixpol::table_grad_sparse`. Waits for the device, which alone knows how many ids there are."""
    values, order = _sorted(a)
    begins = torch.ones_like(values, dtype=torch.bool)
    begins[1:] = values[1:] != values[:-1]
    begins &= values < a.table_rows
    unique = values[begins]
    sums = a.grad_tokens.new_zeros((len(unique), a.grad_tokens.shape[-1]), dtype=torch.float32)
    _sum(a.grad_tokens, values, order, begins.cumsum(0), sums, a.table_rows)
    return unique, sums


def _sorted(a: Arguments) -> tuple[Tensor, Tensor]:
    """Ids in order and their positions; pads come last, as `table_rows`. Outside the table: clamped, as when read."""
    batch = next((t.shape[0] for t in (a.lengths, a.mask) if t is not None), 0)
    keep = Layout(batch, tuple(a.ids.shape), a.offsets, a.lengths, a.mask).keep()
    values = a.ids.reshape(-1).long().clamp(0, max(a.table_rows - 1, 0))
    if keep is not None:
        values = torch.where(keep, values, a.table_rows)
    sorted_values, order = values.sort(stable=True)
    return sorted_values, order


def _sum(grads: Tensor, values: Tensor, order: Tensor, places: Tensor | None, sums: Tensor, table_rows: int) -> None:
    if not grads.numel():
        return
    width = grads.shape[-1]
    ends = torch.searchsorted(values, values, right=True)
    with torch.cuda.device_of(grads):
        sum_segments[(len(values),)](
            grads.contiguous(), values, order, ends, places, sums, table_rows,
            D=width, BD=devices.block(width), SPARSE=places is not None, ROWS=16, num_warps=4,
        )  # fmt: skip
