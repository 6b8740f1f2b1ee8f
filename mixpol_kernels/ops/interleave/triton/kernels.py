"""The Triton kernels of `interleave`: what each user keeps, then every place of the merged lists finds its event.

The event of place k of a user follows from how many of the k events before it are positives, a binary search along a
diagonal of the merge (merge path). At equal times the negative is the older one. Whatever stands in offsets and times,
nothing out of bounds is read: what is wrong with them is reported (see `reports`), since a kernel cannot raise.
"""

from __future__ import annotations

import triton
import triton.language as tl

INTEGERS = ["users", "positives", "negatives", "budget", "n_negative", "steps", "events", "user_steps", "count"]


@triton.jit
def list_of(at, user, events, there):
    """Where a user's list begins and ends, within what there is."""
    end = tl.minimum(tl.maximum(tl.load(at + user + 1, mask=there, other=0), 0), events)
    return tl.minimum(tl.maximum(tl.load(at + user, mask=there, other=0), 0), end), end


@triton.jit
def first_above(at, value, there, count, steps):
    """The first i of `count` with at[i] > value, for rising numbers; `count` if there is none."""
    low = value * 0
    high = low + count
    for _ in range(steps):
        middle = (low + high) // 2
        active = there & (low < high)
        above = tl.load(at + middle, mask=active, other=0) > value
        high = tl.where(active & above, middle, high)
        low = tl.where(active & (above == 0), middle + 1, low)
    return low


@triton.jit(do_not_specialize=INTEGERS)
def check_kernel(times, at, reports, events, users, user_steps, ARGUMENT: tl.constexpr, TILE: tl.constexpr):
    """Reports times of one polarity that are NaN or fall within a list."""
    i = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    there = i < events
    now = tl.load(times + i, mask=there, other=0)
    before = tl.load(times + i - 1, mask=there & (i > 0), other=0)
    below = there & (i > 0) & (now < before)
    # The last offset that is not above i: the list that i is in begins there.
    owner = first_above(at, i, below, users + 1, user_steps) - 1
    begins = tl.load(at + tl.maximum(owner, 0), mask=below, other=0) == i
    bad = (there & (now != now)) | (below & (begins == 0))
    tl.store(reports + i * 0, i * 8 + ARGUMENT, mask=bad)


@triton.jit
def check_offsets(at, user, users, events, there, reports, ARGUMENT: tl.constexpr):
    here = tl.load(at + user, mask=there, other=0)
    after = tl.load(at + user + 1, mask=there, other=0)
    bad = there & ((after < here) | ((user == 0) & (here != 0)) | ((user == users - 1) & (after != events)))
    tl.store(reports + user * 0, (user + 1) * 8 + ARGUMENT, mask=bad)


@triton.jit(do_not_specialize=INTEGERS)
def plan_kernel(
    positive_times, positive_at, negative_times, negative_at, taken, counts, reports,
    users, positives, negatives, budget, n_negative, steps,
    LIMITED: tl.constexpr, SHARE: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Of TILE users: how many positives each keeps to `taken` [B], and how many events to `counts` [B]."""
    user = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    there = user < users
    check_offsets(positive_at, user, users, positives, there, reports, 6)
    check_offsets(negative_at, user, users, negatives, there, reports, 7)
    begin, positive_end = list_of(positive_at, user, positives, there)
    p = positive_end - begin
    begin, negative_end = list_of(negative_at, user, negatives, there)
    q = negative_end - begin
    take = p
    count = p + q
    if LIMITED:
        full = there & (count > budget)
        if SHARE:
            take = tl.where(full, tl.minimum(p, budget - tl.minimum(q, n_negative)), p)
        else:
            # The fewest positives such that the next one is older than the oldest negative that is kept.
            low = tl.where(full, tl.maximum(budget - q, 0), p)
            high = tl.where(full, tl.minimum(p, budget), p)
            for _ in range(steps):
                middle = (low + high) // 2
                active = there & (low < high)
                positive = tl.load(positive_times + positive_end - 1 - middle, mask=active, other=0)
                negative = tl.load(negative_times + negative_end - (budget - middle), mask=active, other=0)
                newer = positive >= negative
                low = tl.where(active & newer, middle + 1, low)
                high = tl.where(active & (newer == 0), middle, high)
            take = low
        count = tl.minimum(count, budget)
    tl.store(taken + user, take, mask=there)
    tl.store(counts + user, count, mask=there)


@triton.jit(do_not_specialize=INTEGERS)
def merge_kernel(
    positive_times, positive_at, negative_times, negative_at, taken, offsets, source, polarity,
    users, positives, negatives, events, steps, user_steps, TILE: tl.constexpr,
):  # fmt: skip
    """TILE places of the merged lists."""
    place = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    there = place < events
    user = tl.minimum(first_above(offsets + 1, place, there, users, user_steps), users - 1)
    first = tl.load(offsets + user, mask=there, other=0)
    k = place - first
    p = tl.load(taken + user, mask=there, other=0)
    q = tl.load(offsets + user + 1, mask=there, other=0) - first - p
    _, positive_end = list_of(positive_at, user, positives, there)
    _, negative_end = list_of(negative_at, user, negatives, there)
    positive_begin = positive_end - p
    negative_begin = negative_end - q
    low = tl.maximum(k - q, 0)
    high = tl.minimum(k, p)
    for _ in range(steps):
        middle = (low + high) // 2
        active = there & (low < high)
        positive = tl.load(positive_times + positive_begin + middle, mask=active, other=0)
        negative = tl.load(negative_times + negative_begin + k - middle - 1, mask=active, other=0)
        older = positive < negative
        low = tl.where(active & older, middle + 1, low)
        high = tl.where(active & (older == 0), middle, high)
    other = k - low
    both = there & (low < p) & (other < q)
    positive = tl.load(positive_times + positive_begin + low, mask=both, other=0)
    negative = tl.load(negative_times + negative_begin + other, mask=both, other=0)
    is_positive = (low < p) & ((other >= q) | (positive < negative))
    at = tl.where(is_positive, positive_begin + low, positives + negative_begin + other)
    at = tl.minimum(tl.maximum(at, 0), positives + negatives - 1)
    tl.store(source + place, at, mask=there)
    tl.store(polarity + place, is_positive.to(tl.uint8), mask=there)
