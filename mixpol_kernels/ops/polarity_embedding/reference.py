"""The spec of `polarity_embedding` in plain PyTorch: any device, any float dtype."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def polarity_embedding(
    item_ids: Tensor,
    polarity: Tensor,
    keep: Tensor | None,
    item_table: Tensor,
    polarity_table: Tensor,
    sparse: bool,
) -> Tensor:
    """Item row plus polarity row: item_ids and polarity [T], keep [T] bool or None, to tokens [T, D]."""
    ids, rows = item_ids.long(), polarity.long()
    if keep is not None:
        ids = torch.where(keep, ids, torch.zeros_like(ids))
        rows = torch.where(keep, rows, torch.zeros_like(rows))
    tokens = F.embedding(ids, item_table, sparse=sparse) + F.embedding(rows, polarity_table)
    return tokens if keep is None else torch.where(keep[:, None], tokens, torch.zeros_like(tokens))
