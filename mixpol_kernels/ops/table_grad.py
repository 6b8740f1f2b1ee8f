"""The gradient of a looked-up table, shared by the ops that read one: sorted segments, no atomics."""

from __future__ import annotations

import torch
from torch import Tensor

from mixpol_kernels.library import define

_LAYOUT = "Tensor? offsets, Tensor? lengths, Tensor? mask"
# Gradient of a looked-up table: rows of grad_tokens summed per id, in order of position, over sorted segments.
define("table_grad_dense", f"(Tensor ids, Tensor grad_tokens, {_LAYOUT}, SymInt table_rows) -> Tensor")
define(
    "table_grad_sparse",
    f"(Tensor ids, Tensor grad_tokens, {_LAYOUT}, SymInt table_rows) -> (Tensor unique_ids, Tensor rows)",
)


@torch.library.register_fake("mixpol::table_grad_dense")
def _(
    ids: Tensor,
    grad_tokens: Tensor,
    offsets: Tensor | None,
    lengths: Tensor | None,
    mask: Tensor | None,
    table_rows: int,
) -> Tensor:
    return grad_tokens.new_empty(table_rows, grad_tokens.shape[-1])


@torch.library.register_fake("mixpol::table_grad_sparse")
def _(
    ids: Tensor,
    grad_tokens: Tensor,
    offsets: Tensor | None,
    lengths: Tensor | None,
    mask: Tensor | None,
    table_rows: int,
) -> tuple[Tensor, Tensor]:
    unique = torch.library.get_ctx().new_dynamic_size()
    return ids.new_empty(unique, dtype=torch.int64), grad_tokens.new_empty(unique, grad_tokens.shape[-1])


_dense = torch.ops.mixpol.table_grad_dense.default
_sparse = torch.ops.mixpol.table_grad_sparse.default


def table_grad(
    ids: Tensor,
    grad_tokens: Tensor,
    offsets: Tensor | None,
    lengths: Tensor | None,
    mask: Tensor | None,
    table_rows: int,
    sparse: bool,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Gradient of a table [table_rows, D] from that of its looked-up rows, in float32; dense or coalesced sparse.

    The sums are in float32 too, and rounded once if the table has another `dtype`.
    """
    if not sparse:
        dense: Tensor = _dense(ids, grad_tokens, offsets, lengths, mask, table_rows)
        return dense.to(dtype)
    unique, rows = _sparse(ids, grad_tokens, offsets, lengths, mask, table_rows)
    return torch.sparse_coo_tensor(
        unique[None], rows.to(dtype), (table_rows, rows.shape[1]), is_coalesced=True, check_invariants=False
    )
