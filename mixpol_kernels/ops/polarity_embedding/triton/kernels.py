"""The Triton kernel of `polarity_embedding`: item[i] + polarity[p] + extra[e] for a tile of tokens.

LAYOUT: see `shared`; without pads all positions are kept. Strides of rows are ALIGN times what is given.
"""

from __future__ import annotations

import triton
import triton.language as tl

from mixpol_kernels.ops.triton.ids import table_row


@triton.jit
def rows_at(table, row, stride, d, inside):
    return tl.load(table + row[:, None] * stride + d[None, :], mask=inside, other=0.0).to(tl.float32)


@triton.jit(
    do_not_specialize=[
        "count", "length", "items", "polarities", "extras", "item_units", "polarity_units", "extra_units"
    ]
)  # fmt: skip
def forward_kernel(
    item_ids, polarity, extra_ids, item_table, polarity_table, extra_table, lengths, mask, tokens, reports,
    count, length, items, polarities, extras, item_units, polarity_units, extra_units,
    D: tl.constexpr, BD: tl.constexpr, LAYOUT: tl.constexpr, EXTRA: tl.constexpr, ALIGN: tl.constexpr,
    TILE: tl.constexpr,
):  # fmt: skip
    """TILE tokens, BD columns of them; pads are zeros."""
    blocks: tl.constexpr = (D + BD - 1) // BD
    at = (tl.program_id(0) // blocks).to(tl.int64) * TILE + tl.arange(0, TILE)
    d = tl.program_id(0) % blocks * BD + tl.arange(0, BD)
    there = at < count
    keep = there
    if LAYOUT == 1:
        user = at // length
        keep = keep & (at - user * length < tl.load(lengths + user, mask=there, other=0))
    if LAYOUT == 2:
        keep = keep & (tl.load(mask + at, mask=there, other=0) != 0)
    inside = keep[:, None] & (d < D)[None, :]
    row = table_row(item_ids, at, keep, items, reports, 1)
    x = rows_at(item_table, row, item_units * ALIGN, d, inside)
    row = table_row(polarity, at, keep, polarities, reports, 2)
    x += rows_at(polarity_table, row, polarity_units * ALIGN, d, inside)
    if EXTRA:
        row = table_row(extra_ids, at, keep, extras, reports, 3)
        x += rows_at(extra_table, row, extra_units * ALIGN, d, inside)
    to = tokens + at[:, None] * D + d[None, :]
    tl.store(to, x.to(tokens.dtype.element_ty), mask=there[:, None] & (d < D)[None, :])
