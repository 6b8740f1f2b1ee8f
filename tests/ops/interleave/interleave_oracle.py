"""The definition of `interleave`, one user and one event at a time, and what hypothesis draws for it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st

User = tuple[list[Any], list[Any]]  # times of the positives and of the negatives, each rising
DTYPES = (torch.int64, torch.int32, torch.float32, torch.float64)


@dataclass(frozen=True)
class Case:
    """Ragged lists of some users, and the limits."""

    users: Sequence[User]
    budget: int | None
    share: float | None
    dtype: torch.dtype = torch.int64
    offset_dtypes: tuple[torch.dtype, torch.dtype] = (torch.int64, torch.int64)

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of the public function."""
        lists: dict[str, Any] = {"budget": self.budget, "negative_share": self.share}
        for side, name in enumerate(("positive", "negative")):
            times = [t for user in self.users for t in user[side]]
            lists[f"{name}_times"] = torch.tensor(times, dtype=self.dtype)
            starts = starts_of(self.users, side)
            lists[f"{name}_offsets"] = torch.tensor(starts, dtype=self.offset_dtypes[side])
        return lists


def starts_of(users: Sequence[User], side: int) -> list[int]:
    starts = [0]
    for user in users:
        starts.append(starts[-1] + len(user[side]))
    return starts


def expected(case: Case) -> tuple[list[int], list[int], list[int]]:
    """Source, polarity and offsets by the definition."""
    source, polarity, offsets = [], [], [0]
    positive_start, negative_start = starts_of(case.users, 0), starts_of(case.users, 1)
    for b, user in enumerate(case.users):
        for sign, place in merged(user, case.budget, case.share):
            source.append(positive_start[b] + place if sign else positive_start[-1] + negative_start[b] + place)
            polarity.append(sign)
        offsets.append(len(source))
    return source, polarity, offsets


def merged(user: User, budget: int | None, share: float | None) -> list[tuple[int, int]]:
    """(polarity, place in its list) of the events that one user keeps, oldest first."""
    positives, negatives = [(t, 1, i) for i, t in enumerate(user[0])], [(t, 0, i) for i, t in enumerate(user[1])]
    events = sorted(positives + negatives)
    if budget is not None and share is None:
        while len(events) > budget:
            del events[0]
    elif budget is not None:
        kept: set[tuple[Any, int, int]] = set()
        quota = min(budget, math.floor(share * budget + 0.5))
        while negatives and len(kept) < quota:
            kept.add(negatives.pop())
        for rest in (positives, negatives):
            while rest and len(kept) < budget:
                kept.add(rest.pop())
        events = [e for e in events if e in kept]
    return [(sign, place) for _, sign, place in events]


def times_of(dtype: torch.dtype) -> st.SearchStrategy[Any]:
    """Few distinct values, for ties, and the ends of the range."""
    if dtype.is_floating_point:
        width = torch.finfo(dtype).bits
        special = st.sampled_from([-math.inf, -1.5, -0.0, 0.0, 1.5, math.inf])
        return special | st.floats(allow_nan=False, width=width)  # type: ignore[arg-type]
    limits = torch.iinfo(dtype)
    return st.integers(-2, 2) | st.integers(limits.min, limits.max)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    dtype = draw(st.sampled_from(DTYPES))
    times = st.lists(times_of(dtype), max_size=8).map(sorted)
    users = draw(st.lists(st.tuples(times, times), max_size=6))
    budget = draw(st.none() | st.integers(0, 18) | st.sampled_from([2**31, 2**63 - 1]))
    share = None if budget is None else draw(st.none() | st.floats(0, 1) | st.sampled_from([0, 0.5, 1]))
    index = st.sampled_from([torch.int32, torch.int64])
    return Case(users, budget, share, dtype, (draw(index), draw(index)))
