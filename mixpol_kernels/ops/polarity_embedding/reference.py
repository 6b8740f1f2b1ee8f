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
    extra_ids: Tensor | None,
    extra_table: Tensor | None,
    sparse: bool,
) -> Tensor:
    """Item plus polarity plus extra row: item_ids, polarity, extra_ids [T], keep [T] bool or None, to tokens [T, D]."""
    ids, rows = item_ids.long(), polarity.long()
    if keep is not None:
        ids = torch.where(keep, ids, torch.zeros_like(ids))
        rows = torch.where(keep, rows, torch.zeros_like(rows))
    tokens = F.embedding(ids, item_table, sparse=sparse) + F.embedding(rows, polarity_table)
    if extra_ids is not None and extra_table is not None:
        extra = extra_ids.long()
        if keep is not None:
            extra = torch.where(keep, extra, torch.zeros_like(extra))
        tokens = tokens + F.embedding(extra, extra_table)
    return tokens if keep is None else torch.where(keep[:, None], tokens, torch.zeros_like(tokens))
