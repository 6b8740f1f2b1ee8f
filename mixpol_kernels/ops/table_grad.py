"""The gradient of a looked-up table, shared by the ops that read one: sorted segments, no atomics."""

from __future__ import annotations

import torch
from torch import Tensor

from mixpol_kernels.ops.registry import LAYOUT, Arguments, declare

_INPUTS = f"Tensor ids, Tensor grad_tokens, {LAYOUT}, SymInt table_rows"


def _sparse_shapes(a: Arguments) -> tuple[Tensor, Tensor]:
    unique = torch.library.get_ctx().new_dynamic_size()
    rows = a.grad_tokens.new_empty(unique, a.grad_tokens.shape[-1], dtype=torch.float32)
    return a.ids.new_empty(unique, dtype=torch.int64), rows


# Gradient of a looked-up table: rows of grad_tokens summed per id, in order of position, over sorted segments.
DENSE = declare(
    f"table_grad_dense({_INPUTS}) -> Tensor",
    lambda a: a.grad_tokens.new_empty(a.table_rows, a.grad_tokens.shape[-1], dtype=torch.float32),
    triton="triton.table_grad:dense",
)
SPARSE = declare(
    f"table_grad_sparse({_INPUTS}) -> (Tensor unique_ids, Tensor rows)",
    _sparse_shapes,
    triton="triton.table_grad:sparse",
)


def table_grad(
    ids: Tensor,
    grad_tokens: Tensor,
    offsets: Tensor | None,
    lengths: Tensor | None,
    mask: Tensor | None,
    table_rows: int,
    sparse: bool,
    dtype: torch.dtype = torch.float32,
    backend: str = "cpu",
) -> Tensor:
    """Gradient of a table [table_rows, D] from that of its looked-up rows, in float32; dense or coalesced sparse.

    The sums are in float32 too, and rounded once if the table has another `dtype`. The dense form waits for no device;
    the sparse one waits once, for the number of different ids.
    """
    if not sparse:
        dense: Tensor = DENSE.of(backend)(ids, grad_tokens, offsets, lengths, mask, table_rows)
        return dense.to(dtype)
    unique, rows = SPARSE.of(backend)(ids, grad_tokens, offsets, lengths, mask, table_rows)
    return torch.sparse_coo_tensor(
        unique[None], rows.to(dtype), (table_rows, rows.shape[1]), is_coalesced=True, check_invariants=False
    )
