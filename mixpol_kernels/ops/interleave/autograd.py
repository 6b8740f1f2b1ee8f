"""The registered op of `interleave`. There is no gradient: places are integers."""

from __future__ import annotations

import torch
from torch import Tensor

from mixpol_kernels.ops.registry import Arguments, declare


def _shapes(a: Arguments) -> tuple[Tensor, Tensor, Tensor]:
    every = a.positive_times.shape[0] + a.negative_times.shape[0]
    events = every if a.budget is None else torch.library.get_ctx().new_dynamic_size()
    return (
        a.positive_offsets.new_empty(events, dtype=torch.int64),
        a.positive_offsets.new_empty(events, dtype=torch.uint8),
        a.positive_offsets.new_empty(a.positive_offsets.shape[0], dtype=torch.int64),
    )


FORWARD = declare(
    "interleave(Tensor positive_times, Tensor positive_offsets, Tensor negative_times, Tensor negative_offsets, "
    "SymInt? budget, SymInt? n_negative) -> (Tensor source, Tensor polarity, Tensor offsets)",
    _shapes,
    triton="interleave.triton.launch:forward",
)
