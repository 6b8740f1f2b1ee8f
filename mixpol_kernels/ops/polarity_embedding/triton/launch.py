"""From tensors to launches of the Triton kernel, by the same contract as the compiled op."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from mixpol_kernels.checks import check_range
from mixpol_kernels.history import Layout
from mixpol_kernels.library import INTERPRETING
from mixpol_kernels.ops.polarity_embedding.triton import kernels, support
from mixpol_kernels.ops.registry import Arguments
from mixpol_kernels.ops.triton import devices, reports

TILE = 16 if INTERPRETING else 32
COLUMNS = 16 if INTERPRETING else 64  # of a program, at most


def forward(a: Arguments) -> Tensor:
    """`mixpol::polarity_embedding_fwd`.

    Raises:
        ValueError: tables that the kernel does not take.
        RuntimeError: ids of an earlier call were outside their tables.
    """
    refusal = support.refusal(a.item_table, a.polarity_table, a.extra_table)
    if refusal:
        raise ValueError(f"polarity_embedding: the Triton kernels cannot run: {refusal}")
    reports.raise_reported()
    named = (
        ("item_ids", a.item_ids, a.item_table),
        ("polarity", a.polarity, a.polarity_table),
        ("extra_ids", a.extra_ids, a.extra_table),
    )
    shape = tuple(a.item_ids.shape)
    if INTERPRETING:  # on a GPU a check would wait for the device: the kernels clamp instead
        users = next((t.shape[0] for t in (a.lengths, a.mask) if t is not None), 0)
        where = Layout(users, shape, a.offsets, a.lengths, a.mask)
        where.check_values()
        for name, ids, table in named:
            if ids is not None:
                check_range(name, ids, table.shape[0], where.keep())
    width = a.item_table.shape[1]
    tokens: Tensor = a.item_table.new_empty((*shape, width))
    if not tokens.numel():
        return tokens
    ids = [None if ids is None else ids.contiguous() for _, ids, _ in named]
    tables = [_rows(table) for _, _, table in named]
    present = [table for table in tables if table is not None]
    align = min(map(devices.alignment, present))
    columns = min(devices.block(width), COLUMNS)
    units = [0 if table is None else table.stride(0) // align for table in tables]
    with torch.cuda.device_of(tokens):
        kernels.forward_kernel[(triton.cdiv(a.item_ids.numel(), TILE) * triton.cdiv(width, columns),)](
            *ids, *tables, a.lengths, a.mask, tokens, reports.word(), a.item_ids.numel(), shape[-1],
            *(0 if table is None else table.shape[0] for table in tables), *units,
            D=width, BD=columns, LAYOUT=1 if a.lengths is not None else 2 if a.mask is not None else 3,
            EXTRA=a.extra_table is not None, ALIGN=align, TILE=TILE, num_warps=4,
        )  # fmt: skip
    return tokens


def _rows(table: Tensor | None) -> Tensor | None:
    """Rows of adjacent elements."""
    return table if table is None or table.stride(1) == 1 or table.shape[1] == 1 else table.contiguous()
