"""What the Triton kernels can take; imports no triton."""

from __future__ import annotations

from torch import Tensor

from mixpol_kernels.ops.triton import devices


def refusal(item_table: Tensor, polarity_table: Tensor, extra_table: Tensor | None) -> str:
    """Why the kernels cannot take these tables on their device; empty if they can."""
    reason: str = devices.refusal(item_table.device.index or 0)
    if reason:
        return reason
    tables = {"item_table": item_table, "polarity_table": polarity_table, "extra_table": extra_table}
    for name, table in tables.items():
        if table is not None and 0 in table.shape:
            return f"it takes tables of at least one row and column, and {name} has none; use backend='reference'"
    return ""
