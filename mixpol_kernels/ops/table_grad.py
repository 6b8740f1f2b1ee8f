"""The gradient of a looked-up table, shared by the ops that read one: sorted segments, no atomics."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mixpol_kernels.library import INTERPRETING, NAMESPACE, TRITON, define, library

_LAYOUT = "Tensor? offsets, Tensor? lengths, Tensor? mask"
# Gradient of a looked-up table: rows of grad_tokens summed per id, in order of position, over sorted segments.
_SCHEMAS = {
    "table_grad_dense": f"(Tensor ids, Tensor grad_tokens, {_LAYOUT}, SymInt table_rows) -> Tensor",
    "table_grad_sparse": f"(Tensor ids, Tensor grad_tokens, {_LAYOUT}, SymInt table_rows)"
    " -> (Tensor unique_ids, Tensor rows)",
}
for _name, _schema in _SCHEMAS.items():
    define(_name, _schema)


def _fake_dense(
    ids: Tensor,
    grad_tokens: Tensor,
    offsets: Tensor | None,
    lengths: Tensor | None,
    mask: Tensor | None,
    table_rows: int,
) -> Tensor:
    return grad_tokens.new_empty(table_rows, grad_tokens.shape[-1])


def _fake_sparse(
    ids: Tensor,
    grad_tokens: Tensor,
    offsets: Tensor | None,
    lengths: Tensor | None,
    mask: Tensor | None,
    table_rows: int,
) -> tuple[Tensor, Tensor]:
    unique = torch.library.get_ctx().new_dynamic_size()
    return ids.new_empty(unique, dtype=torch.int64), grad_tokens.new_empty(unique, grad_tokens.shape[-1])


def _triton_dense(*args: Any) -> Tensor:
    from mixpol_kernels.ops.triton import table_grad as triton

    return triton.dense(*args)


def _triton_sparse(*args: Any) -> tuple[Tensor, Tensor]:
    from mixpol_kernels.ops.triton import table_grad as triton

    return triton.sparse(*args)


_IMPLEMENTATIONS = {
    "table_grad_dense": (_fake_dense, _triton_dense),
    "table_grad_sparse": (_fake_sparse, _triton_sparse),
}
for _name, (_fake, _triton) in _IMPLEMENTATIONS.items():
    torch.library.register_fake(f"{NAMESPACE}::{_name}")(_fake)
    torch.library.define(f"{TRITON}::{_name}", _SCHEMAS[_name])
    torch.library.register_fake(f"{TRITON}::{_name}")(_fake)
    torch.library.impl(f"{TRITON}::{_name}", ("cuda", "cpu") if INTERPRETING else "cuda")(_triton)


def ops(triton: bool) -> tuple[Any, Any]:
    """The dense and the sparse op: compiled, or with `triton` in Triton where there are no compiled CUDA kernels."""
    found = torch.ops.mixpol_triton if triton and not library.cuda_loaded else torch.ops.mixpol
    return found.table_grad_dense.default, found.table_grad_sparse.default


def table_grad(
    ids: Tensor,
    grad_tokens: Tensor,
    offsets: Tensor | None,
    lengths: Tensor | None,
    mask: Tensor | None,
    table_rows: int,
    sparse: bool,
    dtype: torch.dtype = torch.float32,
    triton: bool = False,
) -> Tensor:
    """Gradient of a table [table_rows, D] from that of its looked-up rows, in float32; dense or coalesced sparse.

    The sums are in float32 too, and rounded once if the table has another `dtype`. `triton`: see `ops`.
    """
    of_table, of_rows = ops(triton)
    if not sparse:
        dense: Tensor = of_table(ids, grad_tokens, offsets, lengths, mask, table_rows)
        return dense.to(dtype)
    unique, rows = of_rows(ids, grad_tokens, offsets, lengths, mask, table_rows)
    return torch.sparse_coo_tensor(
        unique[None], rows.to(dtype), (table_rows, rows.shape[1]), is_coalesced=True, check_invariants=False
    )
