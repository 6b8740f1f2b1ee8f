"""torch.library registration of `interleave`: schema and fake. There is no gradient: places are integers."""

from __future__ import annotations

import torch
from torch import Tensor

from mixpol_kernels.library import define

define(
    "interleave",
    "(Tensor positive_times, Tensor positive_offsets, Tensor negative_times, Tensor negative_offsets, "
    "SymInt? budget, SymInt? n_negative) -> (Tensor source, Tensor polarity, Tensor offsets)",
)


@torch.library.register_fake("mixpol::interleave")
def _(
    positive_times: Tensor,
    positive_offsets: Tensor,
    negative_times: Tensor,
    negative_offsets: Tensor,
    budget: int | None,
    n_negative: int | None,
) -> tuple[Tensor, Tensor, Tensor]:
    every = positive_times.shape[0] + negative_times.shape[0]
    events = every if budget is None else torch.library.get_ctx().new_dynamic_size()
    return (
        positive_offsets.new_empty(events, dtype=torch.int64),
        positive_offsets.new_empty(events, dtype=torch.uint8),
        positive_offsets.new_empty(positive_offsets.shape[0], dtype=torch.int64),
    )


interleave = torch.ops.mixpol.interleave.default
