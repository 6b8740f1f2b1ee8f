"""From tensors to launches of the Triton kernels, by the same contract as the compiled op."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from mixpol_kernels.library import INTERPRETING
from mixpol_kernels.ops.interleave.triton import kernels, support
from mixpol_kernels.ops.registry import Arguments
from mixpol_kernels.ops.triton import reports

TILE = 16 if INTERPRETING else 128


def forward(a: Arguments) -> tuple[Tensor, Tensor, Tensor]:
    """`mixpol::interleave`. With a budget it waits for the device once, which alone knows how many events stay.

    Raises:
        ValueError: a device that the kernels do not run on.
        RuntimeError: times or offsets of an earlier call were wrong.
    """
    refusal = support.refusal(a.positive_times)
    if refusal:
        raise ValueError(f"interleave: the Triton kernels cannot run: {refusal}")
    reports.raise_reported()
    positive, negative = a.positive_times.contiguous(), a.negative_times.contiguous()
    positive_at, negative_at = a.positive_offsets.contiguous(), a.negative_offsets.contiguous()
    users, positives, negatives = len(positive_at) - 1, len(positive), len(negative)
    lists = (positive, positive_at, negative, negative_at)
    # A search among n numbers takes as many steps as n has bits.
    steps, user_steps = min(positives, negatives).bit_length(), (users + 1).bit_length()
    taken, counts = positive_at.new_empty(users), positive_at.new_zeros(users + 1)
    with torch.cuda.device_of(positive):
        for number, times, at in ((4, positive, positive_at), (5, negative, negative_at)):
            if len(times):
                kernels.check_kernel[(triton.cdiv(len(times), TILE),)](
                    times, at, reports.word(), len(times), users, user_steps, ARGUMENT=number, TILE=TILE, num_warps=4
                )
        if users:
            kernels.plan_kernel[(triton.cdiv(users, TILE),)](
                *lists, taken, counts[1:], reports.word(), users, positives, negatives, a.budget or 0,
                a.n_negative or 0, positives.bit_length(), LIMITED=a.budget is not None,
                SHARE=a.n_negative is not None, TILE=TILE, num_warps=4,
            )  # fmt: skip
        offsets = counts.cumsum(0)
        events = positives + negatives if a.budget is None else int(offsets[-1])  # the one wait
        source = offsets.new_empty(events if users else 0)
        polarity = offsets.new_empty(len(source), dtype=torch.uint8)
        if len(source):
            kernels.merge_kernel[(triton.cdiv(len(source), TILE),)](
                *lists, taken, offsets, source, polarity, users, positives, negatives, len(source), steps, user_steps,
                TILE=TILE, num_warps=4,
            )  # fmt: skip
    return source, polarity, offsets
