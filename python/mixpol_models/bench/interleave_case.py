"""Seeded lists for the `interleave` suite, and the ways to merge them in PyTorch that the op is measured against.

Every form is a function of the same lists and gives source, polarity and offsets, to the last place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

import mixpol_kernels
from mixpol_models.bench.gate import GateError

Merged = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Lists:
    """The events of one polarity: times [N] rising within each user, and offsets [B + 1].

    `user` [N] and `longest`, a list's largest length, are there for the PyTorch forms, which get them for free.
    """

    times: Tensor
    offsets: Tensor
    user: Tensor
    longest: int

    @classmethod
    def of(cls, times: Tensor, counts: Tensor, user: Tensor) -> Lists:
        """Lists of counts[b] events each."""
        return cls(times, torch.cat([counts.new_zeros(1), counts.cumsum(0)]), user, int(counts.max()))

    def newest(self, counts: Tensor) -> tuple[Lists, Tensor]:
        """The newest counts[b] of each user, and their places [N'] in the whole list."""
        user = torch.repeat_interleave(counts)
        place = torch.arange(user.shape[0]) + (self.offsets[1:] - counts.cumsum(0))[user]
        return Lists.of(self.times[place], counts, user), place


@dataclass(frozen=True)
class InterleaveCase:
    """Two lists a user and the limits; `budget` and `share` are None or both set.

    Attributes:
        name: of the shape.
        forms: "two sorts" (the reference), "one sort", "search", "search+compile" and "fused", by name.
    """

    name: str
    positive: Lists
    negative: Lists
    budget: int | None
    share: float | None
    forms: Mapping[str, Callable[[], Merged]]

    def check(self, form: str) -> None:
        """Holds a form to the reference.

        Raises:
            GateError: a place, a polarity or an offset differs.
        """
        check_merge(form, self.forms[form](), self.forms["two sorts"]())


def check_merge(form: str, merged: Merged, expected: Merged) -> None:
    """GateError unless the two are equal."""
    for name, got, true in zip(("source", "polarity", "offsets"), merged, expected, strict=True):
        if not torch.equal(got, true):
            raise GateError(f"{form}: {name} differs from the reference. The gate is red, so no number is shown.")


def interleave_case(
    users: int = 4096,
    positives: int = 100,
    negatives: int = 200,
    budget: int | None = None,
    share: float | None = None,
    seed: int = 0,
) -> InterleaveCase:
    """Lists of 0.5 to 1.5 times the given mean lengths, times in seconds over a month, int64."""
    generator = torch.Generator().manual_seed(seed)
    positive, negative = (_draw(users, mean, generator) for mean in (positives, negatives))
    arguments = (positive.times, positive.offsets, negative.times, negative.offsets)
    limits = {"budget": budget, "negative_share": share}

    def op(backend: str) -> Merged:
        return mixpol_kernels.interleave(*arguments, **limits, backend=backend)[:3]

    def form(merge: Callable[[Lists, Lists], Merged]) -> Callable[[], Merged]:
        return partial(_within_budget, merge, positive, negative, budget, share)

    kept = "all" if budget is None else f"budget {budget} share {share}"
    return InterleaveCase(
        f"interleave B={users} P={positives} N={negatives} {kept}",
        positive,
        negative,
        budget,
        share,
        {
            "two sorts": partial(op, "reference"),
            "one sort": form(one_sort),
            "search": form(search),
            "search+compile": form(torch.compile(search, dynamic=False)),
            "fused": partial(op, "cpu"),
        },
    )


def one_sort(positive: Lists, negative: Lists) -> Merged:
    """Stable sort of user * span + time: right only while that fits into 64 bits."""
    times, user = torch.cat([negative.times, positive.times]), torch.cat([negative.user, positive.user])
    first, last = torch.aminmax(times)
    order = (user * (last - first + 1) + (times - first)).argsort(stable=True)
    positives, negatives = positive.times.shape[0], negative.times.shape[0]
    source = torch.where(order < negatives, order + positives, order - negatives)
    return source, (source < positives).to(torch.uint8), positive.offsets + negative.offsets


def search(positive: Lists, negative: Lists) -> Merged:
    """An event's place is its own plus the number of the other list's events before it: two batched searches."""
    offsets = positive.offsets + negative.offsets
    positives, negatives = positive.times.shape[0], negative.times.shape[0]
    source = positive.times.new_empty(positives + negatives)
    polarity = torch.empty(positives + negatives, dtype=torch.uint8)
    rows = _padded(positive), _padded(negative)
    sides = ((positive, *rows, True, 0), (negative, *rows[::-1], False, positives))
    for lists, (mine, column), (other, _), right, first in sides:
        ahead = torch.searchsorted(other, mine, right=right)[lists.user, column]
        place = offsets[lists.user] + column + ahead
        source[place] = torch.arange(first, first + lists.times.shape[0])
        polarity[place] = right
    return source, polarity, offsets


def _padded(lists: Lists) -> tuple[Tensor, Tensor]:
    """Times [B, L], padded on the right with the largest time that there is, and the column of each event [N]."""
    column = torch.arange(lists.times.shape[0]) - lists.offsets[lists.user]
    padded = lists.times.new_full((lists.offsets.shape[0] - 1, lists.longest), torch.iinfo(lists.times.dtype).max)
    padded[lists.user, column] = lists.times
    return padded, column


def _within_budget(
    merge: Callable[[Lists, Lists], Merged],
    positive: Lists,
    negative: Lists,
    budget: int | None,
    share: float | None,
) -> Merged:
    """Cuts the lists to what the budget keeps before they are merged, which the reference does afterwards."""
    if budget is None or share is None:
        return merge(positive, negative)
    p, n = positive.offsets.diff(), negative.offsets.diff()
    take_n = n.clamp(max=int(share * budget + 0.5))
    take_p = torch.minimum(p, budget - take_n)
    take_n = torch.minimum(n, budget - take_p)
    (short_positive, p_place), (short_negative, n_place) = positive.newest(take_p), negative.newest(take_n)
    source, polarity, offsets = merge(short_positive, short_negative)
    return torch.cat([p_place, n_place + positive.times.shape[0]])[source], polarity, offsets


def _draw(users: int, mean: int, generator: torch.Generator) -> Lists:
    month = 30 * 24 * 3600
    counts = torch.randint(mean // 2, mean + mean // 2 + 1, (users,), generator=generator)
    user = torch.repeat_interleave(counts)
    times = torch.randint(month, user.shape, generator=generator)
    times = (user * month + times).sort().values - user * month
    return Lists.of(times, counts, user)
