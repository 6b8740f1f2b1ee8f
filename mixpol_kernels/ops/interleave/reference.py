"""The spec of `interleave` in plain PyTorch: any device, any dtype that can be sorted."""

from __future__ import annotations

import torch
from torch import Tensor


def interleave(
    positive_times: Tensor,
    positive_offsets: Tensor,
    negative_times: Tensor,
    negative_offsets: Tensor,
    budget: int | None,
    n_negative: int | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Merges two jagged lists by (user, time, polarity, place in its list).

    Args:
        positive_times: [P], rising within each user's list.
        positive_offsets: [B + 1] int64.
        negative_times, negative_offsets: [Q] and [B + 1] alike.
        budget: most events a user keeps, the last ones; None keeps all.
        n_negative: of these, the negatives' quota; None takes the last of either polarity.

    Returns:
        source [N] int64, places in cat([positives, negatives]); polarity [N] uint8; offsets [B + 1] int64.
    """
    positives, negatives = positive_times.shape[0], negative_times.shape[0]
    device = positive_times.device
    positive_counts, negative_counts = positive_offsets.diff(), negative_offsets.diff()
    positive_user, positive_newer = _places(positive_offsets, positives)
    negative_user, negative_newer = _places(negative_offsets, negatives)
    # Negatives stand first, and the sorts are stable: at equal times they stay there.
    source = torch.cat(
        [torch.arange(positives, positives + negatives, device=device), torch.arange(positives, device=device)]
    )
    user = torch.cat([negative_user, positive_user])
    order = torch.cat([negative_times, positive_times]).argsort(stable=True)
    order = order[user[order].argsort(stable=True)]
    counts = positive_counts + negative_counts
    if budget is not None and n_negative is None:
        newer = counts.cumsum(0)[user[order]] - 1 - torch.arange(positives + negatives, device=device)
        order = order[newer < budget]
        counts = counts.clamp(max=budget)
    elif budget is not None:
        take_negative = negative_counts.clamp(max=n_negative)
        take_positive = torch.minimum(positive_counts, budget - take_negative)
        take_negative = torch.minimum(negative_counts, budget - take_positive)
        keep = torch.cat([negative_newer < take_negative[negative_user], positive_newer < take_positive[positive_user]])
        order = order[keep[order]]
        counts = take_positive + take_negative
    source = source[order]
    offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    return source, (source < positives).to(torch.uint8), offsets


def _places(offsets: Tensor, events: int) -> tuple[Tensor, Tensor]:
    """[N] int64 each: the user of every event, and how many events follow it in the user's list."""
    place = torch.arange(events, device=offsets.device)
    ends = offsets[1:].contiguous()
    user = torch.searchsorted(ends, place, right=True).clamp(max=ends.shape[0] - 1)
    return user, ends[user] - 1 - place
